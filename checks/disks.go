package checks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"bloomery/internal/run"
)

// DiskRef names one disk to check.
type DiskRef struct {
	Name      string // "nvme0n1"
	Path      string // "/dev/nvme0n1"
	Serial    string
	Transport string // nvme, sata, sas, virtio, usb, …
}

const (
	diskCheck       = "disk-health"
	smartctlTimeout = 30 * time.Second
	parallelDisks   = 8
)

// Disks reads every disk's health by smartctl (smartmontools 7.1 or later for JSON) and judges it by DefaultPolicy. The results are
// in the order of disks, one for each that could be examined; a disk that could not is in the error, by name.
func Disks(ctx context.Context, r run.Runner, disks []DiskRef) ([]Result, error) {
	results := make([]Result, len(disks))
	errs := make([]error, len(disks))
	slots := make(chan struct{}, parallelDisks)
	var wg sync.WaitGroup
	for i, d := range disks {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results[i], errs[i] = checkDisk(ctx, r, d)
		})
	}
	wg.Wait()
	var done []Result
	for i, err := range errs {
		if err == nil {
			done = append(done, results[i])
		}
	}
	return done, errors.Join(errs...)
}

func checkDisk(ctx context.Context, r run.Runner, d DiskRef) (Result, error) {
	if d.Transport == "virtio" {
		return judged(d, nil, []Finding{{DiskNoSMART, Skipped, "a virtio disk has no health data"}}), nil
	}
	ctx, cancel := context.WithTimeout(ctx, smartctlTimeout)
	defer cancel()
	out, err := r.Run(ctx, []string{"smartctl", "--json=c", "-x", d.Path})
	if err != nil {
		return Result{}, fmt.Errorf("check disk %s: %w", d.Name, err)
	}
	report, err := parseSmartctl(out.Stdout)
	if err != nil {
		return Result{}, fmt.Errorf("check disk %s: smartctl's answer (exit code %d): %w", d.Name, out.ExitCode, err)
	}
	if report.SmartSupport != nil && !report.SmartSupport.Available {
		return judged(d, nil, []Finding{{DiskNoSMART, Skipped, "the disk has no health data (SMART is not available)"}}), nil
	}
	// smartctl(8), EXIT STATUS: bit 0 the command line did not parse, bit 1 the device could not be opened. Bit 2 (some
	// command failed) is usual for disks without some log; the others are what judge reads from the data.
	if out.ExitCode&0b11 != 0 {
		return Result{}, fmt.Errorf("check disk %s: smartctl could not read it (exit code %d): %s", d.Name, out.ExitCode, report.words())
	}
	if report.NVMe == nil && report.SmartStatus == nil && report.ATA == nil {
		if d.Transport == "usb" || d.Transport == "" {
			return judged(d, nil, []Finding{{DiskNoSMART, Skipped, "the disk gives no health data"}}), nil
		}
		return Result{}, fmt.Errorf("check disk %s: smartctl read no health data (exit code %d): %s", d.Name, out.ExitCode, report.words())
	}
	result := judge(d, report, DefaultPolicy())
	result.Evidence = append(result.Evidence, exitBits(out.ExitCode)...)
	for _, m := range report.Smartctl.Messages {
		result.Evidence = append(result.Evidence, "smartctl: "+clean(m.String))
	}
	return result, nil
}

// exitBits puts smartctl's exit status in words (smartctl(8), EXIT STATUS).
func exitBits(code int) []string {
	var words []string
	for bit, text := range []string{
		2: "a command to the disk failed or a checksum was wrong",
		3: "the disk's own verdict is FAILING",
		4: "attributes are at or below their threshold",
		5: "attributes were at or below their threshold in the past",
		6: "the error log has entries",
		7: "the self-test log has failed tests",
	} {
		if text != "" && code&(1<<bit) != 0 {
			words = append(words, fmt.Sprintf("smartctl exit bit %d: %s", bit, text))
		}
	}
	return words
}

// smartReport is the part of smartctl's JSON that is judged. Pointers tell "not there" from zero.
type smartReport struct {
	Smartctl struct {
		Messages []struct {
			String string `json:"string"`
		} `json:"messages"`
	} `json:"smartctl"`
	ModelName    string `json:"model_name"`
	Serial       string `json:"serial_number"`
	SmartSupport *struct {
		Available bool `json:"available"`
	} `json:"smart_support"`
	SmartStatus *struct {
		Passed bool `json:"passed"`
	} `json:"smart_status"`
	Temperature *struct {
		Current float64 `json:"current"`
		Trip    float64 `json:"drive_trip"` // SAS
	} `json:"temperature"`
	PowerOnTime *struct {
		Hours float64 `json:"hours"`
	} `json:"power_on_time"`
	NVMe *nvmeHealth `json:"nvme_smart_health_information_log"`
	ATA  *struct {
		Table []ataAttribute `json:"table"`
	} `json:"ata_smart_attributes"`
	ATASelfTest *struct {
		Standard *selfTestTable `json:"standard"`
		Extended *selfTestTable `json:"extended"`
	} `json:"ata_smart_self_test_log"`
	GrownDefects *float64 `json:"scsi_grown_defect_list"`
	Endurance    *float64 `json:"scsi_percentage_used_endurance_indicator"`
	SCSIErrors   map[string]struct {
		Uncorrected float64 `json:"total_uncorrected_errors"`
	} `json:"scsi_error_counter_log"`
}

// nvmeHealth is the SMART / Health Information log page (NVM Express base specification 2.0, section 5.16.1.3).
type nvmeHealth struct {
	CriticalWarning  uint8    `json:"critical_warning"`
	Temperature      *float64 `json:"temperature"` // °C, smartctl converts
	AvailableSpare   *float64 `json:"available_spare"`
	SpareThreshold   *float64 `json:"available_spare_threshold"`
	PercentageUsed   *float64 `json:"percentage_used"`
	MediaErrors      float64  `json:"media_errors"`
	ErrorLogEntries  float64  `json:"num_err_log_entries"`
	PowerOnHours     float64  `json:"power_on_hours"`
	UnsafeShutdowns  float64  `json:"unsafe_shutdowns"`
	CriticalTempTime float64  `json:"critical_comp_time"` // minutes
}

type ataAttribute struct {
	ID         int     `json:"id"`
	Name       string  `json:"name"`
	Value      float64 `json:"value"`
	WhenFailed string  `json:"when_failed"` // "", "now", "past"
	Raw        struct {
		Value float64 `json:"value"`
	} `json:"raw"`
}

type selfTestTable struct {
	Table []struct {
		Type   struct{ String string } `json:"type"`
		Status struct {
			String string `json:"string"`
			Passed *bool  `json:"passed"`
		} `json:"status"`
	} `json:"table"`
}

// maxSmartctl bounds smartctl's answer; -x on a disk with full logs gives about 200 KB.
const maxSmartctl = 4 << 20

func parseSmartctl(data []byte) (smartReport, error) {
	var r smartReport
	if len(data) > maxSmartctl {
		return r, fmt.Errorf("%d bytes are more than %d", len(data), maxSmartctl)
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("is no JSON of the expected shape: %w", err)
	}
	if len(r.Smartctl.Messages) > 16 {
		r.Smartctl.Messages = r.Smartctl.Messages[:16]
	}
	return r, nil
}

func (r smartReport) words() string {
	if len(r.Smartctl.Messages) == 0 {
		return "it said nothing"
	}
	return clean(r.Smartctl.Messages[0].String)
}
