package figures

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAddFaultsKeepsTheRest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "faults.json")
	earlier := `{"rows":[{"area":"disk","fault":"EIO","injected_by":"a fake","expected":"e","found":"old","ok":false},{"area":"rack","fault":"stop"}],"rounds":200,"lost":0}`
	if err := os.WriteFile(path, []byte(earlier), 0o600); err != nil {
		t.Fatal(err)
	}
	again := Fault{Area: "disk", Fault: "EIO", InjectedBy: "a fake", Expected: "e", Found: "new", OK: true}
	if err := AddFaults(path, []Fault{again}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Rows         []Fault
		Rounds, Lost int
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Fault{{Area: "rack", Fault: "stop"}, again}, got.Rows); diff != "" || got.Rounds != 200 {
		t.Errorf("rounds %d; rows (-want +got):\n%s", got.Rounds, diff)
	}

	fresh := filepath.Join(t.TempDir(), "faults.json")
	if err := AddFaults(fresh, []Fault{again}); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(fresh, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := AddFaults(fresh, []Fault{again}); err == nil {
		t.Error("a broken report was replaced")
	}
}
