package coordinator

import (
	"encoding/json"
	"fmt"
	"strings"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// Names by which others tell our CloudEvents.
const (
	eventTypePrefix = "io.bloomery."
	// dataSchemaPrefix and a type make the identifier of its data's schema, as it stands in docs/events.schema.json.
	dataSchemaPrefix = "urn:bloomery:events:v1:"
)

// severityName is a severity as people write it: "warning".
func severityName(s bloomeryv1.Severity) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "SEVERITY_"))
}

// EventTypesTable renders the part of docs/events.md that lists the types.
func EventTypesTable() string {
	var b strings.Builder
	b.WriteString("| type | severity | meaning | fields |\n| --- | --- | --- | --- |\n")
	for _, t := range EventTypes() {
		var fields []string
		for _, f := range t.Fields {
			fields = append(fields, fmt.Sprintf("`%s` (%s): %s", f.Name, f.Kind, f.Description))
		}
		if t.Open {
			fields = append(fields, "any others")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", t.Type, severityName(t.Severity), t.Description, strings.Join(fields, "; "))
	}
	return b.String()
}

// schema is a JSON Schema object; encoding/json sorts its members.
type schema map[string]any

// EventsSchema renders docs/events.schema.json: JSON Schema 2020-12 of the CloudEvents that webhooks receive, with the data of each type.
func EventsSchema() ([]byte, error) {
	text := schema{"type": "string"}
	var types []string
	var choices []schema
	defs := schema{}
	for _, t := range EventTypes() {
		fields := schema{}
		for _, f := range t.Fields {
			kind := map[string]string{kindBool: "boolean", kindList: "array"}[f.Kind]
			if kind == "" {
				kind = f.Kind
			}
			fields[f.Name] = schema{"type": kind, "description": f.Description}
		}
		types = append(types, eventTypePrefix+t.Type)
		defs[t.Type] = schema{
			"$id": dataSchemaPrefix + t.Type, "description": t.Description, "type": "object", "additionalProperties": false,
			"required": []string{"sequence", "severity", "message"},
			"properties": schema{
				"sequence": schema{"type": "integer", "minimum": 1, "description": "rises with each event of a rack"},
				"severity": schema{"enum": []string{"info", "warning", "error", "security"}},
				"machine":  text, "job_id": text, "step_id": text, "message": text,
				"actor":  schema{"type": "string", "description": "who caused it"},
				"source": schema{"type": "string", "description": "address that the call came from"},
				"fields": schema{"type": "object", "properties": fields, "additionalProperties": t.Open},
			},
		}
		choices = append(choices, schema{
			"if":   schema{"properties": schema{"type": schema{"const": eventTypePrefix + t.Type}}},
			"then": schema{"properties": schema{"dataschema": schema{"const": dataSchemaPrefix + t.Type}, "data": schema{"$ref": dataSchemaPrefix + t.Type}}},
		})
	}
	data, err := json.MarshalIndent(schema{
		"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": dataSchemaPrefix + "cloudevent",
		"title":    "CloudEvents that Bloomery's webhooks deliver",
		"type":     "object",
		"required": []string{"specversion", "id", "source", "type", "time", "datacontenttype", "dataschema", "data"},
		"properties": schema{
			"specversion":     schema{"const": "1.0"},
			"id":              schema{"type": "string", "pattern": "^[a-z0-9-]+/[0-9]+$", "description": "RACK/SEQUENCE"},
			"source":          schema{"type": "string", "pattern": "^/bloomery/racks/[a-z0-9-]+$"},
			"type":            schema{"enum": types},
			"subject":         schema{"type": "string", "description": "machines/NAME, when it is about one"},
			"time":            schema{"type": "string", "format": "date-time"},
			"datacontenttype": schema{"const": "application/json"},
			"dataschema":      schema{"type": "string"},
			"data":            schema{"type": "object"},
		},
		"additionalProperties": false, "allOf": choices, "$defs": defs,
	}, "", " ")
	if err != nil {
		return nil, fmt.Errorf("encode the events' schema: %w", err)
	}
	return append(data, '\n'), nil
}
