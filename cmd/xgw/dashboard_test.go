// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// browser is a headless Chromium of its own, which knows no certificate.
func browser(t *testing.T, width, height int, dark bool) context.Context {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Skip("needs chromium: deploy/setup.sh test installs it")
	}
	scheme := 1 // light
	if dark {
		scheme = 0
	}
	// Not t.TempDir's: the browser's children may write there yet when it has ended.
	profile, err := os.MkdirTemp("", "chromium")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for end := time.Now().Add(20 * time.Second); os.RemoveAll(profile) != nil && time.Now().Before(end); {
			time.Sleep(100 * time.Millisecond)
		}
	})
	o := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.WindowSize(width, height),
		chromedp.UserDataDir(profile), chromedp.Flag("ignore-certificate-errors", true), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("blink-settings", fmt.Sprintf("preferredColorScheme=%d", scheme)))
	allocator, stop := chromedp.NewExecAllocator(t.Context(), o...)
	t.Cleanup(stop)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(cancel)
	limited, end := context.WithTimeout(ctx, 3*time.Minute)
	t.Cleanup(end)
	return limited
}

// adminAddress is where the gateway says that its admin API is.
func adminAddress(t *testing.T, g *running) string {
	t.Helper()
	for range 600 {
		if _, rest, ok := strings.Cut(g.log.String(), "admin API address="); ok {
			address, _, _ := strings.Cut(rest, "\n")
			return address
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("no admin API:\n%s", g.log)
	return ""
}

// What the page shows is what the API says, on a screen of any size, by keyboard alone.
func TestDashboard(t *testing.T) {
	dir := t.TempDir()
	yaml := strings.Replace(gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 1\npin: false\n"), "admin_api: {address: off}", `admin_api: {address: "127.0.0.1:0"}`, 1)
	yaml = strings.Replace(yaml, "upstream: back}", "upstream: back, keys: {}}", 1)
	g := startGateway(t, startHere, "dash", dir, yaml)
	address := adminAddress(t, g)
	text, err := os.ReadFile(filepath.Join(dir, "admin-token"))
	if err != nil {
		t.Fatal(err)
	}
	token := strings.TrimSpace(string(text))
	c := client(true)
	key := mustRun(t, "--instance", "dash", "keys", "add", "--consumer", "alice")
	send := func() {
		q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+g.address+"/", nil)
		if err != nil {
			t.Error(err)
			return
		}
		q.Header.Set("Authorization", "Bearer "+key)
		r, err := c.Do(q)
		if err != nil || r.StatusCode != 200 {
			t.Errorf("%+v, %v", r, err)
			return
		}
		r.Body.Close()
	}
	for range 25 {
		send()
	}
	ctx := browser(t, 360, 740, true)
	shown := func(what, script, want string) {
		t.Helper()
		var got string
		for range 300 {
			var err error
			if got, err = chromedp.Run(ctx, chromedp.Evaluate[string](script)); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if got == want {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Errorf("%s: the page shows %q, want %q", what, got, want)
	}
	err = chromedp.Do(ctx,
		chromedp.Navigate("https://"+address+"/"),
		chromedp.WaitVisible(chromedp.CSS("#login")),
		chromedp.SendKeys(chromedp.CSS("#token"), token+"\r"), // the keyboard alone
		chromedp.WaitVisible(chromedp.CSS("#pane-routes td")),
	)
	if err != nil {
		t.Fatal(err)
	}
	const cells = `[...document.querySelectorAll("#pane-routes tbody tr")].map((r) => r.cells[0].textContent + " " + r.cells[8].textContent).join()`
	shown("requests of the route", cells, "all 25")
	const keyCells = `[...document.querySelectorAll("#pane-keys tbody tr")].map((r) => [r.cells[0], r.cells[3], r.cells[7]].map((c) => c.textContent).join(" ")).join()`
	shown("the busiest keys", keyCells, strings.Split(key, "_")[1]+" 127.0.0.1 25")
	shown("the busiest sources", `document.querySelector("#pane-sources tbody td").textContent`, "127.0.0.1")
	// The button asks, and does: of this address no verdict can be.
	err = chromedp.Do(ctx, chromedp.Click(chromedp.CSS("#pane-keys button")), chromedp.WaitVisible(chromedp.CSS("#ask")))
	if err != nil {
		t.Fatal(err)
	}
	shown("the question", `document.getElementById("ask-text").textContent`, "Drop three of four new connections of 127.0.0.1 for ten minutes?")
	if err := chromedp.Do(ctx, chromedp.Click(chromedp.CSS("#ask-yes"))); err != nil {
		t.Fatal(err)
	}
	shown("what came of it", `String(document.getElementById("said").textContent.includes("is no address of a client"))`, "true")
	q, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address+"/v1/live", nil)
	q.Header.Set("Authorization", "Bearer "+token)
	r, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}).Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var said shownFrame
	if err := json.NewDecoder(r.Body).Decode(&said); err != nil || said.row("routes", "route", "all")["requests"] != 25.0 {
		t.Errorf("the API says %+v, %v", said.row("routes", "route", "all"), err)
	}
	if err := chromedp.Do(ctx, chromedp.Click(chromedp.CSS("#examine"))); err != nil {
		t.Fatal(err)
	}
	shown("findings", `String(/^\d+ checks, \d+ findings$/.test(document.getElementById("examined").textContent) && document.querySelectorAll("#findings tbody tr").length > 0)`, "true")
	shown("generation and workers", `document.getElementById("state").textContent.split(", up")[0]`, "generation 1, 1 of 1 workers ready")
	shown("the wide page", `String(document.documentElement.scrollWidth <= innerWidth)`, "true")
	shown("charts", `String([...document.images].length === 4 && [...document.images].every((i) => i.complete && i.naturalWidth > 0))`, "true")
	shown("dark", `String(matchMedia("(prefers-color-scheme: dark)").matches)`, "true")
	shown("what was asked of others", `String(performance.getEntriesByType("resource").every((e) => e.name.startsWith(location.origin)))`, "true")
	screenshots(t, ctx, send)
	if err := chromedp.Do(ctx, chromedp.Click(chromedp.CSS("#logout")), chromedp.WaitVisible(chromedp.CSS("#login"))); err != nil {
		t.Fatal(err)
	}
}

// screenshots writes what the page looks like beside some traffic, on a small and on a large
// screen, into the directory that XGW_SCREENSHOTS names.
func screenshots(t *testing.T, ctx context.Context, send func()) {
	t.Helper()
	dir := os.Getenv("XGW_SCREENSHOTS")
	if dir == "" {
		return
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(5+i/100%10) * time.Millisecond):
				send()
			}
		}
	}()
	defer func() { close(stop); <-done }()
	if _, err := chromedp.Run(ctx, chromedp.Evaluate[string](`scrollTo(0, 0); document.getElementById("said").textContent = ""`)); err != nil {
		t.Fatal(err)
	}
	for _, screen := range []struct {
		name          string
		width, height int64
	}{{"wide", 1280, 1500}, {"narrow", 360, 1500}} {
		err := chromedp.Do(ctx, chromedp.EmulateViewport(screen.width, screen.height), chromedp.Sleep(30*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, screen.name+".png"), png, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
