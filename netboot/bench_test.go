//go:build bench

package netboot

import (
	"fmt"
	"os"
	"testing"
	"time"

	"bloomery/internal/figures"
)

// reportVariable names the file that "make bench" wants the figures in.
const reportVariable = "BLOOMERY_NETBOOT_REPORT"

// TestBootStormFigures is the boot servers' part of "make bench". A machine that is lost is an error; nothing fails on a time.
func TestBootStormFigures(t *testing.T) {
	path := os.Getenv(reportVariable)
	if path == "" {
		t.Fatalf("%s names no file for the figures; \"make bench\" gives one", reportVariable)
	}
	const runs = 5
	const wanted = 4 * time.Second
	var took, p99 []time.Duration
	again := 0
	for range runs {
		o := storm(t, stormClients)
		took, p99, again = append(took, o.Took), append(p99, o.P99), again+o.Again
	}
	median := figures.Median(took)
	row := figures.Row{
		Name: "boot storm of 200 machines", Unit: "s", Ours: median.Seconds(), Peer: wanted.Seconds(), PeerCommand: "what is wanted: 4 s, when firmware asks again (RFC 2131, section 4.1)",
		Ratio: float64(wanted) / float64(median), Goal: 1, Runs: runs,
		Note: fmt.Sprintf("DHCP from three coordinators and the file by HTTP, none lost, %d asked again, p99 of one boot %.2f s. The wire is in memory, the store's times are a replicated one's.", again, figures.Median(p99).Seconds()),
	}
	if err := figures.Add(path, []figures.Row{row}); err != nil {
		t.Fatal(err)
	}
}
