package figures

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
)

// Fault is a row of out/faults.json: what was broken, and what came of it.
type Fault struct {
	Area       string `json:"area"`
	Fault      string `json:"fault"`
	InjectedBy string `json:"injected_by"`
	Expected   string `json:"expected"`
	Found      string `json:"found"`
	OK         bool   `json:"ok"`
}

// AddFaults puts rows into the report of faults, in place of those of the same area and fault, and leaves what else is in it as it is. A report
// that is not there is begun.
func AddFaults(path string, rows []Fault) error {
	report := map[string]json.RawMessage{}
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &report)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	var there []Fault
	if err == nil && report["rows"] != nil {
		err = json.Unmarshal(report["rows"], &there)
	}
	if err != nil {
		return fmt.Errorf("read the report of faults %s: %w", path, err)
	}
	there = slices.DeleteFunc(there, func(old Fault) bool {
		return slices.ContainsFunc(rows, func(row Fault) bool { return row.Area == old.Area && row.Fault == old.Fault })
	})
	if report["rows"], err = json.Marshal(append(there, rows...)); err != nil {
		return err
	}
	if data, err = json.MarshalIndent(report, "", "  "); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
