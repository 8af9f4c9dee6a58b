package coordinator

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

const (
	maxStatuses = 32
	// maxFilterText bounds a filter's text, in bytes; maxToken a page token.
	maxFilterText = 256
	maxToken      = 2048
)

// checkFilter refuses a filter that nothing can match or that is too large. at is its path in the request.
func checkFilter(f *bloomeryv1.MachineFilter, at string) error {
	if n := len(f.GetStatuses()); n > maxStatuses {
		return invalid(at+".statuses", "TOO_MANY", "%d are more than %d", n, maxStatuses)
	}
	for _, s := range f.GetStatuses() {
		if _, ok := bloomeryv1.MachineStatus_name[int32(s)]; !ok || s == 0 {
			return invalid(at+".statuses", "UNKNOWN", "%d is no status", s)
		}
	}
	if f.GetUnit() < 0 || f.GetUnit() > maxUnit {
		return invalid(at+".unit", "OUT_OF_RANGE", "%d: want 1 to %d, or 0 for any", f.GetUnit(), maxUnit)
	}
	if n := len(f.GetLabels()); n > maxLabels {
		return invalid(at+".labels", "TOO_MANY", "%d are more than %d", n, maxLabels)
	}
	for _, text := range []struct{ field, value string }{
		{"lock_team", f.GetLockTeam()}, {"model", f.GetModel()}, {"rack", f.GetRack()}, {"fault_code", f.GetFaultCode()}, {"image", f.GetImage()},
		{"project", f.GetProject()}, {"search", f.GetSearch()}, {"labels", longest(maps.Keys(f.GetLabels()))}, {"labels", longest(maps.Values(f.GetLabels()))},
	} {
		if len(text.value) > maxFilterText {
			return invalid(at+"."+text.field, "TOO_LONG", "%d bytes are more than %d", len(text.value), maxFilterText)
		}
	}
	return nil
}

func longest(all func(yield func(string) bool)) string {
	most := ""
	for s := range all {
		if len(s) > len(most) {
			most = s
		}
	}
	return most
}

// matches says whether a machine is one of those that a filter chooses.
func matches(f *bloomeryv1.MachineFilter, m *bloomeryv1.Machine) bool {
	is := func(want, have string) bool { return want == "" || want == have }
	if len(f.GetStatuses()) > 0 && !slices.Contains(f.GetStatuses(), m.GetStatus()) {
		return false
	}
	if f.GetLocked() && m.GetLock() == nil {
		return false
	}
	for k, v := range f.GetLabels() {
		if have, ok := m.GetLabels()[k]; !ok || have != v {
			return false
		}
	}
	return is(f.GetLockTeam(), m.GetLock().GetTeam()) && is(f.GetRack(), m.GetRack()) && (f.GetUnit() == 0 || f.GetUnit() == m.GetUnit()) &&
		is(f.GetFaultCode(), m.GetFaultCode()) && is(f.GetImage(), m.GetImage()) && is(f.GetProject(), m.GetProject()) &&
		(f.GetModel() == "" || strings.EqualFold(f.GetModel(), m.GetModel())) && found(f.GetSearch(), m)
}

func found(search string, m *bloomeryv1.Machine) bool {
	if search == "" {
		return true
	}
	search = strings.ToLower(search)
	where := append([]string{m.GetName(), m.GetSerial(), m.GetUuid(), m.GetAddress(), m.GetBmc().GetAddress()}, m.GetMacs()...)
	for _, disk := range m.GetCustomerDisks() {
		where = append(where, disk.GetSerial(), disk.GetWwn())
	}
	return slices.ContainsFunc(where, func(s string) bool { return strings.Contains(strings.ToLower(s), search) })
}

// machineOrder is how a list is sorted: by a text made from each machine, then by its name, so that no two are equal.
type machineOrder struct {
	key        func(*bloomeryv1.Machine) string
	descending bool
}

// parseOrder reads order_by.
func parseOrder(text string) (machineOrder, error) {
	keys := []struct {
		name string
		key  func(*bloomeryv1.Machine) string
	}{
		{"name", func(*bloomeryv1.Machine) string { return "" }},
		{"status", func(m *bloomeryv1.Machine) string { return fmt.Sprintf("%03d", m.GetStatus()) }},
		{"rack", func(m *bloomeryv1.Machine) string { return fmt.Sprintf("%s\x00%03d", m.GetRack(), m.GetUnit()) }},
		{"model", (*bloomeryv1.Machine).GetModel},
		{"project", (*bloomeryv1.Machine).GetProject},
		{"updated", func(m *bloomeryv1.Machine) string { return fmt.Sprintf("%020d", m.GetUpdatedAt().AsTime().UnixNano()) }},
	}
	name, descending := strings.CutPrefix(text, "-")
	if text == "" {
		name = "name"
	}
	var names []string
	for _, k := range keys {
		if k.name == name {
			return machineOrder{k.key, descending}, nil
		}
		names = append(names, k.name)
	}
	return machineOrder{}, invalid("order_by", "UNKNOWN", "%q: want one of %s, with - before it to turn it round", clip(text), list(names))
}

// position is a machine's place in an order.
type position struct {
	// Query is a hash of the filter and the order that the place belongs to.
	Query     []byte
	Key, Name string
}

func (o machineOrder) compare(a, b position) int {
	c := cmp.Or(strings.Compare(a.Key, b.Key), strings.Compare(a.Name, b.Name))
	if o.descending {
		return -c
	}
	return c
}

func (o machineOrder) position(m *bloomeryv1.Machine) position {
	return position{Key: o.key(m), Name: m.GetName()}
}

// queryHash binds a page token to what was asked.
func queryHash(f *bloomeryv1.MachineFilter, orderBy string) ([]byte, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(&bloomeryv1.ListMachinesRequest{Filter: f, OrderBy: orderBy})
	if err != nil {
		return nil, fmt.Errorf("encode a filter: %w", err)
	}
	if proto.Size(f) == 0 { // none at all asks the same as an empty one
		data = []byte(orderBy)
	}
	sum := sha256.Sum256(data)
	return sum[:8], nil
}

func (p position) token() (string, error) {
	data, err := json.Marshal(p)
	return base64.RawURLEncoding.EncodeToString(data), err
}

// parseToken reads a page token; nil for the first page.
func parseToken(token string, query []byte) (*position, error) {
	if token == "" {
		return nil, nil
	}
	bad := invalid("page_token", "PAGE_TOKEN_INVALID", "want the token of an earlier answer to the same filter and order")
	if len(token) > maxToken {
		return nil, bad
	}
	data, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return nil, bad
	}
	p := &position{}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(p); err != nil || !bytes.Equal(p.Query, query) {
		return nil, bad
	}
	return p, nil
}

// page chooses, sorts and cuts: the machines after a place, at most size of them, and the place of the last when more follow.
// A machine that matches and keeps its key throughout is on one page exactly, whatever becomes of the others meanwhile.
func page(all []*bloomeryv1.Machine, f *bloomeryv1.MachineFilter, order machineOrder, after *position, size int) (machines []*bloomeryv1.Machine, next *position) {
	type placed struct {
		position
		m *bloomeryv1.Machine
	}
	var chosen []placed
	for _, m := range all {
		if !matches(f, m) {
			continue
		}
		if p := order.position(m); after == nil || order.compare(p, *after) > 0 {
			chosen = append(chosen, placed{p, m})
		}
	}
	slices.SortFunc(chosen, func(a, b placed) int { return order.compare(a.position, b.position) })
	for i, p := range chosen {
		if i == size {
			return machines, &chosen[i-1].position
		}
		machines = append(machines, p.m)
	}
	return machines, nil
}
