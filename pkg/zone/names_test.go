// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestSlots(t *testing.T) {
	path := zonePath(t)
	z := mustCreate(t, path, small()) // 4 route slots: none, two free, overflow
	reader := mustOpen(t, path)
	long := strings.Repeat("a", 70)
	for _, tt := range []struct {
		name string
		want int
	}{
		{"api", 1}, {"api", 1}, {"none", 0}, {"", 3}, {"overflow", 3}, {long, 2}, {long, 2}, {"one too many", 3}, {long + "b", 3}, {"api", 1},
	} {
		if got := z.RouteSlot(tt.name); got != tt.want {
			t.Errorf("slot of %q is %d, want %d", tt.name, got, tt.want)
		}
	}
	routes := reader.Routes()
	if routes[0] != "none" || routes[1] != "api" || !strings.HasPrefix(routes[2], "aaaa") || len(routes[2]) != nameSize-1 || routes[3] != "overflow" {
		t.Errorf("routes are %q", routes)
	}
	for _, tt := range []struct {
		name string
		want int
	}{{"none", 0}, {"b", 1}, {"c", 2}, {"b", 1}, {"none", 0}} {
		if got := z.UpstreamSlot(tt.name); got != tt.want {
			t.Errorf("slot of upstream %q is %d, want %d", tt.name, got, tt.want)
		}
	}
	if got, want := reader.Upstreams(), []string{"none", "b", "overflow"}; !slices.Equal(got, want) {
		t.Errorf("upstreams are %q, want %q", got, want)
	}
	for slot, want := range map[int]string{-1: "overflow", 0: "none", 1: "api", 3: "overflow", 4: "overflow"} {
		if got := reader.RouteName(slot); got != want {
			t.Errorf("route %d is %q, want %q", slot, got, want)
		}
	}
	if reader.UpstreamName(1) != "b" || reader.UpstreamName(3) != "overflow" {
		t.Error("upstream names differ")
	}
}

// Names that begin alike beyond a slot's size have slots of their own.
func TestLongNames(t *testing.T) {
	l := small()
	l.Routes = 64
	l.Size = l.Need()
	z := mustCreate(t, zonePath(t), l)
	seen := map[int]bool{}
	for n := 60; n < 80; n++ {
		slot := z.RouteSlot(strings.Repeat("x", n))
		if seen[slot] || slot == l.Routes-1 {
			t.Errorf("%d bytes share slot %d", n, slot)
		}
		seen[slot] = true
	}
}

// What no configuration holds cannot reach a line or a label.
func TestHostileNames(t *testing.T) {
	z := mustCreate(t, zonePath(t), small())
	slot := z.RouteSlot("a b\"c\\d\ne\xff")
	if got := z.RouteName(slot); got != "a?b?c?d?e?" {
		t.Errorf("name is %q", got)
	}
	if again := z.RouteSlot("a b\"c\\d\ne\xff"); again != slot {
		t.Errorf("the same name has slots %d and %d", slot, again)
	}
	w := z.nameWords(2)
	for i := range w {
		w[i] = 1<<64 - 1
	}
	if got := z.RouteName(2); got != strings.Repeat("?", nameSize-1) {
		t.Errorf("name is %q", got)
	}
}

// A reader sees no name or a whole one.
func TestNamesAppearWhole(t *testing.T) {
	l := small()
	l.Routes = 4000
	l.Size = l.Need()
	path := zonePath(t)
	z := mustCreate(t, path, l)
	reader := mustOpen(t, path)
	name := func(slot int) string { return fmt.Sprintf("%060d", slot) }
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for slot := 1; slot < l.Routes-1; slot++ {
			z.setName(slot, name(slot))
		}
	})
	for slot := 1; slot < l.Routes-1; slot++ {
		got := ""
		for got == "" {
			got = reader.RouteName(slot)
		}
		if got != name(slot) {
			t.Fatalf("slot %d is %q", slot, got)
		}
	}
}
