package coordinator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

// fill stores n machines that differ in all that a filter looks at.
func (r *rack) fill(t *testing.T, n int) {
	t.Helper()
	for first := 0; first < n; first += 100 {
		must(t, r.c.update(t.Context(), func(ch *change) error {
			for i := first; i < min(n, first+100); i++ {
				m := &bloomeryv1.Machine{
					Name: fmt.Sprintf("node%04d", i), Status: bloomeryv1.MachineStatus(1 + i%9), Macs: []string{fmt.Sprintf("02:00:00:00:%02x:%02x", i/256, i%256)},
					Uuid: fmt.Sprintf("00000000-0000-0000-0000-%012d", i), Bmc: &bloomeryv1.BMC{Address: fmt.Sprintf("10.65.%d.%d:623", i/250, 1+i%250), Username: "admin"},
					SwitchPort: &bloomeryv1.SwitchPort{Switch: "tor1", Port: fmt.Sprintf("Ethernet%d", i)},
					Rack:       fmt.Sprintf("A%02d", i/40), Unit: int32(1 + i%40), Project: fmt.Sprintf("p%d", i%7), Model: fmt.Sprintf("R6%d0", i%3), Serial: fmt.Sprintf("SER%05d", i),
					Labels: map[string]string{"parity": fmt.Sprint(i % 2)}, Image: "debian-12",
				}
				if i%5 == 0 {
					m.Lock = &bloomeryv1.Lock{Team: "anti-ddos", Reason: "test"}
				}
				if i%9 == 7 {
					m.FaultCode = "DISK_FAILING"
				}
				if err := ch.createMachine(m, "secret"); err != nil {
					return err
				}
			}
			return nil
		}))
	}
}

func (r *rack) names(t *testing.T, op operator, q *bloomeryv1.ListMachinesRequest) []string {
	t.Helper()
	var names []string
	q = proto.CloneOf(q)
	for {
		page, err := op.machines.ListMachines(t.Context(), connect.NewRequest(q))
		must(t, err)
		for _, m := range page.Msg.GetMachines() {
			names = append(names, m.GetName())
		}
		if q.PageToken = page.Msg.GetNextPageToken(); q.PageToken == "" {
			return names
		}
	}
}

func TestListFilters(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.fill(t, 120)
	for name, tc := range map[string]struct {
		filter *bloomeryv1.MachineFilter
		want   func(i int) bool
	}{
		"none":           {nil, func(int) bool { return true }},
		"one status":     {&bloomeryv1.MachineFilter{Statuses: []bloomeryv1.MachineStatus{faulty}}, func(i int) bool { return i%9 == 7 }},
		"two statuses":   {&bloomeryv1.MachineFilter{Statuses: []bloomeryv1.MachineStatus{faulty, available}}, func(i int) bool { return i%9 == 7 || i%9 == 2 }},
		"lock team":      {&bloomeryv1.MachineFilter{LockTeam: "anti-ddos"}, func(i int) bool { return i%5 == 0 }},
		"another team":   {&bloomeryv1.MachineFilter{LockTeam: "abuse"}, func(int) bool { return false }},
		"locked":         {&bloomeryv1.MachineFilter{Locked: true}, func(i int) bool { return i%5 == 0 }},
		"label":          {&bloomeryv1.MachineFilter{Labels: map[string]string{"parity": "1"}}, func(i int) bool { return i%2 == 1 }},
		"missing label":  {&bloomeryv1.MachineFilter{Labels: map[string]string{"colour": ""}}, func(int) bool { return false }},
		"model":          {&bloomeryv1.MachineFilter{Model: "r610"}, func(i int) bool { return i%3 == 1 }},
		"rack":           {&bloomeryv1.MachineFilter{Rack: "A01"}, func(i int) bool { return i/40 == 1 }},
		"rack and unit":  {&bloomeryv1.MachineFilter{Rack: "A01", Unit: 3}, func(i int) bool { return i == 42 }},
		"fault":          {&bloomeryv1.MachineFilter{FaultCode: "DISK_FAILING"}, func(i int) bool { return i%9 == 7 }},
		"image":          {&bloomeryv1.MachineFilter{Image: "debian-11"}, func(int) bool { return false }},
		"project":        {&bloomeryv1.MachineFilter{Project: "p3"}, func(i int) bool { return i%7 == 3 }},
		"part of a name": {&bloomeryv1.MachineFilter{Search: "DE001"}, func(i int) bool { return i/10 == 1 }},
		"serial":         {&bloomeryv1.MachineFilter{Search: "ser00042"}, func(i int) bool { return i == 42 }},
		"MAC":            {&bloomeryv1.MachineFilter{Search: "02:00:00:00:00:0A"}, func(i int) bool { return i == 10 }},
		"BMC":            {&bloomeryv1.MachineFilter{Search: "10.65.0.77:"}, func(i int) bool { return i == 76 }},
		"all must match": {&bloomeryv1.MachineFilter{LockTeam: "anti-ddos", Labels: map[string]string{"parity": "0"}, Model: "R600"}, func(i int) bool { return i%5 == 0 && i%2 == 0 && i%3 == 0 }},
	} {
		t.Run(name, func(t *testing.T) {
			var want []string
			for i := range 120 {
				if tc.want(i) {
					want = append(want, fmt.Sprintf("node%04d", i))
				}
			}
			for _, size := range []int32{0, 7, 1000} {
				if diff := cmp.Diff(want, r.names(t, op, &bloomeryv1.ListMachinesRequest{Filter: tc.filter, PageSize: size})); diff != "" {
					t.Errorf("page size %d: %s", size, diff)
				}
			}
		})
	}
}

func TestListOrders(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.fill(t, 60)
	plain := r.names(t, op, &bloomeryv1.ListMachinesRequest{})
	for _, order := range []string{"name", "status", "rack", "model", "project", "updated"} {
		up := r.names(t, op, &bloomeryv1.ListMachinesRequest{OrderBy: order, PageSize: 11})
		down := r.names(t, op, &bloomeryv1.ListMachinesRequest{OrderBy: "-" + order, PageSize: 13})
		for i := range up {
			if up[i] != down[len(down)-1-i] {
				t.Fatalf("order %s is not -%s turned round", order, order)
			}
		}
		if len(up) != len(plain) {
			t.Errorf("order %s shows %d of %d machines", order, len(up), len(plain))
		}
	}
	if got := r.names(t, op, &bloomeryv1.ListMachinesRequest{OrderBy: "model", Filter: &bloomeryv1.MachineFilter{Rack: "A00", Unit: 0}})[:2]; !cmp.Equal(got, []string{"node0000", "node0003"}) {
		t.Errorf("by model: %v", got)
	}
}

func TestListIsStableUnderChange(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.fill(t, 60)
	q := &bloomeryv1.ListMachinesRequest{PageSize: 10, OrderBy: "project"}
	seen := map[string]int{}
	for n := 0; ; n++ {
		page, err := op.machines.ListMachines(t.Context(), connect.NewRequest(q))
		must(t, err)
		for _, m := range page.Msg.GetMachines() {
			seen[m.GetName()]++
		}
		if q.PageToken = page.Msg.GetNextPageToken(); q.PageToken == "" {
			break
		}
		// The machine that the token stands on goes, another comes before it.
		last := page.Msg.GetMachines()[9]
		must(t, r.c.update(t.Context(), func(ch *change) error {
			if err := ch.deleteMachine(last); err != nil {
				return err
			}
			return ch.createMachine(&bloomeryv1.Machine{Name: fmt.Sprintf("a%d", n), Macs: []string{fmt.Sprintf("02:ff:00:00:00:%02x", n)}, Project: "p0"}, "")
		}))
	}
	for i := range 60 {
		if n := seen[fmt.Sprintf("node%04d", i)]; n != 1 {
			t.Errorf("node%04d was shown %d times", i, n)
		}
	}
}

func TestListRefusals(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.fill(t, 5)
	first, err := op.machines.ListMachines(t.Context(), connect.NewRequest(&bloomeryv1.ListMachinesRequest{PageSize: 2}))
	must(t, err)
	token := first.Msg.GetNextPageToken()
	for name, tc := range map[string]struct {
		q             *bloomeryv1.ListMachinesRequest
		field, reason string
	}{
		"page too large":      {&bloomeryv1.ListMachinesRequest{PageSize: 1001}, "page_size", "OUT_OF_RANGE"},
		"token of no query":   {&bloomeryv1.ListMachinesRequest{PageToken: "bm9kZTAwMDE"}, "page_token", "PAGE_TOKEN_INVALID"},
		"other filter":        {&bloomeryv1.ListMachinesRequest{PageToken: token, Filter: &bloomeryv1.MachineFilter{Locked: true}}, "page_token", "PAGE_TOKEN_INVALID"},
		"other order":         {&bloomeryv1.ListMachinesRequest{PageToken: token, OrderBy: "status"}, "page_token", "PAGE_TOKEN_INVALID"},
		"huge token":          {&bloomeryv1.ListMachinesRequest{PageToken: strings.Repeat("A", 4000)}, "page_token", "PAGE_TOKEN_INVALID"},
		"unknown order":       {&bloomeryv1.ListMachinesRequest{OrderBy: "colour"}, "order_by", "UNKNOWN"},
		"unknown status":      {&bloomeryv1.ListMachinesRequest{Filter: &bloomeryv1.MachineFilter{Statuses: []bloomeryv1.MachineStatus{77}}}, "filter.statuses", "UNKNOWN"},
		"unit below the rack": {&bloomeryv1.ListMachinesRequest{Filter: &bloomeryv1.MachineFilter{Unit: -1}}, "filter.unit", "OUT_OF_RANGE"},
		"long text":           {&bloomeryv1.ListMachinesRequest{Filter: &bloomeryv1.MachineFilter{Search: strings.Repeat("x", 257)}}, "filter.search", "TOO_LONG"},
	} {
		_, err := op.machines.ListMachines(t.Context(), connect.NewRequest(tc.q))
		wantRefusal(t, name, err, connect.CodeInvalidArgument, tc.field, tc.reason)
	}
	if _, err := op.machines.ListMachines(t.Context(), connect.NewRequest(&bloomeryv1.ListMachinesRequest{PageToken: token, Filter: &bloomeryv1.MachineFilter{}, PageSize: 1})); err != nil {
		t.Errorf("an empty filter is another than none: %v", err)
	}
}

// wantRefusal checks an error's code, field and reason.
func wantRefusal(t *testing.T, name string, err error, code connect.Code, field, reason string) {
	t.Helper()
	var rpc *connect.Error
	if !errors.As(err, &rpc) || rpc.Code() != code {
		t.Errorf("%s: got %v, want %v", name, err, code)
		return
	}
	for _, d := range rpc.Details() {
		value, err := d.Value()
		must(t, err)
		if f, ok := value.(*bloomeryv1.FieldError); ok && f.GetField() == field && f.GetReason() == reason {
			return
		}
	}
	t.Errorf("%s: %v does not name %s %s", name, err, field, reason)
}

// TestListOfAThousand logs what a list costs; it fails on no time.
func TestListOfAThousand(t *testing.T) {
	if testing.Short() {
		t.Skip("measures")
	}
	r := newRack(t)
	op := r.operator()
	r.fill(t, 1000)
	for _, q := range []*bloomeryv1.ListMachinesRequest{{PageSize: 1000}, {PageSize: 1000, OrderBy: "-updated"}, {PageSize: 1000, Filter: &bloomeryv1.MachineFilter{Statuses: []bloomeryv1.MachineStatus{faulty}}}} {
		best, n := time.Hour, 0
		for range 20 {
			begin := time.Now()
			answer, err := op.machines.ListMachines(t.Context(), connect.NewRequest(q))
			must(t, err)
			best, n = min(best, time.Since(begin)), len(answer.Msg.GetMachines())
		}
		t.Logf("%d machines (filter %v, order %q): best of 20 is %s", n, q.GetFilter(), q.GetOrderBy(), best)
	}
}

// watch collects what WatchMachines sends.
func (r *rack) watch(t *testing.T, op operator, f *bloomeryv1.MachineFilter) func(want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := op.machines.WatchMachines(ctx, connect.NewRequest(&bloomeryv1.WatchMachinesRequest{Filter: f}))
	must(t, err)
	t.Cleanup(func() { _ = stream.Close() })
	return func(want string) {
		t.Helper()
		if !stream.Receive() {
			t.Fatalf("the watch ended before %q: %v", want, stream.Err())
		}
		got := "complete"
		switch change := stream.Msg().GetChange().(type) {
		case *bloomeryv1.WatchMachinesResponse_Machine:
			got = change.Machine.GetName() + " " + statusName(change.Machine.GetStatus())
			if change.Machine.GetInventory() != nil {
				t.Error("a watch shows inventories")
			}
		case *bloomeryv1.WatchMachinesResponse_Removed:
			got = "removed " + change.Removed
		}
		if got != want {
			t.Fatalf("watch: %q, want %q", got, want)
		}
	}
}

func TestWatchMachines(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	set := func(name string, status bloomeryv1.MachineStatus) {
		t.Helper()
		_, err := r.c.changeMachine(t.Context(), name, func(_ *change, m *bloomeryv1.Machine) (*bloomeryv1.Event, error) {
			m.Status = status
			return &bloomeryv1.Event{Type: "machine.updated"}, nil
		})
		must(t, err)
	}
	r.fill(t, 20)
	next := r.watch(t, op, &bloomeryv1.MachineFilter{Statuses: []bloomeryv1.MachineStatus{faulty}, Rack: "A00"})
	next("node0007 faulty")
	next("node0016 faulty")
	next("complete")
	set("node0001", faulty)
	next("node0001 faulty")
	set("node0007", available)
	next("removed node0007")
	set("node0002", available) // matched never: nothing is said
	must(t, r.c.update(t.Context(), func(ch *change) error { return ch.deleteMachine(&bloomeryv1.Machine{Name: "node0016"}) }))
	next("removed node0016")
	// One that is deleted and comes back at once is a change of it.
	must(t, r.c.update(t.Context(), func(ch *change) error {
		if err := ch.deleteMachine(&bloomeryv1.Machine{Name: "node0001"}); err != nil {
			return err
		}
		return ch.createMachine(&bloomeryv1.Machine{Name: "node0001", Status: faulty, Rack: "A00", Macs: []string{"02:00:00:00:00:01"}}, "")
	}))
	next("node0001 faulty")
	// Another coordinator's changes come without a hint: the store is read again at each tick.
	must(t, r.c.Store.Update(t.Context(), func(tx *store.Tx) error {
		m, err := tx.Machine("node0003")
		if err != nil {
			return err
		}
		m.Status = faulty
		return tx.SaveMachine(m)
	}))
	next("node0003 faulty")
	// A watch that is opened again begins with what matches now.
	again := r.watch(t, op, &bloomeryv1.MachineFilter{Statuses: []bloomeryv1.MachineStatus{faulty}, Rack: "A00"})
	again("node0001 faulty")
	again("node0003 faulty")
	again("complete")
}

// another is a second coordinator on the rack's store, as another node is: it has a hub and a session of its own.
func (r *rack) another(t *testing.T) *Coordinator {
	t.Helper()
	c, err := New(r.config, r.c.Deps)
	must(t, err)
	ctx, cancel := context.WithCancel(r.life)
	ended := make(chan error, 1)
	go func() { ended <- c.Drive(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestWatchSeesAnotherCoordinatorsChanges(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.fill(t, 3)
	next := r.watch(t, op, &bloomeryv1.MachineFilter{Search: "node0001"})
	next("node0001 checking")
	next("complete")
	other := r.another(t)
	must(t, other.update(t.Context(), func(ch *change) error {
		m, err := ch.Machine("node0001")
		if err != nil {
			return err
		}
		m.Status = bloomeryv1.MachineStatus_MACHINE_STATUS_RETIRED
		return ch.saveMachine(m)
	}))
	next("node0001 retired")
	must(t, other.update(t.Context(), func(ch *change) error { return ch.deleteMachine(&bloomeryv1.Machine{Name: "node0001"}) }))
	next("removed node0001")
}

func TestUpdateMachine(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.createMachine(op)
	update := func(revision int64, m *bloomeryv1.Machine, paths ...string) (*bloomeryv1.Machine, error) {
		m.Name = "m1"
		answer, err := op.machines.UpdateMachine(t.Context(), connect.NewRequest(&bloomeryv1.UpdateMachineRequest{Machine: m, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}, Revision: revision}))
		if err != nil {
			return nil, err
		}
		return answer.Msg.GetMachine(), nil
	}
	password := func() (p string) {
		t.Helper()
		must(t, r.c.Store.View(t.Context(), func(s *store.Reader) (err error) { p, err = s.BMCPassword("m1"); return err }))
		return p
	}
	first := r.m1().GetRevision()
	m, err := update(first, &bloomeryv1.Machine{
		Rack: "A12", Unit: 17, Project: "acme", Notes: "two\nlines", Labels: map[string]string{"tier": "1"}, Model: "R650", Serial: "S1", Status: running, Image: "not mine to set",
	}, "rack", "unit", "project", "notes", "labels", "model", "serial")
	must(t, err)
	if m.GetRack() != "A12" || m.GetUnit() != 17 || m.GetProject() != "acme" || m.GetNotes() != "two\nlines" || m.GetLabels()["tier"] != "1" || m.GetModel() != "R650" || m.GetSerial() != "S1" {
		t.Errorf("after the update: %v", m)
	}
	if m.GetStatus() != discovered || m.GetImage() != "" || m.GetUuid() != testUUID || m.GetBmc().GetUsername() != "admin" || m.GetRevision() <= first {
		t.Errorf("the update changed more than it was asked for: %v", m)
	}
	if _, err := update(first, &bloomeryv1.Machine{Rack: "A13"}, "rack"); connect.CodeOf(err) != connect.CodeAborted || !strings.Contains(err.Error(), "changed meanwhile") {
		t.Errorf("an update of an old revision: %v", err)
	}
	if _, err := update(0, &bloomeryv1.Machine{Bmc: &bloomeryv1.BMC{Address: "10.65.0.99"}}, "bmc.address"); err != nil || password() != "top-secret" || r.m1().GetBmc().GetAddress() != "10.65.0.99:623" || r.m1().GetBmc().GetUsername() != "admin" {
		t.Errorf("a new BMC address: %v, %v, password %q", err, r.m1().GetBmc(), password())
	}
	if m, err := update(0, &bloomeryv1.Machine{Bmc: &bloomeryv1.BMC{Address: "10.65.0.12", Username: "root", Password: "new-secret"}}, "bmc"); err != nil || password() != "new-secret" || m.GetBmc().GetPassword() != "" {
		t.Errorf("new BMC credentials: %v %v", m.GetBmc(), err)
	}
	if _, err := update(0, &bloomeryv1.Machine{Macs: []string{"52:54:00:00:00:02"}}, "macs"); err != nil {
		t.Error(err)
	}
	must(t, r.c.Store.View(t.Context(), func(s *store.Reader) error {
		if m, err := s.MachineByMAC("52:54:00:00:00:02"); err != nil || m.GetName() != "m1" {
			t.Errorf("the new MAC: %v", err)
		}
		if _, err := s.MachineByMAC(testMAC); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the old MAC: %v", err)
		}
		return nil
	}))
	for name, tc := range map[string]struct {
		m             *bloomeryv1.Machine
		path          string
		field, reason string
	}{
		"no field":       {&bloomeryv1.Machine{}, "", "update_mask", "UNKNOWN"},
		"not theirs":     {&bloomeryv1.Machine{}, "status", "update_mask", "UNKNOWN"},
		"UUID":           {&bloomeryv1.Machine{Uuid: "x"}, "uuid", "machine.uuid", "UUID_INVALID"},
		"no MAC":         {&bloomeryv1.Machine{}, "macs", "machine.macs", "MAC_INVALID"},
		"no BMC":         {&bloomeryv1.Machine{}, "bmc", "machine.bmc.address", "REQUIRED"},
		"password":       {&bloomeryv1.Machine{Bmc: &bloomeryv1.BMC{Password: strings.Repeat("x", 21)}}, "bmc.password", "machine.bmc.password", "TOO_LONG"},
		"half a port":    {&bloomeryv1.Machine{SwitchPort: &bloomeryv1.SwitchPort{Port: "Ethernet1"}}, "switch_port", "machine.switch_port", "INCOMPLETE"},
		"unknown switch": {&bloomeryv1.Machine{SwitchPort: &bloomeryv1.SwitchPort{Switch: "tor9", Port: "Ethernet1"}}, "switch_port", "machine.switch_port.switch", "SWITCH_NOT_FOUND"},
		"unit":           {&bloomeryv1.Machine{Unit: 101}, "unit", "machine.unit", "OUT_OF_RANGE"},
		"long notes":     {&bloomeryv1.Machine{Notes: strings.Repeat("x", 4097)}, "notes", "machine.notes", "TEXT_INVALID"},
		"escape":         {&bloomeryv1.Machine{Rack: "\x1b[2J"}, "rack", "machine.rack", "TEXT_INVALID"},
		"label":          {&bloomeryv1.Machine{Labels: map[string]string{"": "x"}}, "labels", "machine.labels", "LABEL_INVALID"},
	} {
		_, err := update(0, tc.m, tc.path)
		wantRefusal(t, name, err, connect.CodeInvalidArgument, tc.field, tc.reason)
	}
	// What a job relies on stays as it is while one runs.
	_, err = r.c.changeMachine(t.Context(), "m1", func(_ *change, m *bloomeryv1.Machine) (*bloomeryv1.Event, error) {
		m.JobId = "j1"
		return &bloomeryv1.Event{Type: "machine.updated"}, nil
	})
	must(t, err)
	_, err = update(0, &bloomeryv1.Machine{Macs: []string{testMAC}}, "macs")
	wantRefusal(t, "busy", err, connect.CodeFailedPrecondition, "machine.macs", "MACHINE_BUSY")
	if _, err = update(0, &bloomeryv1.Machine{Notes: "in the middle of a job"}, "notes"); err != nil {
		t.Errorf("notes while a job runs: %v", err)
	}
	if r.eventTypes()["machine.updated"] < 4 {
		t.Errorf("events: %v", r.eventTypes())
	}
}

func TestDeleteMachine(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.createMachine(op)
	_, err := directory{r.c}.Lease(t.Context(), r.learns)
	must(t, err)
	set := func(f func(m *bloomeryv1.Machine)) {
		t.Helper()
		_, err := r.c.changeMachine(t.Context(), "m1", func(_ *change, m *bloomeryv1.Machine) (*bloomeryv1.Event, error) {
			f(m)
			return &bloomeryv1.Event{Type: "machine.updated"}, nil
		})
		must(t, err)
	}
	remove := func() error {
		_, err := op.machines.DeleteMachine(t.Context(), connect.NewRequest(&bloomeryv1.DeleteMachineRequest{Name: "m1"}))
		return err
	}
	set(func(m *bloomeryv1.Machine) { m.Lock = &bloomeryv1.Lock{Team: "abuse", Reason: "x"} })
	wantRefusal(t, "locked", remove(), connect.CodeFailedPrecondition, "name", "MACHINE_LOCKED")
	set(func(m *bloomeryv1.Machine) { m.Lock, m.JobId = nil, "j1" })
	wantRefusal(t, "busy", remove(), connect.CodeFailedPrecondition, "name", "MACHINE_BUSY")
	set(func(m *bloomeryv1.Machine) { m.JobId, m.Status = "", running })
	wantRefusal(t, "running", remove(), connect.CodeFailedPrecondition, "name", "WRONG_STATUS")
	set(func(m *bloomeryv1.Machine) { m.Status = available })
	revision := r.m1().GetRevision()
	must(t, remove())
	if connect.CodeOf(remove()) != connect.CodeNotFound {
		t.Error("it is there still")
	}
	// Everything of it is free again, and whoever knew the old record cannot change the new one by it.
	r.createMachine(op)
	if m := r.m1(); m.GetRevision() <= revision {
		t.Errorf("revision %d after %d", m.GetRevision(), revision)
	}
}

func (r *rack) report(t *testing.T, serials ...string) {
	t.Helper()
	var modules []any
	for i, s := range serials {
		if s != "" {
			modules = append(modules, map[string]any{"slot": fmt.Sprintf("A%d", i+1), "size_bytes": 64 << 30, "type": "DDR5", "serial": s})
		}
	}
	body, err := structpb.NewStruct(map[string]any{
		"product": map[string]any{"name": "R650", "serial": "BOARD-1"}, "memory": map[string]any{"slots": 4, "usable_bytes": time.Now().UnixNano(), "modules": modules},
	})
	must(t, err)
	must(t, r.c.update(t.Context(), func(ch *change) error {
		m, err := ch.Machine("m1")
		if err != nil {
			return err
		}
		return ch.saveInventory(m, "job-"+strings.Join(serials, ""), body)
	}))
}

func TestInventoryHistory(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.createMachine(op)
	diff := func(q *bloomeryv1.DiffInventoryRequest) (*bloomeryv1.DiffInventoryResponse, error) {
		q.Name = "m1"
		answer, err := op.machines.DiffInventory(t.Context(), connect.NewRequest(q))
		if err != nil {
			return nil, err
		}
		return answer.Msg, nil
	}
	_, err := diff(&bloomeryv1.DiffInventoryRequest{})
	wantRefusal(t, "no inventory", err, connect.CodeFailedPrecondition, "name", "NO_INVENTORY")
	r.report(t, "1", "2", "3")
	_, err = diff(&bloomeryv1.DiffInventoryRequest{})
	wantRefusal(t, "one inventory", err, connect.CodeFailedPrecondition, "from", "NO_EARLIER_INVENTORY")
	if m := r.m1(); m.GetModel() != "R650" || m.GetSerial() != "BOARD-1" || m.GetInventory() != nil {
		t.Errorf("machine: %v", m)
	}
	r.report(t, "1", "2", "3") // the same again: no new state
	r.report(t, "1", "", "9")
	list, err := op.machines.ListInventories(t.Context(), connect.NewRequest(&bloomeryv1.ListInventoriesRequest{Name: "m1"}))
	must(t, err)
	versions := list.Msg.GetVersions()
	if len(versions) != 2 || versions[0].GetJobId() != "job-19" || versions[1].GetJobId() != "job-123" || !versions[1].GetSeenAt().AsTime().After(versions[1].GetTakenAt().AsTime()) {
		t.Fatalf("versions: %v", versions)
	}
	got, err := diff(&bloomeryv1.DiffInventoryRequest{})
	must(t, err)
	want := []*bloomeryv1.InventoryChange{
		{Kind: bloomeryv1.InventoryChange_KIND_REMOVED, Component: "memory", Location: "A2", Before: "64 GiB DDR5 serial 2"},
		{Kind: bloomeryv1.InventoryChange_KIND_REPLACED, Component: "memory", Location: "A3", Before: "64 GiB DDR5 serial 3", After: "64 GiB DDR5 serial 9"},
	}
	if len(got.GetChanges()) != 2 || !proto.Equal(got.GetChanges()[0], want[0]) || !proto.Equal(got.GetChanges()[1], want[1]) {
		t.Errorf("changes: %v", got.GetChanges())
	}
	if same, err := diff(&bloomeryv1.DiffInventoryRequest{From: got.GetFrom(), To: got.GetTo()}); err != nil || !proto.Equal(same, got) {
		t.Errorf("by their times: %v %v", same, err)
	}
	if back, err := diff(&bloomeryv1.DiffInventoryRequest{From: got.GetTo(), To: got.GetFrom()}); err != nil || back.GetChanges()[0].GetKind() != bloomeryv1.InventoryChange_KIND_ADDED {
		t.Errorf("backwards: %v %v", back, err)
	}
	early := got.GetFrom()
	early.Seconds -= 10
	_, err = diff(&bloomeryv1.DiffInventoryRequest{From: early})
	wantRefusal(t, "before the first", err, connect.CodeInvalidArgument, "from", "NO_INVENTORY")
	early.Seconds = 1 << 40
	_, err = diff(&bloomeryv1.DiffInventoryRequest{To: early})
	wantRefusal(t, "the far future", err, connect.CodeInvalidArgument, "to", "TIME_INVALID")
	if n := r.eventTypes()["machine.hardware_changed"]; n != 1 {
		t.Errorf("%d events of changed hardware", n)
	}
	// GetMachine shows the last state; the history is bounded.
	for i := range 25 {
		r.report(t, fmt.Sprint(100+i))
	}
	list, err = op.machines.ListInventories(t.Context(), connect.NewRequest(&bloomeryv1.ListInventoriesRequest{Name: "m1"}))
	must(t, err)
	if n := len(list.Msg.GetVersions()); n != 20 {
		t.Errorf("%d versions are kept", n)
	}
	m, err := op.machines.GetMachine(t.Context(), connect.NewRequest(&bloomeryv1.GetMachineRequest{Name: "m1"}))
	must(t, err)
	if text := m.Msg.GetMachine().GetInventory().String(); !strings.Contains(text, "124") {
		t.Errorf("inventory: %s", text)
	}
	// An operator's word for the model stays, the machine's own serial follows the board.
	_, err = op.machines.UpdateMachine(t.Context(), connect.NewRequest(&bloomeryv1.UpdateMachineRequest{Machine: &bloomeryv1.Machine{Name: "m1", Model: "our-small"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"model"}}}))
	must(t, err)
	r.report(t, "200")
	if m := r.m1(); m.GetModel() != "our-small" || m.GetSerial() != "BOARD-1" {
		t.Errorf("machine: %v", m)
	}
}

func TestViews(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	save := func(v *bloomeryv1.View) error {
		_, err := op.machines.SaveView(t.Context(), connect.NewRequest(&bloomeryv1.SaveViewRequest{View: v}))
		return err
	}
	names := func() (all []string) {
		t.Helper()
		answer, err := op.machines.ListViews(t.Context(), connect.NewRequest(&bloomeryv1.ListViewsRequest{}))
		must(t, err)
		for _, v := range answer.Msg.GetViews() {
			all = append(all, v.GetName())
			if checkFilter(v.GetFilter(), "filter") != nil {
				t.Errorf("view %s has a filter that is refused", v.GetName())
			}
			if _, err := parseOrder(v.GetOrderBy()); err != nil {
				t.Errorf("view %s: %v", v.GetName(), err)
			}
		}
		return all
	}
	must(t, save(&bloomeryv1.View{Name: "mine", Filter: &bloomeryv1.MachineFilter{Project: "acme"}, OrderBy: "-updated", Columns: []string{"name", "fault-message"}, BuiltIn: true}))
	must(t, save(&bloomeryv1.View{Name: "mine", Filter: &bloomeryv1.MachineFilter{Project: "acme2"}}))
	if diff := cmp.Diff([]string{"anti-ddos", "available", "hardware", "mine", "running"}, names()); diff != "" {
		t.Error(diff)
	}
	for name, tc := range map[string]struct {
		v             *bloomeryv1.View
		field, reason string
	}{
		"name":     {&bloomeryv1.View{Name: "No"}, "view.name", "NAME_INVALID"},
		"command":  {&bloomeryv1.View{Name: "list"}, "view.name", "NAME_TAKEN"},
		"built in": {&bloomeryv1.View{Name: "hardware"}, "view.name", "BUILT_IN"},
		"filter":   {&bloomeryv1.View{Name: "x", Filter: &bloomeryv1.MachineFilter{Unit: -1}}, "view.filter.unit", "OUT_OF_RANGE"},
		"order":    {&bloomeryv1.View{Name: "x", OrderBy: "x"}, "order_by", "UNKNOWN"},
		"column":   {&bloomeryv1.View{Name: "x", Columns: []string{"A b"}}, "view.columns", "COLUMN_INVALID"},
	} {
		wantRefusal(t, name, save(tc.v), connect.CodeInvalidArgument, tc.field, tc.reason)
	}
	remove := func(name string) error {
		_, err := op.machines.DeleteView(t.Context(), connect.NewRequest(&bloomeryv1.DeleteViewRequest{Name: name}))
		return err
	}
	must(t, remove("mine"))
	if connect.CodeOf(remove("mine")) != connect.CodeNotFound {
		t.Error("a view that is not there was deleted")
	}
	wantRefusal(t, "delete a built-in", remove("hardware"), connect.CodeInvalidArgument, "name", "BUILT_IN")
}
