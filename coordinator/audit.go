package coordinator

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"sync/atomic"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

const (
	// maxAuditRecords bounds the records of one audit event, maxAuditValue the JSON of one field's value, in bytes.
	maxAuditRecords = 20
	maxAuditValue   = 300
)

// call is a call that is audited when it changes something.
type call struct {
	procedure string
	request   map[string]any
	audited   atomic.Bool
}

type callKey struct{}

func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// begin makes the changes of a call audited.
func (c *Coordinator) begin(ctx context.Context, p permission, message any) context.Context {
	if !p.is(changes) || !changesWith(message) {
		return ctx
	}
	done := &call{procedure: p.procedure}
	if m, ok := message.(proto.Message); ok {
		done.request = summary(m.ProtoReflect())
	}
	return context.WithValue(ctx, callKey{}, done)
}

// auditNow stores a call's audit event unless one of its transactions has.
func (c *Coordinator) auditNow(ctx context.Context) error {
	if call := callOf(ctx); call == nil || call.audited.Load() {
		return nil
	}
	return c.update(ctx, func(*change) error { return nil })
}

// record is what a call did to one thing.
type record struct {
	what          string
	before, after map[string]any
}

// audit appends the event of a call's transaction: who and from where are in every event, what was asked and what changed are its data.
func (ch *change) audit() error {
	if ch.call == nil || (len(ch.records) == 0 && ch.call.audited.Load()) {
		return nil
	}
	e := &bloomeryv1.Event{Type: "audit.call", Message: fmt.Sprintf("%s called %s", ch.who.actor(), shortProcedure(ch.call.procedure))}
	var all []any
	for i, r := range ch.records {
		if name, ok := strings.CutPrefix(r.what, "machine "); ok {
			e.Machine = name
		}
		if id, ok := strings.CutPrefix(r.what, "job "); ok {
			e.JobId = id
		}
		if i < maxAuditRecords {
			all = append(all, map[string]any{"record": r.what, "before": r.before, "after": r.after})
		}
	}
	data := map[string]any{"procedure": shortProcedure(ch.call.procedure), "request": ch.call.request, "changes": all}
	if more := len(ch.records) - maxAuditRecords; more > 0 {
		data["more_changes"] = more
	}
	return ch.note(e, data)
}

// changed records what a call does to a thing; nil is a thing that is not there. Only fields that differ are kept, secrets never.
func (ch *change) changed(what string, before, after proto.Message) {
	if ch.call == nil {
		return
	}
	b, a := difference(fields(before), fields(after))
	if len(b) == 0 && len(a) == 0 {
		return
	}
	for i, r := range ch.records {
		if r.what == what {
			// The second change of a transaction to the same thing: what it was before stays.
			for k, v := range b {
				if _, ok := r.before[k]; !ok {
					if _, set := r.after[k]; !set {
						r.before[k] = v
					}
				}
			}
			for k, v := range a {
				r.after[k] = v
			}
			ch.records[i] = r
			return
		}
	}
	ch.records = append(ch.records, record{what, b, a})
}

// fields is a message's set fields, in short.
func fields(m proto.Message) map[string]any {
	if m == nil || !m.ProtoReflect().IsValid() {
		return nil
	}
	return summary(m.ProtoReflect())
}

func difference(before, after map[string]any) (b, a map[string]any) {
	b, a = map[string]any{}, map[string]any{}
	for k, v := range before {
		if !reflect.DeepEqual(v, after[k]) {
			b[k] = v
		}
	}
	for k, v := range after {
		if !reflect.DeepEqual(v, before[k]) {
			a[k] = v
		}
	}
	return b, a
}

// summary is a message's fields as an event can hold them: small, without secrets and without what only says when.
func summary(m protoreflect.Message) map[string]any {
	out := map[string]any{}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := string(f.Name())
		switch {
		case name == "updated_at" || name == "revision" || name == "inventory" || name == "steps":
		case secretField(name):
			out[name] = "(not shown)"
		case f.Kind() == protoreflect.BytesKind && !f.IsList():
			out[name] = fmt.Sprintf("(%d bytes)", len(v.Bytes()))
		case f.Kind() == protoreflect.MessageKind && !f.IsList() && !f.IsMap() && f.Message().ParentFile().Package() == "bloomery.v1":
			out[name] = summary(v.Message())
		default:
			out[name] = fieldValue(m, f)
		}
		return true
	})
	return out
}

// secretField says that a field of the API may hold a secret, or user data, which often does.
func secretField(name string) bool {
	for _, part := range []string{"password", "passphrase", "secret", "user_data", "vendor_data", "token"} {
		if strings.Contains(name, part) && name != "page_token" && name != "token" {
			return true
		}
	}
	return false
}

// fieldValue renders one field through protojson, which knows enums, times, lists and maps.
func fieldValue(m protoreflect.Message, f protoreflect.FieldDescriptor) any {
	only := m.New()
	only.Set(f, m.Get(f))
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(only.Interface())
	if err != nil {
		return "(not shown: " + clip(err.Error()) + ")"
	}
	if len(text) > maxAuditValue {
		return fmt.Sprintf("(%d bytes of JSON)", len(text))
	}
	var value map[string]any
	if err := json.Unmarshal(text, &value); err != nil {
		return "(not shown: " + clip(err.Error()) + ")"
	}
	return value[string(f.Name())]
}
