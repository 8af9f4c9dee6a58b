// Package checks examines a machine's hardware and gives typed verdicts. A broken disk is a result; an error means that
// the check could not be run.
package checks

// Verdict is a check's answer about one component.
type Verdict string

// The verdicts, from good to bad; Skipped says nothing about the component, and its message says why.
const (
	Pass    Verdict = "pass"
	Warn    Verdict = "warn"
	Fail    Verdict = "fail"
	Skipped Verdict = "skipped"
)

// Code is a stable name of a fault, for programs to decide on; it never changes its meaning.
type Code string

// The codes of disk checks. Empty means that nothing is wrong.
const (
	DiskSMARTFailing    Code = "DISK_SMART_FAILING"    // the disk itself says that it is failing
	DiskCriticalWarning Code = "DISK_CRITICAL_WARNING" // NVMe critical warning bits other than those with a code of their own
	DiskReadOnly        Code = "DISK_READ_ONLY"        // NVMe critical warning: media is read-only
	DiskSpareLow        Code = "DISK_SPARE_LOW"
	DiskWorn            Code = "DISK_WORN"
	DiskMediaErrors     Code = "DISK_MEDIA_ERRORS"
	DiskReallocated     Code = "DISK_REALLOCATED"
	DiskPending         Code = "DISK_PENDING_SECTORS"
	DiskGrownDefects    Code = "DISK_GROWN_DEFECTS"
	DiskHot             Code = "DISK_HOT"
	DiskSelfTestFailed  Code = "DISK_SELF_TEST_FAILED"
	DiskLinkErrors      Code = "DISK_LINK_ERRORS" // interface CRC errors: cable or backplane rather than disk
	DiskErrorLog        Code = "DISK_ERROR_LOG"
	DiskNoSMART         Code = "DISK_NO_SMART" // skipped: there is no health data to read
)

// Measurement is one number that a verdict rests on. Min and Max are the limits that it was held against, both inclusive;
// nil means none.
type Measurement struct {
	Name  string   `json:"name"`
	Value float64  `json:"value"`
	Unit  string   `json:"unit,omitempty"`
	Min   *float64 `json:"min,omitempty"`
	Max   *float64 `json:"max,omitempty"`
}

// Finding is one thing that is wrong.
type Finding struct {
	Code    Code    `json:"code"`
	Verdict Verdict `json:"verdict"` // Warn or Fail
	Message string  `json:"message"`
}

// Result is what one check found out about one component. Verdict, Code and Message are those of the worst finding.
type Result struct {
	Check        string        `json:"check"`     // "disk-health"
	Component    string        `json:"component"` // a disk's serial, its name if it has none
	Name         string        `json:"name"`      // what the kernel calls it: "nvme0n1"
	Verdict      Verdict       `json:"verdict"`
	Code         Code          `json:"code,omitempty"`
	Message      string        `json:"message"`
	Findings     []Finding     `json:"findings,omitempty"` // worst first
	Measurements []Measurement `json:"measurements,omitempty"`
	Evidence     []string      `json:"evidence,omitempty"` // lines of what a tool said
}

// Worst is the verdict on a whole: Fail before Warn before Pass. Nothing but skipped results is Skipped.
func Worst(results []Result) Verdict {
	worst := Skipped
	for _, r := range results {
		if rank(r.Verdict) > rank(worst) {
			worst = r.Verdict
		}
	}
	return worst
}

func rank(v Verdict) int {
	switch v {
	case Fail:
		return 3
	case Warn:
		return 2
	case Pass:
		return 1
	default:
		return 0
	}
}
