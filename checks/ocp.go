package checks

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// DUT is the machine that was tested ("device under test" in OCP's words).
type DUT struct {
	ID       string // stable: the machine's id or SMBIOS UUID
	Name     string
	Hardware []DUTHardware
}

// DUTHardware is one component; results refer to it by their Component.
type DUTHardware struct {
	ID, Name, Manufacturer, Serial, Version, Location string
}

// Run is what the report says about the tool and its times.
type Run struct {
	Name, Version, CommandLine string
	Started, Ended             time.Time
}

// WriteOCP writes the results as OCP diagnostics output 2.0: JSON lines, one artifact each (opencomputeproject/
// ocp-diag-core, json_spec). Every result is a test step; a finding is a diagnosis; a skipped result ends its step as SKIP.
func WriteOCP(w io.Writer, results []Result, dut DUT, about Run) error {
	o := ocpWriter{enc: json.NewEncoder(w), at: about.Ended}
	o.enc.SetEscapeHTML(false)
	o.stamped(about.Started, "schemaVersion", object{"major": 2, "minor": 0})
	o.run(about.Started, "testRunStart", object{
		"name": about.Name, "version": about.Version, "commandLine": about.CommandLine, "parameters": object{}, "dutInfo": dutInfo(dut),
	})
	known := map[string]bool{}
	for _, h := range dut.Hardware {
		known[h.ID] = true
	}
	for i, r := range results {
		o.step(fmt.Sprint(i), r, known[r.Component])
	}
	end := object{"status": "COMPLETE", "result": "PASS"}
	switch Worst(results) {
	case Fail:
		end["result"] = "FAIL"
	case Skipped:
		end = object{"status": "SKIP", "result": "NOT_APPLICABLE"}
	}
	o.run(about.Ended, "testRunEnd", end)
	if o.err != nil {
		return fmt.Errorf("write the OCP report: %w", o.err)
	}
	return nil
}

type object map[string]any

// ocpWriter numbers the lines and keeps the first error.
type ocpWriter struct {
	enc *json.Encoder
	at  time.Time
	seq int
	err error
}

func (o *ocpWriter) line(kind string, content object) { o.stamped(o.at, kind, content) }

func (o *ocpWriter) stamped(at time.Time, kind string, content object) {
	if o.err != nil {
		return
	}
	o.err = o.enc.Encode(object{"sequenceNumber": o.seq, "timestamp": at.UTC().Format(time.RFC3339Nano), kind: content})
	o.seq++
}

func (o *ocpWriter) run(at time.Time, kind string, content object) {
	o.stamped(at, "testRunArtifact", object{kind: content})
}

func (o *ocpWriter) step(id string, r Result, known bool) {
	artifact := func(kind string, content object) {
		if known && (kind == "measurement" || kind == "diagnosis") {
			content["hardwareInfoId"] = r.Component
		}
		o.line("testStepArtifact", object{"testStepId": id, kind: content})
	}
	artifact("testStepStart", object{"name": r.Check + " " + r.Name})
	for _, m := range r.Measurements {
		content := object{"name": m.Name, "value": m.Value}
		if m.Unit != "" {
			content["unit"] = m.Unit
		}
		var validators []object
		if m.Min != nil {
			validators = append(validators, object{"name": "min", "type": "GREATER_THAN_OR_EQUAL", "value": *m.Min})
		}
		if m.Max != nil {
			validators = append(validators, object{"name": "max", "type": "LESS_THAN_OR_EQUAL", "value": *m.Max})
		}
		if validators != nil {
			content["validators"] = validators
		}
		artifact("measurement", content)
	}
	for _, e := range r.Evidence {
		artifact("log", object{"severity": "INFO", "message": e})
	}
	status := "COMPLETE"
	switch {
	case r.Verdict == Skipped:
		artifact("log", object{"severity": "INFO", "message": "skipped: " + r.Message})
		status = "SKIP"
	case r.Verdict == Pass:
		artifact("diagnosis", object{"verdict": r.Check + "-good", "type": "PASS", "message": r.Message})
	default:
		for _, f := range r.Findings {
			kind := "FAIL"
			if f.Verdict == Warn {
				kind = "UNKNOWN" // OCP knows no warning
			}
			artifact("diagnosis", object{"verdict": strings.ReplaceAll(strings.ToLower(string(f.Code)), "_", "-"), "type": kind, "message": f.Message})
		}
	}
	artifact("testStepEnd", object{"status": status})
}

func dutInfo(d DUT) object {
	var hardware []object
	for _, h := range d.Hardware {
		item := object{"hardwareInfoId": h.ID, "name": h.Name}
		for key, value := range map[string]string{"manufacturer": h.Manufacturer, "serialNumber": h.Serial, "version": h.Version, "location": h.Location} {
			if value != "" {
				item[key] = value
			}
		}
		hardware = append(hardware, item)
	}
	info := object{"dutInfoId": d.ID, "name": d.Name}
	if hardware != nil {
		info["hardwareInfos"] = hardware
	}
	return info
}
