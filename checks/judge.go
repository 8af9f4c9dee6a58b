package checks

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Policy is where the line is drawn between sound, suspicious and broken disks.
type Policy struct {
	WornWarn, WornFail       float64 // percent of the rated endurance used
	ReallocatedWarn          float64 // sectors; more is a warning
	ReallocatedFail          float64
	TempWarn, TempFail       float64 // °C, for disks that tell no limit of their own
	SpareMargin              float64 // percent above the disk's own threshold that is a warning
	CRCWarn                  float64 // interface CRC errors over the disk's life
	NVMeErrorLogWarn         float64 // entries; drives log harmless refused commands too
	FailOnAnyUncorrectedRead bool
}

// DefaultPolicy takes the lines that operators of large fleets use: wear above 80 % is a warning, above 100 % a fault; any
// media error, pending sector or failing self-assessment is a fault.
func DefaultPolicy() Policy {
	return Policy{
		WornWarn: 80, WornFail: 100, ReallocatedWarn: 0, ReallocatedFail: 50, TempWarn: 60, TempFail: 75, SpareMargin: 10, CRCWarn: 100,
		NVMeErrorLogWarn: 10000, FailOnAnyUncorrectedRead: true,
	}
}

// judge is pure: what a disk says about itself, held against the policy.
func judge(d DiskRef, r smartReport, p Policy) Result {
	var j judgement
	if r.SmartStatus != nil && !r.SmartStatus.Passed {
		j.find(DiskSMARTFailing, Fail, "the disk says that it is failing")
	}
	if r.PowerOnTime != nil {
		j.measure(Measurement{Name: "power_on_time", Value: r.PowerOnTime.Hours, Unit: "h"})
	}
	if r.NVMe != nil {
		j.nvme(*r.NVMe, p)
	} else if r.Temperature != nil {
		limit := p.TempFail
		if r.Temperature.Trip > 0 {
			limit = r.Temperature.Trip
		}
		j.upTo("temperature", "°C", r.Temperature.Current, min(p.TempWarn, limit), limit, DiskHot, "the disk has %g °C")
	}
	if r.ATA != nil {
		j.ata(r.ATA.Table, p)
	}
	j.selfTests(r)
	j.scsi(r, p)
	return judged(d, j.measurements, j.findings)
}

type judgement struct {
	measurements []Measurement
	findings     []Finding
}

func (j *judgement) measure(m Measurement) { j.measurements = append(j.measurements, m) }

func (j *judgement) find(code Code, v Verdict, message string) {
	j.findings = append(j.findings, Finding{Code: code, Verdict: v, Message: message})
}

// upTo measures a value that is suspicious above warn and broken above fail.
func (j *judgement) upTo(name, unit string, value, warn, fail float64, code Code, format string) {
	j.measure(Measurement{Name: name, Value: value, Unit: unit, Max: &warn})
	switch {
	case value > fail:
		j.find(code, Fail, fmt.Sprintf(format+", above the limit of %g", value, fail))
	case value > warn:
		j.find(code, Warn, fmt.Sprintf(format+", above the warning level of %g", value, warn))
	}
}

func (j *judgement) nvme(h nvmeHealth, p Policy) {
	for _, bit := range []struct {
		mask    uint8
		code    Code
		verdict Verdict
		text    string
	}{
		{1 << 0, DiskSpareLow, Fail, "NVMe critical warning: the spare capacity is below the disk's threshold"},
		{1 << 1, DiskHot, Warn, "NVMe critical warning: a temperature is outside the disk's limits"},
		{1 << 2, DiskCriticalWarning, Fail, "NVMe critical warning: the disk's reliability is degraded"},
		{1 << 3, DiskReadOnly, Fail, "NVMe critical warning: the disk has become read-only"},
		{1 << 4, DiskCriticalWarning, Fail, "NVMe critical warning: the volatile memory backup has failed"},
		{1 << 5, DiskCriticalWarning, Fail, "NVMe critical warning: the persistent memory region is unreliable"},
		{0b11000000, DiskCriticalWarning, Warn, "NVMe critical warning: a reserved bit is set"},
	} {
		if h.CriticalWarning&bit.mask != 0 {
			j.find(bit.code, bit.verdict, bit.text)
		}
	}
	zero := 0.0
	j.measure(Measurement{Name: "critical_warning", Value: float64(h.CriticalWarning), Max: &zero})
	// A threshold of 0 is a disk that does not count its spare capacity, as QEMU's; it shows 0 for both.
	if h.AvailableSpare != nil && h.SpareThreshold != nil && *h.SpareThreshold > 0 {
		least := *h.SpareThreshold
		j.measure(Measurement{Name: "available_spare", Value: *h.AvailableSpare, Unit: "%", Min: &least})
		switch {
		case *h.AvailableSpare < least && h.CriticalWarning&1 == 0:
			j.find(DiskSpareLow, Fail, fmt.Sprintf("%g %% spare capacity left, below the disk's threshold of %g %%", *h.AvailableSpare, least))
		case *h.AvailableSpare >= least && *h.AvailableSpare < min(least+p.SpareMargin, 100):
			j.find(DiskSpareLow, Warn, fmt.Sprintf("%g %% spare capacity left, the disk's threshold is %g %%", *h.AvailableSpare, least))
		}
	}
	if h.PercentageUsed != nil {
		j.upTo("percentage_used", "%", *h.PercentageUsed, p.WornWarn, p.WornFail, DiskWorn, "%g %% of the rated endurance is used")
	}
	if h.Temperature != nil {
		j.upTo("temperature", "°C", *h.Temperature, p.TempWarn, p.TempFail, DiskHot, "the disk has %g °C")
	}
	j.upTo("media_errors", "", h.MediaErrors, 0, 0, DiskMediaErrors, "%g media errors")
	j.upTo("error_log_entries", "", h.ErrorLogEntries, p.NVMeErrorLogWarn, maxCount, DiskErrorLog, "%g entries in the error log")
	j.measure(Measurement{Name: "unsafe_shutdowns", Value: h.UnsafeShutdowns})
}

// maxCount stands for "however many, that alone is no fault".
const maxCount = 1e300

// ata judges vendor attributes whose meaning all makers share (ATA command set names none; smartmontools' drivedb does).
func (j *judgement) ata(table []ataAttribute, p Policy) {
	for _, a := range table {
		switch a.WhenFailed {
		case "now":
			j.find(DiskSMARTFailing, Fail, fmt.Sprintf("attribute %d %s is below its threshold", a.ID, clean(a.Name)))
		case "past":
			j.find(DiskSMARTFailing, Warn, fmt.Sprintf("attribute %d %s was below its threshold once", a.ID, clean(a.Name)))
		}
		switch a.ID {
		case 5:
			j.upTo("reallocated_sectors", "", a.Raw.Value, p.ReallocatedWarn, p.ReallocatedFail, DiskReallocated, "%g sectors were reallocated")
		case 187:
			j.upTo("reported_uncorrectable", "", a.Raw.Value, 0, 0, DiskMediaErrors, "%g uncorrectable errors were reported")
		case 197:
			j.upTo("pending_sectors", "", a.Raw.Value, 0, 0, DiskPending, "%g sectors cannot be read")
		case 198:
			j.upTo("offline_uncorrectable", "", a.Raw.Value, 0, 0, DiskMediaErrors, "%g sectors are uncorrectable")
		case 199:
			j.upTo("interface_crc_errors", "", a.Raw.Value, p.CRCWarn, maxCount, DiskLinkErrors, "%g transfer errors between disk and controller")
		}
	}
}

func (j *judgement) selfTests(r smartReport) {
	if r.ATASelfTest == nil {
		return
	}
	for _, log := range []*selfTestTable{r.ATASelfTest.Standard, r.ATASelfTest.Extended} {
		// Entries are newest first; a passed test after a failed one means that the sector was rewritten since.
		if log == nil || len(log.Table) == 0 {
			continue
		}
		if last := log.Table[0].Status; last.Passed != nil && !*last.Passed {
			j.find(DiskSelfTestFailed, Fail, "the disk's last self-test failed: "+clean(last.String))
		}
	}
}

func (j *judgement) scsi(r smartReport, p Policy) {
	if r.GrownDefects != nil {
		j.upTo("grown_defects", "", *r.GrownDefects, p.ReallocatedWarn, p.ReallocatedFail, DiskGrownDefects, "%g grown defects")
	}
	if r.Endurance != nil {
		j.upTo("percentage_used", "%", *r.Endurance, p.WornWarn, p.WornFail, DiskWorn, "%g %% of the rated endurance is used")
	}
	for _, kind := range []string{"read", "write", "verify"} {
		counter, ok := r.SCSIErrors[kind]
		if !ok {
			continue
		}
		fail := maxCount
		if p.FailOnAnyUncorrectedRead {
			fail = 0
		}
		j.upTo("uncorrected_"+kind+"_errors", "", counter.Uncorrected, 0, fail, DiskMediaErrors, "%g uncorrected "+kind+" errors")
	}
}

// judged sums up: the worst finding is the verdict.
func judged(d DiskRef, measurements []Measurement, findings []Finding) Result {
	r := Result{Check: diskCheck, Component: d.Serial, Name: d.Name, Verdict: Pass, Message: "the disk is healthy", Measurements: measurements}
	if r.Component == "" {
		r.Component = d.Name
	}
	slices.SortStableFunc(findings, func(a, b Finding) int { return cmp.Compare(rank(b.Verdict), rank(a.Verdict)) })
	if len(findings) > 0 {
		r.Verdict, r.Code, r.Message = findings[0].Verdict, findings[0].Code, findings[0].Message
		if r.Verdict != Skipped {
			r.Findings = findings
		}
	}
	return r
}

// clean makes text of a disk or tool fit for one line: printable, at most 200 bytes.
func clean(s string) string {
	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?")))
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "")
	}
	return s
}
