package coordinator

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// cloudEvent is CloudEvents 1.0 in structured JSON (https://github.com/cloudevents/spec, json-format 3.1).
type cloudEvent struct {
	SpecVersion     string    `json:"specversion"`
	ID              string    `json:"id"`
	Source          string    `json:"source"`
	Type            string    `json:"type"`
	Subject         string    `json:"subject,omitempty"`
	Time            string    `json:"time"`
	DataContentType string    `json:"datacontenttype"`
	DataSchema      string    `json:"dataschema"`
	Data            eventData `json:"data"`
}

// eventData is what docs/events.schema.json describes.
type eventData struct {
	Sequence int64          `json:"sequence"`
	Severity string         `json:"severity"`
	Machine  string         `json:"machine,omitempty"`
	JobID    string         `json:"job_id,omitempty"`
	StepID   string         `json:"step_id,omitempty"`
	Message  string         `json:"message"`
	Actor    string         `json:"actor,omitempty"`
	Source   string         `json:"source,omitempty"`
	Fields   map[string]any `json:"fields,omitempty"`
}

// encodeCloudEvent gives the same bytes each time, so that a repeated delivery is a copy of the first.
func encodeCloudEvent(rack string, e *bloomeryv1.Event) ([]byte, error) {
	c := cloudEvent{
		SpecVersion: "1.0", ID: rack + "/" + strconv.FormatInt(e.GetSequence(), 10), Source: "/bloomery/racks/" + rack,
		Type: eventTypePrefix + e.GetType(), Time: e.GetTime().AsTime().Format(time.RFC3339Nano),
		DataContentType: "application/json", DataSchema: dataSchemaPrefix + e.GetType(),
		Data: eventData{
			Sequence: e.GetSequence(), Severity: severityName(e.GetSeverity()), Machine: e.GetMachine(), JobID: e.GetJobId(), StepID: e.GetStepId(),
			Message: e.GetMessage(), Actor: e.GetActor(), Source: e.GetSource(), Fields: e.GetData().AsMap(),
		},
	}
	if e.GetMachine() != "" {
		c.Subject = "machines/" + e.GetMachine()
	}
	data, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode event %d: %w", e.GetSequence(), err)
	}
	return data, nil
}
