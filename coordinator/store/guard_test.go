package store

import (
	"strings"
	"testing"
	"time"
)

// TestGuard plays what a leader's updates meet, a quarter of a second each: "d" one is done, "l" one meets a lock, "o" another
// node's is done while one meets a lock, "." none is tried, "f" another node leads.
func TestGuard(t *testing.T) {
	for name, tc := range map[string]struct{ play, want string }{
		"idle":                                {"............", "............"},
		"all is well":                         {"dddddddddddd", "............"},
		"some wait":                           {"dlldlldlldlldlld", "................"},
		"others get through":                  {"lololololololololo", ".................."},
		"stuck":                               {"d" + strings.Repeat("l", 32), ".......h" + strings.Repeat(".", 23) + "e."},
		"stuck, free before the end":          {strings.Repeat("l", 25) + "dlllll", "......h" + strings.Repeat(".", 24)},
		"stuck, then free":                    {"llllllllddddllll", "......h........."},
		"stuck again after a while":           {"llllllldlllllllll", "......h.......h.."},
		"stuck, seldom tried":                 {strings.Repeat("l...", 8), "......h" + strings.Repeat(".", 23) + "e."},
		"another one leads":                   {"ffffffffffff", "............"},
		"one that leads no more has no worry": {"llllffffllll", "............"},
	} {
		t.Run(name, func(t *testing.T) {
			var g guard
			now, got := time.Now(), ""
			done, locked, newest := int64(0), int64(0), int64(0)
			for _, step := range tc.play {
				switch step {
				case 'd':
					done, newest = done+1, newest+1
				case 'l', 'f':
					locked++
				case 'o':
					locked, newest = locked+1, newest+1
				}
				do, err := g.look(now, step != 'f', done, locked, func() (int64, error) { return newest, nil })
				if err != nil {
					t.Fatal(err)
				}
				got += map[remedy]string{remedyNone: ".", remedyHangUp: "h", remedyEnd: "e"}[do]
				now = now.Add(guardEvery)
			}
			if got != tc.want {
				t.Errorf("\nplayed %s\ngot    %s\nwant   %s", tc.play, got, tc.want)
			}
		})
	}
}
