package checks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bloomery/internal/run"
)

func readFixture(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// answer runs Disks on one disk whose smartctl says this.
func answer(t *testing.T, d DiskRef, stdout []byte, code int) ([]Result, error) {
	t.Helper()
	fake := &run.Fake{Answer: func(c run.Call) (run.Result, error) {
		if c.String() != "smartctl --json=c -x "+d.Path {
			t.Errorf("ran %s", c)
		}
		return run.Result{Stdout: stdout, ExitCode: code}, nil
	}}
	return Disks(context.Background(), fake, []DiskRef{d})
}

func TestDisks(t *testing.T) {
	nvme := DiskRef{Name: "nvme0n1", Path: "/dev/nvme0n1", Serial: "S4", Transport: "nvme"}
	for _, tt := range []struct {
		fixture string
		change  string // old|new
		code    int
		verdict Verdict
		codes   string
	}{
		{fixture: "nvme-qemu.json", code: 4, verdict: Pass},
		{fixture: "nvme-qemu.json", change: `"critical_warning":0|"critical_warning":8`, code: 4, verdict: Fail, codes: "DISK_READ_ONLY"},
		{fixture: "nvme-qemu.json", change: `"critical_warning":0|"critical_warning":2`, verdict: Warn, codes: "DISK_HOT"},
		{fixture: "nvme-qemu.json", change: `"media_errors":0|"media_errors":1`, verdict: Fail, codes: "DISK_MEDIA_ERRORS"},
		{fixture: "nvme-qemu.json", change: `"percentage_used":0|"percentage_used":81`, verdict: Warn, codes: "DISK_WORN"},
		{fixture: "nvme-worn.json", code: 8, verdict: Fail,
			codes: "DISK_SMART_FAILING DISK_SPARE_LOW DISK_CRITICAL_WARNING DISK_WORN DISK_MEDIA_ERRORS DISK_HOT"},
		{fixture: "ata-failing.json", code: 216, verdict: Fail, codes: "DISK_PENDING_SECTORS DISK_SELF_TEST_FAILED DISK_REALLOCATED DISK_SMART_FAILING"},
		{fixture: "sas-sound.json", verdict: Pass},
		{fixture: "sas-sound.json", change: `"scsi_grown_defect_list":0|"scsi_grown_defect_list":51`, verdict: Fail, codes: "DISK_GROWN_DEFECTS"},
		{fixture: "sas-sound.json", change: `"available":true|"available":false`, code: 4, verdict: Skipped},
	} {
		t.Run(tt.fixture+" "+tt.change, func(t *testing.T) {
			data := string(readFixture(t, tt.fixture))
			if old, changed, ok := strings.Cut(tt.change, "|"); ok {
				if !strings.Contains(data, old) {
					t.Fatalf("the fixture has no %s", old)
				}
				data = strings.Replace(data, old, changed, 1)
			}
			results, err := answer(t, nvme, []byte(data), tt.code)
			if err != nil {
				t.Fatal(err)
			}
			r := results[0]
			var codes []string
			for _, f := range r.Findings {
				codes = append(codes, string(f.Code))
			}
			if r.Verdict != tt.verdict || strings.Join(codes, " ") != tt.codes || r.Component != "S4" || r.Message == "" {
				t.Errorf("got %s [%s], want %s [%s]: %+v", r.Verdict, strings.Join(codes, " "), tt.verdict, tt.codes, r)
			}
			if len(r.Findings) > 0 && (r.Code != r.Findings[0].Code || r.Message != r.Findings[0].Message) {
				t.Errorf("the sum %s %q is not the worst finding", r.Code, r.Message)
			}
		})
	}
}

func TestDisksThatCannotBeChecked(t *testing.T) {
	sda := DiskRef{Name: "sda", Path: "/dev/sda", Transport: "sata"}
	for _, tt := range []struct{ name, out, errHas string }{
		{"no JSON", "smartctl: not found", "is no JSON"},
		{"open failed", `{"smartctl":{"messages":[{"string":"Smartctl open device: /dev/sda failed: No such device"}]}}`, "No such device"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			results, err := answer(t, sda, []byte(tt.out), 2)
			if err == nil || !strings.Contains(err.Error(), tt.errHas) || !strings.Contains(err.Error(), "check disk sda") || len(results) != 0 {
				t.Errorf("got %v, %v", results, err)
			}
		})
	}
	t.Run("no health data", func(t *testing.T) {
		if _, err := answer(t, sda, []byte(`{}`), 4); err == nil {
			t.Error("a SATA disk without data passed")
		}
	})
	t.Run("one of two", func(t *testing.T) {
		fake := &run.Fake{Answer: func(run.Call) (run.Result, error) { return run.Result{ExitCode: -1}, errors.New("timeout") }}
		results, err := Disks(context.Background(), fake, []DiskRef{sda, {Name: "vda", Transport: "virtio"}})
		if err == nil || len(results) != 1 || results[0].Verdict != Skipped || results[0].Code != DiskNoSMART || results[0].Component != "vda" {
			t.Errorf("got %+v, %v", results, err)
		}
	})
}

var update = flag.Bool("update", false, "write the golden files")

func TestWriteOCP(t *testing.T) {
	var results []Result
	for _, f := range []string{"sas-sound.json", "ata-failing.json"} {
		report, err := parseSmartctl(readFixture(t, f))
		if err != nil {
			t.Fatal(err)
		}
		results = append(results, judge(DiskRef{Name: "sda", Serial: report.Serial}, report, DefaultPolicy()))
	}
	results = append(results, judged(DiskRef{Name: "vda"}, nil, []Finding{{DiskNoSMART, Skipped, "a virtio disk has no health data"}}))
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var out bytes.Buffer
	dut := DUT{ID: "m1", Name: "rack1-m1", Hardware: []DUTHardware{{ID: "Z1", Name: "EXAMPLE HDD", Serial: "Z1"}}}
	if err := WriteOCP(&out, results, dut, Run{Name: "bloomery disk-health", Version: "1", CommandLine: "bloomery-agent", Started: start, Ended: start.Add(time.Second)}); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/ocp.golden.jsonl"
	if *update {
		if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(string(readFixture(t, "ocp.golden.jsonl")), out.String()); diff != "" {
		t.Error(diff)
	}
	for i, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		var v struct{ SequenceNumber int }
		if err := json.Unmarshal([]byte(line), &v); err != nil || v.SequenceNumber != i {
			t.Errorf("line %d: %v: %s", i, err, line)
		}
	}
}

func FuzzJudge(f *testing.F) {
	for _, name := range []string{"nvme-qemu.json", "nvme-worn.json", "ata-failing.json", "sas-sound.json"} {
		f.Add(readFixture(f, name))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		report, err := parseSmartctl(data)
		if err != nil {
			return
		}
		r := judge(DiskRef{Name: "sda"}, report, DefaultPolicy())
		if (r.Verdict == Pass) != (len(r.Findings) == 0) || r.Message == "" {
			t.Errorf("got %+v", r)
		}
		if _, err := json.Marshal(r); err != nil {
			t.Error(err)
		}
	})
}
