package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/inventory"
)

// maxToldChanges bounds the event about changed hardware.
const maxToldChanges = 10

// saveInventory stores what an agent found, as a new state only if hands were on the machine since the last one, and saves the machine.
func (ch *change) saveInventory(m *bloomeryv1.Machine, jobID string, body *structpb.Struct) error {
	last, err := ch.Inventory(m.GetName(), time.Time{})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if last == nil {
		fillFromProduct(m, productFacts{}, productOf(body))
		if err := ch.AddInventory(m.GetName(), jobID, body); err != nil {
			return err
		}
		return ch.saveMachine(m)
	}
	fillFromProduct(m, productOf(last.Body), productOf(body))
	changes, differs := differences(last.Body, body)
	if !differs {
		if err := ch.SawInventory(m.GetName()); err != nil {
			return err
		}
		return ch.saveMachine(m)
	}
	if err := ch.AddInventory(m.GetName(), jobID, body); err != nil {
		return err
	}
	if err := ch.noteHardware(m, jobID, changes); err != nil {
		return err
	}
	return ch.saveMachine(m)
}

// noteHardware tells that a machine is made of other parts than when it was looked at last.
func (ch *change) noteHardware(m *bloomeryv1.Machine, jobID string, changes []inventory.Change) error {
	e := &bloomeryv1.Event{Type: "machine.hardware_changed", Machine: m.GetName(), JobId: jobID, Message: fmt.Sprintf("hardware of machine %s changed in %d place(s)", m.GetName(), len(changes))}
	var told []any
	for _, c := range changes {
		if c.Kind == inventory.Removed || c.Kind == inventory.Replaced {
			e.Severity = bloomeryv1.Severity_SEVERITY_WARNING
		}
		if len(told) < maxToldChanges {
			told = append(told, clipTo(fmt.Sprintf("%s %s: %s -> %s", c.Component, c.Location, c.Before, c.After), 300))
		}
	}
	return ch.note(e, map[string]any{"changes": told})
}

// productFacts are SMBIOS type 1's name and serial number.
type productFacts struct{ name, serial string }

func productOf(body *structpb.Struct) productFacts {
	fields := body.GetFields()["product"].GetStructValue().GetFields()
	return productFacts{oneLine(fields["name"].GetStringValue()), oneLine(fields["serial"].GetStringValue())}
}

// oneLine keeps what a machine says of itself from growing a record or writing on a terminal.
func oneLine(s string) string {
	var out strings.Builder
	for _, r := range s {
		if !unicode.IsControl(r) && out.Len()+utf8.RuneLen(r) <= maxWord {
			out.WriteRune(r)
		}
	}
	return out.String()
}

// fillFromProduct sets model and serial number, unless an operator has set something else than the machine said before.
func fillFromProduct(m *bloomeryv1.Machine, before, now productFacts) {
	if m.GetModel() == "" || m.GetModel() == before.name {
		m.Model = now.name
	}
	if m.GetSerial() == "" || m.GetSerial() == before.serial {
		m.Serial = now.serial
	}
}

// differences compares two inventories; what is not an inventory differs unless it is the same to the byte.
func differences(before, after *structpb.Struct) (changes []inventory.Change, differs bool) {
	a, errA := decodeInventory(before)
	b, errB := decodeInventory(after)
	if errA != nil || errB != nil {
		return nil, !proto.Equal(before, after)
	}
	changes = inventory.Diff(a, b)
	return changes, len(changes) > 0
}

func decodeInventory(body *structpb.Struct) (*inventory.Inventory, error) {
	data, err := body.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("encode an inventory: %w", err)
	}
	i := &inventory.Inventory{}
	if err := json.Unmarshal(data, i); err != nil {
		return nil, fmt.Errorf("decode an inventory: %w", err)
	}
	return i, nil
}

// ListInventories implements bloomery.v1.MachineService.
func (c *Coordinator) ListInventories(ctx context.Context, r *connect.Request[bloomeryv1.ListInventoriesRequest]) (*connect.Response[bloomeryv1.ListInventoriesResponse], error) {
	var all []store.Inventory
	err := c.Store.View(ctx, func(s *store.Reader) (err error) {
		m, err := s.Machine(clip(r.Msg.GetName()))
		if err != nil {
			return err
		}
		all, err = s.Inventories(m.GetName())
		return err
	})
	if err != nil {
		return nil, err
	}
	response := &bloomeryv1.ListInventoriesResponse{}
	for _, i := range all {
		response.Versions = append(response.Versions, &bloomeryv1.InventoryVersion{TakenAt: timestamppb.New(i.Taken), SeenAt: timestamppb.New(i.Seen), JobId: i.JobID})
	}
	return connect.NewResponse(response), nil
}

// DiffInventory implements bloomery.v1.MachineService.
func (c *Coordinator) DiffInventory(ctx context.Context, r *connect.Request[bloomeryv1.DiffInventoryRequest]) (*connect.Response[bloomeryv1.DiffInventoryResponse], error) {
	var from, to *store.Inventory
	err := c.Store.View(ctx, func(s *store.Reader) (err error) {
		m, err := s.Machine(clip(r.Msg.GetName()))
		if err != nil {
			return err
		}
		if to, err = knownAt(s, m.GetName(), "to", r.Msg.GetTo()); err != nil {
			return err
		}
		if r.Msg.GetFrom() != nil {
			from, err = knownAt(s, m.GetName(), "from", r.Msg.GetFrom())
			return err
		}
		if from, err = s.Inventory(m.GetName(), to.Taken.Add(-1)); errors.Is(err, store.ErrNotFound) {
			return notNow("from", "NO_EARLIER_INVENTORY", "the inventory of %s is the first of machine %s: there is none before it to compare with", timeText(to.Taken), m.GetName())
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	before, err := decodeInventory(from.Body)
	if err != nil {
		return nil, err
	}
	after, err := decodeInventory(to.Body)
	if err != nil {
		return nil, err
	}
	response := &bloomeryv1.DiffInventoryResponse{From: timestamppb.New(from.Taken), To: timestamppb.New(to.Taken)}
	for _, change := range inventory.Diff(before, after) {
		response.Changes = append(response.Changes, &bloomeryv1.InventoryChange{
			Kind: changeKind(change.Kind), Component: change.Component, Location: change.Location, Before: change.Before, After: change.After,
		})
	}
	return connect.NewResponse(response), nil
}

// knownAt reads the inventory that was the last one at a time.
func knownAt(s *store.Reader, machine, field string, at *timestamppb.Timestamp) (*store.Inventory, error) {
	var when time.Time
	if at != nil {
		// Times are stored in nanoseconds, of which an int64 holds those to the year 2262.
		if err := at.CheckValid(); err != nil || at.GetSeconds() <= 0 || at.GetSeconds() >= 1<<33 {
			return nil, invalid(field, "TIME_INVALID", "want a time between 1970 and 2242")
		}
		when = at.AsTime()
	}
	i, err := s.Inventory(machine, when)
	if !errors.Is(err, store.ErrNotFound) {
		return i, err
	}
	all, err := s.Inventories(machine)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, notNow("name", "NO_INVENTORY", "machine %s has no inventory: inspect it first", machine)
	}
	return nil, invalid(field, "NO_INVENTORY", "nothing was known of machine %s at %s; its first inventory is of %s", machine, timeText(when), timeText(all[len(all)-1].Taken))
}

func timeText(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func changeKind(k inventory.ChangeKind) bloomeryv1.InventoryChange_Kind {
	switch k {
	case inventory.Added:
		return bloomeryv1.InventoryChange_KIND_ADDED
	case inventory.Removed:
		return bloomeryv1.InventoryChange_KIND_REMOVED
	case inventory.Replaced:
		return bloomeryv1.InventoryChange_KIND_REPLACED
	case inventory.Changed:
		return bloomeryv1.InventoryChange_KIND_CHANGED
	}
	return bloomeryv1.InventoryChange_KIND_UNSPECIFIED
}
