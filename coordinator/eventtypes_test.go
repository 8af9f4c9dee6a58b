package coordinator

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/webhook"
	"bloomery/coordinator/store"
)

func TestEventTypesTable(t *testing.T) {
	if !slices.IsSortedFunc(EventTypes(), func(a, b EventType) int { return strings.Compare(a.Type, b.Type) }) {
		t.Error("the table is not sorted by type")
	}
	seen := map[string]bool{}
	for _, e := range EventTypes() {
		if seen[e.Type] || e.Description == "" || e.Severity == 0 {
			t.Errorf("%s: want one row of each type, with a description and a severity", e.Type)
		}
		seen[e.Type] = true
		for _, f := range e.Fields {
			if !slices.Contains([]string{kindString, kindNumber, kindBool, kindObject, kindList}, f.Kind) || f.Name == "" || f.Description == "" {
				t.Errorf("%s: field %+v is not complete", e.Type, f)
			}
		}
	}
}

// TestEventTypesAreUsed reads the source: a type that is written there has a row, and a row has a type that is written there.
func TestEventTypesAreUsed(t *testing.T) {
	files, err := filepath.Glob("*.go")
	must(t, err)
	declared, written, prefixes := newEventTypes(), map[string]bool{}, []string{}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") || name == "eventtypes.go" {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		must(t, err)
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BasicLit:
				if n.Kind == token.STRING {
					text, err := strconv.Unquote(n.Value)
					must(t, err)
					written[text] = true
					if strings.HasSuffix(text, ".") && strings.Count(text, ".") == 1 {
						prefixes = append(prefixes, text)
					}
				}
			case *ast.KeyValueExpr:
				if key, ok := n.Key.(*ast.Ident); ok && key.Name == "Type" {
					if lit, ok := n.Value.(*ast.BasicLit); ok && lit.Kind == token.STRING {
						if kind, _ := strconv.Unquote(lit.Value); declared[kind].Type == "" {
							t.Errorf("%s: event type %q has no row in EventTypes", name, kind)
						}
					}
				}
			}
			return true
		})
	}
	for kind := range declared {
		if !written[kind] && !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(kind, p) }) {
			t.Errorf("no source writes an event of type %s", kind)
		}
	}
}

func TestUndeclaredEvents(t *testing.T) {
	data := func(m map[string]any) *structpb.Struct {
		s, err := structpb.NewStruct(m)
		must(t, err)
		return s
	}
	for _, c := range []struct {
		name string
		e    *bloomeryv1.Event
		want string
	}{
		{"sound", &bloomeryv1.Event{Type: "step.done", Data: data(map[string]any{"step": "wipe", "seconds": 2})}, ""},
		{"without a field", &bloomeryv1.Event{Type: "step.done"}, ""},
		{"open", &bloomeryv1.Event{Type: "agent.log", Data: data(map[string]any{"anything": "goes"})}, ""},
		{"unknown type", &bloomeryv1.Event{Type: "step.dreamt"}, `"step.dreamt" is not in EventTypes`},
		{"unknown field", &bloomeryv1.Event{Type: "step.done", Data: data(map[string]any{"speed": 1})}, `no field "speed"`},
		{"wrong kind", &bloomeryv1.Event{Type: "step.done", Data: data(map[string]any{"seconds": "2"})}, `"seconds" is a string`},
		{"wrong kind of an open type", &bloomeryv1.Event{Type: "agent.log", Data: data(map[string]any{"dropped_bytes": nil})}, `"dropped_bytes" is a null`},
	} {
		err := newEventTypes().undeclared(c.e)
		if (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

const eventsPage = "../docs/events.md"

// TestEventsPage keeps the table in docs/events.md and the published schema as the code says.
func TestEventsPage(t *testing.T) {
	page, err := os.ReadFile(eventsPage)
	must(t, err)
	const begin, end = "<!-- types: begin -->\n", "<!-- types: end -->"
	head, rest, ok := strings.Cut(string(page), begin)
	_, tail, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s has no place for the types", eventsPage)
	}
	golden(t, eventsPage, head+begin+EventTypesTable()+end+tail)
	published, err := EventsSchema()
	must(t, err)
	golden(t, "../docs/events.schema.json", string(published))
}

func eventSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	published, err := os.ReadFile("../docs/events.schema.json")
	must(t, err)
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(published))
	must(t, err)
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	must(t, compiler.AddResource("events.schema.json", document))
	compiled, err := compiler.Compile("events.schema.json")
	must(t, err)
	return compiled
}

// TestCloudEventsFollowTheSchema makes an event of each type with all its fields, and breaks each in ways that the schema must find.
func TestCloudEventsFollowTheSchema(t *testing.T) {
	compiled := eventSchema(t)
	examples := map[string]any{kindString: "x", kindNumber: 1.5, kindBool: true, kindObject: map[string]any{"a": "b"}, kindList: []any{"a"}}
	for i, row := range EventTypes() {
		fields := map[string]any{}
		for _, f := range row.Fields {
			fields[f.Name] = examples[f.Kind]
		}
		data, err := structpb.NewStruct(fields)
		must(t, err)
		e := &bloomeryv1.Event{Sequence: int64(i) + 1, Time: timestamppb.Now(), Type: row.Type, Severity: row.Severity, Machine: "m1", JobId: "j", Message: "said", Actor: "operator anna", Source: "127.0.0.1", Data: data}
		encoded, err := encodeCloudEvent("rack1", e)
		must(t, err)
		decode := func() map[string]any {
			v, err := jsonschema.UnmarshalJSON(bytes.NewReader(encoded))
			must(t, err)
			return v.(map[string]any)
		}
		if err := compiled.Validate(decode()); err != nil {
			t.Errorf("%s: %v", row.Type, err)
		}
		for name, spoil := range map[string]func(map[string]any){
			"an undeclared field": func(m map[string]any) {
				if !row.Open {
					m["data"].(map[string]any)["fields"] = map[string]any{"dreamt": "x"}
					return
				}
				m["dreamt"] = "x"
			},
			"another type":   func(m map[string]any) { m["type"] = "io.bloomery.dreamt" },
			"another schema": func(m map[string]any) { m["dataschema"] = "urn:bloomery:events:v1:dreamt" },
			"no sequence":    func(m map[string]any) { delete(m["data"].(map[string]any), "sequence") },
			"a broken time":  func(m map[string]any) { m["time"] = "yesterday" },
		} {
			broken := decode()
			spoil(broken)
			if compiled.Validate(broken) == nil {
				t.Errorf("%s with %s was accepted", row.Type, name)
			}
		}
	}
}

// validateStored checks every event that a rack has stored against the published schema.
func validateStored(t *testing.T, r *rack) {
	t.Helper()
	compiled := eventSchema(t)
	events, err := r.c.events(r.life, store.EventFilter{Limit: 10000})
	must(t, err)
	for _, e := range events {
		encoded, err := encodeCloudEvent("test", e)
		must(t, err)
		var v any
		must(t, json.Unmarshal(encoded, &v))
		if err := compiled.Validate(v); err != nil {
			t.Errorf("event %d of type %s: %v", e.GetSequence(), e.GetType(), err)
		}
	}
}

// TestVerifyInPython runs the example of the page against our own signature.
func TestVerifyInPython(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3 on this machine")
	}
	page, err := os.ReadFile(eventsPage)
	must(t, err)
	_, rest, _ := strings.Cut(string(page), "```python\n")
	example, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("the page has no example")
	}
	secret, body := []byte("0123456789abcdef"), `{"id":"rack1/1"}`
	sound := webhook.Sign(secret, []byte(body), time.Now())
	for _, c := range []struct {
		header, body string
		want         string
	}{{sound, body, "True"}, {sound, body + " ", "False"}, {sound[:len(sound)-1], body, "False"}, {"", body, "False"}, {webhook.Sign(secret, []byte(body), time.Now().Add(-time.Hour)), body, "False"}, {"t=x,v1=é", body, "False"}} {
		script := example + "\nimport sys\nprint(verify(sys.argv[1], sys.argv[2], sys.argv[3].encode()))\n"
		out, err := exec.CommandContext(t.Context(), python, "-c", script, base64.StdEncoding.EncodeToString(secret), c.header, c.body).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != c.want {
			t.Errorf("verify(%q, %q): %s %v, want %s", c.header, c.body, out, err, c.want)
		}
	}
}
