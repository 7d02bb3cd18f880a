// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// beOwner makes the zone in its argument and writes everything that a supervisor and its
// workers do into it, all of it made of one number that counts up, until it is killed.
func beOwner() {
	z, err := Create(os.Args[1], small())
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	s := z.Worker(0)
	first := uint64(1)
	if past := z.History(nil); len(past) > 0 { // of the owner before
		first = uint64(past[len(past)-1].Time) + 1
	}
	fmt.Println("writing")
	for n := first; ; n++ {
		z.Beat(int64(n))
		z.SetGeneration(n)
		if n%64 == 1 {
			z.RouteSlot(ownerRoute(int(n / 64 % 3)))
		}
		s.Request(1, 200, time.Duration(n%1e6)*time.Microsecond, RequestOK)
		s.Request(1, 503, time.Millisecond, RequestOverload)
		z.AppendHistory(ownerPast(n))
		s.Sessions.Note(&Session{Source: n % 8, Low: n % 8 * 3, Who: n % 8 * 5, Port: uint16(n%8*7) + 1, Own: uint16(n%8*11) + 1}, true, 1)
	}
}

// ownerRoute is a name that fills its slot, so that a part of it is no other one.
func ownerRoute(i int) string { return fmt.Sprintf("%063d", i+1)[:62] + "x" }

func ownerPast(n uint64) Past {
	return Past{
		Time: int64(n), Passed: n * 3, Dropped: n * 5, Classes: [5]uint64{n, n + 1, n + 2, n + 3, n + 4}, Handshakes: n * 7, Resumed: n * 11,
		HandshakesFailed: n * 13, Connections: n * 17, UnderWay: n * 19, Median: time.Duration(n * 23), Percentile99: time.Duration(n * 29),
		BytesReceived: n * 31, BytesSent: n * 37,
	}
}

// look reads all that a terminal or a scrape does, and says what no writer has written.
func look(z *Zone, before *uint64) error {
	rows := z.History(nil)
	for i, p := range rows {
		if p != ownerPast(uint64(p.Time)) || i > 0 && p.Time <= rows[i-1].Time {
			return fmt.Errorf("row %d of the history is torn: %+v", i, p)
		}
	}
	for i, name := range z.Routes()[1:] {
		if name != "" && name != overflow && name != ownerRoute(0) && name != ownerRoute(1) && name != ownerRoute(2) {
			return fmt.Errorf("the name of slot %d is torn: %q", i+1, name)
		}
	}
	ended := z.Worker(0).LoadRequest(RequestOK)
	var h Histogram
	z.Worker(0).RouteDuration(1, &h)
	if ended < *before || h.Count < ended {
		return fmt.Errorf("%d exchanges, %d before, %d in the histogram", ended, *before, h.Count)
	}
	*before = ended
	for source := range uint64(8) {
		for _, s := range z.Sessions(nil, source, 1) {
			if source > 0 && (s.Low != source*3 || s.Who != source*5 || s.Port != uint16(source*7)+1 || s.Good > 0xffff) {
				return fmt.Errorf("a session of source %d is torn: %+v", source, s)
			}
		}
	}
	return nil
}

// The process that makes and writes the zone is killed at 200 random points of its work. A
// reader of what it left waits for nobody and sees nothing torn, before and after; that the
// zone is stale shows within a second; and the next gateway takes its place.
func TestOwnerKilled(t *testing.T) {
	rounds := 200
	if testing.Short() {
		rounds = 20
	}
	const side = 2 // one for each core of a small machine
	var mu sync.Mutex
	var looks, written int
	var slowest, stale time.Duration
	var wg sync.WaitGroup
	for lane := range side {
		path := filepath.Join(t.TempDir(), "zone")
		random := rand.New(rand.NewPCG(5, uint64(lane)))
		wg.Go(func() {
			for round := range rounds / side {
				n, wrote, longest, marked, err := killOwner(t, path, random)
				mu.Lock()
				looks, slowest, stale = looks+n, max(slowest, longest), max(stale, marked)
				if wrote {
					written++
				}
				mu.Unlock()
				if err != nil {
					t.Errorf("round %d: %v", round, err)
					return
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d looks, the slowest took %s; stale after %s at most", looks, slowest, stale)
	if written < rounds/2 {
		t.Errorf("in %d of %d rounds only was anything written", written, rounds)
	}
}

// killOwner is one round. It returns how often it looked, whether there was something to see,
// how long the slowest look took, and how long it took from the kill until the zone was stale.
func killOwner(t *testing.T, path string, random *rand.Rand) (looks int, wrote bool, slowest, stale time.Duration, err error) {
	cmd, out := role(t, roleOwner, nil, path)
	if line, err := out.ReadString('\n'); err != nil || line != "writing\n" {
		return 0, false, 0, 0, fmt.Errorf("writer says %q, %w", line, err)
	}
	z, err := Open(path)
	if err != nil {
		return 0, false, 0, 0, err
	}
	defer z.Close()
	if !z.Alive() {
		return 0, false, 0, 0, fmt.Errorf("stale while its owner writes")
	}
	before := uint64(0)
	once := func() error {
		began := time.Now()
		err := look(z, &before)
		looks, slowest = looks+1, max(slowest, time.Since(began))
		return err
	}
	until := time.Now().Add(time.Duration(random.IntN(4000)) * time.Microsecond)
	for ok := true; ok; ok = time.Now().Before(until) {
		if err := once(); err != nil {
			return looks, false, slowest, 0, err
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		return looks, false, slowest, 0, err
	}
	killed := time.Now()
	for z.Alive() { // it is not reaped yet, and need not be
		if err := once(); err != nil {
			return looks, false, slowest, 0, err
		}
		if time.Since(killed) > 5*time.Second {
			return looks, false, slowest, 0, fmt.Errorf("not stale 5 s after its owner was killed")
		}
	}
	stale = time.Since(killed)
	err = once()
	_ = cmd.Wait()
	return looks, before > 0, slowest, stale, err
}
