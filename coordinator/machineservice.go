package coordinator

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"strings"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/firmware/bmc"
	"bloomery/internal/pki"
)

const (
	defaultPage = 100
	maxPage     = 1000
	maxLabels   = 64
	maxLabel    = 256
	maxReason   = 1000
)

// ListMachines implements bloomery.v1.MachineService.
func (c *Coordinator) ListMachines(ctx context.Context, r *connect.Request[bloomeryv1.ListMachinesRequest]) (*connect.Response[bloomeryv1.ListMachinesResponse], error) {
	size, err := pageSize(r.Msg.GetPageSize(), defaultPage)
	if err != nil {
		return nil, err
	}
	after, err := base64.RawURLEncoding.DecodeString(r.Msg.GetPageToken())
	if err != nil {
		return nil, invalid("page_token", "PAGE_TOKEN_INVALID", "want a token of an earlier answer")
	}
	var response *bloomeryv1.ListMachinesResponse
	err = c.Store.View(ctx, func(s *store.Reader) error {
		response = &bloomeryv1.ListMachinesResponse{}
		filter := store.MachineFilter{LockTeam: r.Msg.GetFilter().GetLockTeam(), After: string(after), Limit: size + 1}
		if statuses := r.Msg.GetFilter().GetStatuses(); len(statuses) > 0 {
			filter.Status = statuses[0]
		}
		for {
			machines, err := s.Machines(filter)
			if err != nil {
				return err
			}
			for _, m := range machines {
				if !hasLabels(m, r.Msg.GetFilter().GetLabels()) {
					continue
				}
				if len(response.Machines) == size {
					last := response.Machines[size-1].GetName()
					response.NextPageToken = base64.RawURLEncoding.EncodeToString([]byte(last))
					return nil
				}
				response.Machines = append(response.Machines, m)
			}
			if len(machines) < filter.Limit {
				return nil
			}
			filter.After = machines[len(machines)-1].GetName()
		}
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(response), nil
}

func hasLabels(m *bloomeryv1.Machine, want map[string]string) bool {
	for k, v := range want {
		if have, ok := m.GetLabels()[k]; !ok || have != v {
			return false
		}
	}
	return true
}

func pageSize(asked int32, usual int) (int, error) {
	if asked == 0 {
		return usual, nil
	}
	if asked < 1 || asked > maxPage {
		return 0, invalid("page_size", "OUT_OF_RANGE", "%d: want 1 to %d", asked, maxPage)
	}
	return int(asked), nil
}

// GetMachine implements bloomery.v1.MachineService.
func (c *Coordinator) GetMachine(ctx context.Context, r *connect.Request[bloomeryv1.GetMachineRequest]) (*connect.Response[bloomeryv1.GetMachineResponse], error) {
	m, err := c.machine(ctx, r.Msg.GetName())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.GetMachineResponse{Machine: m}), nil
}

func (c *Coordinator) machine(ctx context.Context, name string) (m *bloomeryv1.Machine, err error) {
	err = c.Store.View(ctx, func(s *store.Reader) (err error) {
		m, err = s.Machine(clip(name))
		return err
	})
	return m, err
}

// CreateMachine implements bloomery.v1.MachineService.
func (c *Coordinator) CreateMachine(ctx context.Context, r *connect.Request[bloomeryv1.CreateMachineRequest]) (*connect.Response[bloomeryv1.CreateMachineResponse], error) {
	m, password, err := c.newMachine(r.Msg.GetMachine())
	if err != nil {
		return nil, err
	}
	err = c.update(ctx, func(ch *change) error {
		if err := ch.CreateMachine(m, password); err != nil {
			return err
		}
		return ch.note(&bloomeryv1.Event{Type: "machine.created", Machine: m.GetName(), Message: fmt.Sprintf("machine %s was recorded by %s", m.GetName(), callerOf(ctx).Name)}, nil)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.CreateMachineResponse{Machine: m}), nil
}

// newMachine checks what an operator says of a machine, and keeps the BMC's password apart.
func (c *Coordinator) newMachine(in *bloomeryv1.Machine) (*bloomeryv1.Machine, string, error) {
	if err := pki.ValidName(in.GetName()); err != nil {
		return nil, "", invalid("machine.name", "NAME_INVALID", "%v", err)
	}
	uuid := strings.ToLower(in.GetUuid())
	if uuid != "" && !uuidPattern.MatchString(uuid) {
		return nil, "", invalid("machine.uuid", "UUID_INVALID", "%q: want RFC 4122 text", clip(uuid))
	}
	macs, err := canonicalMACs(in.GetMacs())
	if err != nil {
		return nil, "", invalid("machine.macs", "MAC_INVALID", "%v", err)
	}
	address := in.GetBmc().GetAddress()
	if address == "" {
		return nil, "", invalid("machine.bmc.address", "REQUIRED", "want host:port of the machine's BMC")
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(strings.Trim(address, "[]"), "623")
		if _, _, err := net.SplitHostPort(address); err != nil {
			return nil, "", invalid("machine.bmc.address", "ADDRESS_INVALID", "%q: want host:port", clip(in.GetBmc().GetAddress()))
		}
	}
	if len(address) > 255 || len(in.GetBmc().GetUsername()) > 16 || len(in.GetBmc().GetPassword()) > 20 {
		return nil, "", invalid("machine.bmc", "TOO_LONG", "IPMI takes user names of 16 bytes and passwords of 20 at most")
	}
	port := in.GetSwitchPort()
	if (port.GetSwitch() == "") != (port.GetPort() == "") || len(port.GetPort()) > 128 {
		return nil, "", invalid("machine.switch_port", "INCOMPLETE", "want both a switch and a port, or neither")
	}
	if port.GetSwitch() != "" && !c.hasSwitch(port.GetSwitch()) {
		return nil, "", invalid("machine.switch_port.switch", "SWITCH_NOT_FOUND", "switch %q is not in the coordinator's configuration", clip(port.GetSwitch()))
	}
	if len(in.GetLabels()) > maxLabels {
		return nil, "", invalid("machine.labels", "TOO_MANY", "%d labels are more than %d", len(in.GetLabels()), maxLabels)
	}
	for k, v := range in.GetLabels() {
		if k == "" || len(k) > maxLabel || len(v) > maxLabel {
			return nil, "", invalid("machine.labels", "LABEL_INVALID", "label %q: want a key of 1 to %d bytes and a value of at most as many", clip(k), maxLabel)
		}
	}
	m := &bloomeryv1.Machine{
		Name: in.GetName(), Status: discovered, Uuid: uuid, Macs: macs, Labels: in.GetLabels(),
		Bmc: &bloomeryv1.BMC{Address: address, Username: in.GetBmc().GetUsername()},
	}
	if port.GetPort() != "" {
		m.SwitchPort = &bloomeryv1.SwitchPort{Switch: port.GetSwitch(), Port: port.GetPort()}
	}
	return m, in.GetBmc().GetPassword(), nil
}

func (c *Coordinator) hasSwitch(name string) bool {
	for _, s := range c.config.Switches {
		if s.Name == name {
			return true
		}
	}
	return false
}

// PowerMachine implements bloomery.v1.MachineService.
func (c *Coordinator) PowerMachine(ctx context.Context, r *connect.Request[bloomeryv1.PowerMachineRequest]) (*connect.Response[bloomeryv1.PowerMachineResponse], error) {
	m, err := c.machine(ctx, r.Msg.GetName())
	if err != nil {
		return nil, err
	}
	operation := r.Msg.GetOperation()
	if operation < bloomeryv1.PowerOperation_POWER_OPERATION_STATUS || operation > bloomeryv1.PowerOperation_POWER_OPERATION_RESET {
		return nil, invalid("operation", "REQUIRED", "want status, on, off or reset")
	}
	changes := operation != bloomeryv1.PowerOperation_POWER_OPERATION_STATUS
	if changes && m.GetJobId() != "" {
		return nil, notNow("name", "MACHINE_BUSY", "job %s drives machine %s", m.GetJobId(), m.GetName())
	}
	if changes && m.GetLock() != nil {
		return nil, locked(m)
	}
	ctx, cancel := context.WithTimeout(ctx, effectTimeout)
	defer cancel()
	response := &bloomeryv1.PowerMachineResponse{}
	err = c.withBMC(ctx, m, func(b bmc.Driver) (err error) {
		switch operation {
		case bloomeryv1.PowerOperation_POWER_OPERATION_ON:
			err = b.PowerOn(ctx)
		case bloomeryv1.PowerOperation_POWER_OPERATION_OFF:
			err = powerOff(ctx, b)
		case bloomeryv1.PowerOperation_POWER_OPERATION_RESET:
			err = b.Reset(ctx)
		}
		if err != nil {
			return err
		}
		response.On, err = b.PowerStatus(ctx)
		return err
	})
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	if changes {
		name := strings.ToLower(strings.TrimPrefix(operation.String(), "POWER_OPERATION_"))
		err = c.update(ctx, func(ch *change) error {
			return ch.note(&bloomeryv1.Event{Type: "power." + name, Machine: m.GetName(), Message: fmt.Sprintf("power %s of machine %s by %s", name, m.GetName(), callerOf(ctx).Name)}, nil)
		})
	}
	return connect.NewResponse(response), err
}

func locked(m *bloomeryv1.Machine) error {
	return notNow("name", "MACHINE_LOCKED", "machine %s is locked by team %s: %s", m.GetName(), m.GetLock().GetTeam(), m.GetLock().GetReason())
}

// LockMachine implements bloomery.v1.MachineService.
func (c *Coordinator) LockMachine(ctx context.Context, r *connect.Request[bloomeryv1.LockMachineRequest]) (*connect.Response[bloomeryv1.LockMachineResponse], error) {
	if err := pki.ValidName(r.Msg.GetTeam()); err != nil {
		return nil, invalid("team", "TEAM_INVALID", "%v", err)
	}
	if r.Msg.GetReason() == "" || len(r.Msg.GetReason()) > maxReason || !utf8.ValidString(r.Msg.GetReason()) {
		return nil, invalid("reason", "REQUIRED", "say why, in at most %d bytes", maxReason)
	}
	m, err := c.changeMachine(ctx, r.Msg.GetName(), func(ch *change, m *bloomeryv1.Machine) (*bloomeryv1.Event, error) {
		if m.GetLock() != nil && m.GetLock().GetTeam() != r.Msg.GetTeam() {
			return nil, locked(m)
		}
		m.Lock = &bloomeryv1.Lock{Team: r.Msg.GetTeam(), Reason: r.Msg.GetReason(), By: callerOf(ctx).Name, Since: timestamppb.New(ch.Now())}
		return &bloomeryv1.Event{Type: "machine.locked", Message: fmt.Sprintf("machine %s was locked for team %s by %s: %s", m.GetName(), r.Msg.GetTeam(), callerOf(ctx).Name, r.Msg.GetReason())}, nil
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.LockMachineResponse{Machine: m}), nil
}

// UnlockMachine implements bloomery.v1.MachineService.
func (c *Coordinator) UnlockMachine(ctx context.Context, r *connect.Request[bloomeryv1.UnlockMachineRequest]) (*connect.Response[bloomeryv1.UnlockMachineResponse], error) {
	m, err := c.changeMachine(ctx, r.Msg.GetName(), func(_ *change, m *bloomeryv1.Machine) (*bloomeryv1.Event, error) {
		if m.GetLock() == nil {
			return nil, notNow("name", "NOT_LOCKED", "machine %s is not locked", m.GetName())
		}
		if m.GetLock().GetTeam() != r.Msg.GetTeam() {
			return nil, locked(m)
		}
		m.Lock = nil
		return &bloomeryv1.Event{Type: "machine.unlocked", Message: fmt.Sprintf("machine %s was unlocked by %s", m.GetName(), callerOf(ctx).Name)}, nil
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.UnlockMachineResponse{Machine: m}), nil
}

func (c *Coordinator) changeMachine(ctx context.Context, name string, f func(*change, *bloomeryv1.Machine) (*bloomeryv1.Event, error)) (m *bloomeryv1.Machine, err error) {
	err = c.update(ctx, func(ch *change) (err error) {
		if m, err = ch.Machine(clip(name)); err != nil {
			return err
		}
		e, err := f(ch, m)
		if err != nil {
			return err
		}
		e.Machine = m.GetName()
		if err := ch.note(e, nil); err != nil {
			return err
		}
		return ch.saveMachine(m)
	})
	return m, err
}

// jobDeadline is when a job that starts now fails whatever it does.
func (c *Coordinator) jobDeadline(now time.Time) time.Time { return now.Add(c.config.Timing.Job) }
