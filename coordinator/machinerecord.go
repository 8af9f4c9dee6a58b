package coordinator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"
	"unicode"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

const (
	maxLabels = 64
	maxLabel  = 256
	// maxUnit is far above the tallest rack; EIA-310 counts from 1 at the bottom.
	maxUnit  = 100
	maxWord  = 128
	maxNotes = 4096
)

// recordField is one part of a machine's record that operators set.
type recordField struct {
	path string
	// wired says that a job under way relies on it.
	wired bool
	// take checks what an operator says and copies it into the record.
	take func(c *Coordinator, m, in *bloomeryv1.Machine) error
}

// recordFields is everything that an operator can say of a machine; bmc.password is kept apart from the record.
func recordFields() []recordField {
	word := func(path string, value func(*bloomeryv1.Machine) *string) recordField {
		return recordField{path: path, take: func(_ *Coordinator, m, in *bloomeryv1.Machine) error {
			text := *value(in)
			if len(text) > maxWord || strings.ContainsFunc(text, unicode.IsControl) {
				return invalid("machine."+path, "TEXT_INVALID", "want one line of at most %d bytes", maxWord)
			}
			*value(m) = text
			return nil
		}}
	}
	return []recordField{
		{path: "uuid", wired: true, take: takeUUID},
		{path: "macs", wired: true, take: takeMACs},
		{path: "bmc.address", wired: true, take: takeBMCAddress},
		{path: "bmc.username", wired: true, take: takeBMCUsername},
		{path: "bmc.password", wired: true, take: checkBMCPassword},
		{path: "switch_port", wired: true, take: takeSwitchPort},
		{path: "labels", take: takeLabels},
		word("rack", func(m *bloomeryv1.Machine) *string { return &m.Rack }),
		{path: "unit", take: takeUnit},
		word("project", func(m *bloomeryv1.Machine) *string { return &m.Project }),
		{path: "notes", take: takeNotes},
		word("model", func(m *bloomeryv1.Machine) *string { return &m.Model }),
		word("serial", func(m *bloomeryv1.Machine) *string { return &m.Serial }),
	}
}

func takeUUID(_ *Coordinator, m, in *bloomeryv1.Machine) error {
	uuid := strings.ToLower(in.GetUuid())
	if uuid != "" && !uuidPattern.MatchString(uuid) {
		return invalid("machine.uuid", "UUID_INVALID", "%q: want RFC 4122 text", clip(uuid))
	}
	m.Uuid = uuid
	return nil
}

func takeMACs(_ *Coordinator, m, in *bloomeryv1.Machine) error {
	macs, err := canonicalMACs(in.GetMacs())
	if err != nil {
		return invalid("machine.macs", "MAC_INVALID", "%v", err)
	}
	m.Macs = macs
	return nil
}

func takeBMCAddress(_ *Coordinator, m, in *bloomeryv1.Machine) error {
	address := in.GetBmc().GetAddress()
	if address == "" {
		return invalid("machine.bmc.address", "REQUIRED", "want host:port of the machine's BMC")
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(strings.Trim(address, "[]"), "623")
		if _, _, err := net.SplitHostPort(address); err != nil {
			return invalid("machine.bmc.address", "ADDRESS_INVALID", "%q: want host:port", clip(in.GetBmc().GetAddress()))
		}
	}
	if len(address) > 255 {
		return invalid("machine.bmc.address", "TOO_LONG", "%d bytes are more than 255", len(address))
	}
	bmcOf(m).Address = address
	return nil
}

// IPMI 2.0 has room for user names of 16 bytes and passwords of 20 (sections 22.28 and 22.30).
const (
	maxBMCUsername = 16
	maxBMCPassword = 20
)

func takeBMCUsername(_ *Coordinator, m, in *bloomeryv1.Machine) error {
	if n := len(in.GetBmc().GetUsername()); n > maxBMCUsername {
		return invalid("machine.bmc.username", "TOO_LONG", "%d bytes: IPMI takes %d at most", n, maxBMCUsername)
	}
	bmcOf(m).Username = in.GetBmc().GetUsername()
	return nil
}

func checkBMCPassword(_ *Coordinator, _, in *bloomeryv1.Machine) error {
	if n := len(in.GetBmc().GetPassword()); n > maxBMCPassword {
		return invalid("machine.bmc.password", "TOO_LONG", "%d bytes: IPMI takes %d at most", n, maxBMCPassword)
	}
	return nil
}

func bmcOf(m *bloomeryv1.Machine) *bloomeryv1.BMC {
	if m.GetBmc() == nil {
		m.Bmc = &bloomeryv1.BMC{}
	}
	return m.GetBmc()
}

func takeSwitchPort(c *Coordinator, m, in *bloomeryv1.Machine) error {
	port := in.GetSwitchPort()
	if (port.GetSwitch() == "") != (port.GetPort() == "") || len(port.GetPort()) > maxWord {
		return invalid("machine.switch_port", "INCOMPLETE", "want both a switch and a port, or neither")
	}
	if port.GetSwitch() == "" {
		m.SwitchPort = nil
		return nil
	}
	if !slices.ContainsFunc(c.config.Switches, func(s Switch) bool { return s.Name == port.GetSwitch() }) {
		return invalid("machine.switch_port.switch", "SWITCH_NOT_FOUND", "switch %q is not in the coordinator's configuration", clip(port.GetSwitch()))
	}
	m.SwitchPort = &bloomeryv1.SwitchPort{Switch: port.GetSwitch(), Port: port.GetPort()}
	return nil
}

func takeLabels(_ *Coordinator, m, in *bloomeryv1.Machine) error {
	if len(in.GetLabels()) > maxLabels {
		return invalid("machine.labels", "TOO_MANY", "%d labels are more than %d", len(in.GetLabels()), maxLabels)
	}
	for k, v := range in.GetLabels() {
		if k == "" || len(k) > maxLabel || len(v) > maxLabel || strings.ContainsFunc(k+v, unicode.IsControl) {
			return invalid("machine.labels", "LABEL_INVALID", "label %q: want a key of 1 to %d bytes and a value of at most as many, on one line", clip(k), maxLabel)
		}
	}
	m.Labels = maps.Clone(in.GetLabels())
	return nil
}

func takeUnit(_ *Coordinator, m, in *bloomeryv1.Machine) error {
	if in.GetUnit() < 0 || in.GetUnit() > maxUnit {
		return invalid("machine.unit", "OUT_OF_RANGE", "%d: want 1 to %d, or 0 for none", in.GetUnit(), maxUnit)
	}
	m.Unit = in.GetUnit()
	return nil
}

func takeNotes(_ *Coordinator, m, in *bloomeryv1.Machine) error {
	control := func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }
	if len(in.GetNotes()) > maxNotes || strings.ContainsFunc(in.GetNotes(), control) {
		return invalid("machine.notes", "TEXT_INVALID", "want text of at most %d bytes", maxNotes)
	}
	m.Notes = in.GetNotes()
	return nil
}

// CreateMachine implements bloomery.v1.MachineService.
func (c *Coordinator) CreateMachine(ctx context.Context, r *connect.Request[bloomeryv1.CreateMachineRequest]) (*connect.Response[bloomeryv1.CreateMachineResponse], error) {
	in := r.Msg.GetMachine()
	if err := pki.ValidName(in.GetName()); err != nil {
		return nil, invalid("machine.name", "NAME_INVALID", "%v", err)
	}
	var m *bloomeryv1.Machine
	err := c.update(ctx, func(ch *change) error {
		m = &bloomeryv1.Machine{Name: in.GetName(), Status: discovered}
		for _, f := range recordFields() {
			if err := f.take(c, m, in); err != nil {
				return err
			}
		}
		if err := ch.createMachine(m, in.GetBmc().GetPassword()); err != nil {
			return err
		}
		return ch.note(&bloomeryv1.Event{Type: "machine.created", Machine: m.GetName(), Message: fmt.Sprintf("machine %s was recorded by %s", m.GetName(), callerOf(ctx).Name)}, nil)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.CreateMachineResponse{Machine: m}), nil
}

// maskedFields returns the fields that an update mask names, in the record's order.
func maskedFields(paths []string) ([]recordField, error) {
	all := recordFields()
	var names []string
	for _, f := range all {
		names = append(names, f.path)
	}
	if len(paths) == 0 {
		return nil, invalid("update_mask", "REQUIRED", "name what to change: any of %s", list(names))
	}
	for _, p := range paths {
		if p != "bmc" && !slices.Contains(names, p) {
			return nil, invalid("update_mask", "UNKNOWN", "%q cannot be changed: want any of bmc, %s", clip(p), list(names))
		}
	}
	return slices.DeleteFunc(all, func(f recordField) bool {
		return !slices.Contains(paths, f.path) && !(strings.HasPrefix(f.path, "bmc.") && slices.Contains(paths, "bmc"))
	}), nil
}

// UpdateMachine implements bloomery.v1.MachineService.
func (c *Coordinator) UpdateMachine(ctx context.Context, r *connect.Request[bloomeryv1.UpdateMachineRequest]) (*connect.Response[bloomeryv1.UpdateMachineResponse], error) {
	in := r.Msg.GetMachine()
	fields, err := maskedFields(r.Msg.GetUpdateMask().GetPaths())
	if err != nil {
		return nil, err
	}
	m, err := c.changeMachine(ctx, in.GetName(), func(ch *change, m *bloomeryv1.Machine) (*bloomeryv1.Event, error) {
		if r.Msg.GetRevision() != 0 && r.Msg.GetRevision() != m.GetRevision() {
			return nil, connect.NewError(connect.CodeAborted, fmt.Errorf("machine %s was changed meanwhile: its revision is %d, this change is based on %d; read it again and repeat the change", m.GetName(), m.GetRevision(), r.Msg.GetRevision()))
		}
		if err := c.updateRecord(ch, m, in, fields); err != nil {
			return nil, err
		}
		// The values stay out of the event: notes may be confidential.
		var names []string
		for _, f := range fields {
			names = append(names, f.path)
		}
		return &bloomeryv1.Event{Type: "machine.updated", Message: fmt.Sprintf("machine %s was changed by %s: %s", m.GetName(), callerOf(ctx).Name, strings.Join(names, ", "))}, nil
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.UpdateMachineResponse{Machine: m}), nil
}

// updateRecord changes what an operator says of a machine, in the record and in what is kept beside it.
func (c *Coordinator) updateRecord(ch *change, m, in *bloomeryv1.Machine, fields []recordField) error {
	before := proto.CloneOf(m)
	for _, f := range fields {
		if f.wired && m.GetJobId() != "" {
			return notNow("machine."+f.path, "MACHINE_BUSY", "job %s drives machine %s and relies on its %s", m.GetJobId(), m.GetName(), f.path)
		}
		if err := f.take(c, m, in); err != nil {
			return err
		}
		if f.path == "bmc.password" {
			if err := ch.SetBMCPassword(m.GetName(), in.GetBmc().GetPassword()); err != nil {
				return err
			}
		}
	}
	if !slices.Equal(before.GetMacs(), m.GetMacs()) {
		if err := ch.SetMACs(m.GetName(), m.GetMacs()); err != nil {
			return err
		}
	}
	if before.GetLock().GetNetwork() != "" && !proto.Equal(before.GetSwitchPort(), m.GetSwitchPort()) {
		return notNow("machine.switch_port", "MACHINE_LOCKED", "the lock of team %s moved port %s of switch %s to quarantine: unlock machine %s first",
			m.GetLock().GetTeam(), before.GetSwitchPort().GetPort(), before.GetSwitchPort().GetSwitch(), m.GetName())
	}
	if m.GetModel() == "" || m.GetSerial() == "" {
		known, err := ch.Inventory(m.GetName(), time.Time{})
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if err == nil {
			fillFromProduct(m, productFacts{}, productOf(known.Body))
		}
	}
	return nil
}

// DeleteMachine implements bloomery.v1.MachineService.
func (c *Coordinator) DeleteMachine(ctx context.Context, r *connect.Request[bloomeryv1.DeleteMachineRequest]) (*connect.Response[bloomeryv1.DeleteMachineResponse], error) {
	err := c.update(ctx, func(ch *change) error {
		m, err := ch.Machine(clip(r.Msg.GetName()))
		if err != nil {
			return err
		}
		if err := mayDelete(m); err != nil {
			return err
		}
		if err := ch.deleteMachine(m); err != nil {
			return err
		}
		e := &bloomeryv1.Event{Type: "machine.deleted", Machine: m.GetName(), Message: fmt.Sprintf("machine %s was deleted by %s", m.GetName(), callerOf(ctx).Name)}
		if len(m.GetCustomerDisks()) > 0 {
			e.Severity = bloomeryv1.Severity_SEVERITY_WARNING
			e.Message += fmt.Sprintf("; its disk %s may still hold a customer's data", diskNames(m.GetCustomerDisks()))
		}
		return ch.note(e, nil)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.DeleteMachineResponse{}), nil
}

func mayDelete(m *bloomeryv1.Machine) error {
	switch {
	case m.GetLock() != nil:
		return locked(m)
	case m.GetJobId() != "":
		return notNow("name", "MACHINE_BUSY", "job %s drives machine %s", m.GetJobId(), m.GetName())
	case m.GetStatus() == running || m.GetStatus() == bloomeryv1.MachineStatus_MACHINE_STATUS_RESCUE:
		return notNow("name", "WRONG_STATUS", "machine %s is %s for a customer: release it first", m.GetName(), statusName(m.GetStatus()))
	}
	return nil
}
