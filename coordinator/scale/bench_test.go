//go:build bench

package scale

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"bloomery/internal/figures"
)

// reportVariable names the file that "make bench" wants the figures in.
const reportVariable = "BLOOMERY_SCALE_REPORT"

// TestScale is the coordinator's part of "make bench". Nothing fails on a time.
func TestScale(t *testing.T) {
	path := os.Getenv(reportVariable)
	if path == "" {
		t.Fatalf("%s names no file for the figures; \"make bench\" gives one", reportVariable)
	}
	var rows []figures.Row
	for _, nodes := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d nodes", nodes), func(t *testing.T) {
			f := measure(t, run{machines: 1000, nodes: nodes, every: time.Second, reportFor: 20 * time.Second, ramp: 6 * time.Second, idle: 8 * time.Second, lists: 21})
			peer, command, err := sqlitePeer(t.Context(), t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			rows = append(rows, f.rows(nodes, peer, command)...)
		})
	}
	if err := errors.Join(figures.Add(path, rows), figures.Table(os.Stdout, rows)); err != nil {
		t.Fatal(err)
	}
}
