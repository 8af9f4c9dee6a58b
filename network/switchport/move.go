package switchport

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
)

// Result is what a move found and did.
type Result struct {
	AlreadyThere bool  // the port was in the target VLAN: nothing was set
	MACSeen      bool  // one of the machine's addresses was learned on the port before the move
	Before       State // as read before anything was set
	After        State // as read back; equals Before when AlreadyThere
}

// Move is the guarded compare-and-set: it reads the port, refuses with a *GuardError unless the port carries the machine and is
// in the expected VLAN, sets the VLAN, reads back and returns a *VerifyError when the switch shows something else. It can
// be repeated: a port that is in the target VLAN already is left alone. After an error of the driver the port's state is
// unknown; another Move finds out.
func Move(ctx context.Context, d Driver, r MoveRequest) (Result, error) {
	if err := r.validate(); err != nil {
		return Result{}, err
	}
	before, err := d.Port(ctx, r.Port)
	if err != nil {
		return Result{}, fmt.Errorf("read switch port %s before moving it: %w", r.Port, err)
	}
	res := Result{Before: before, After: before, MACSeen: carries(before, r.MACs)}
	if err := Guard(before, r); err != nil {
		return res, err
	}
	if before.AccessVLAN == r.To {
		res.AlreadyThere = true
		return res, nil
	}
	if err := d.SetAccessVLAN(ctx, r.Port, r.To); err != nil {
		return res, fmt.Errorf("move switch port %s from VLAN %d to %d: %w", r.Port, r.From, r.To, err)
	}
	res.After, err = d.Port(ctx, r.Port)
	if err != nil {
		return res, fmt.Errorf("read switch port %s back after moving it to VLAN %d: %w", r.Port, r.To, err)
	}
	if res.After.Mode != ModeAccess || res.After.AccessVLAN != r.To {
		return res, &VerifyError{Port: r.Port, Want: r.To, Found: res.After}
	}
	return res, nil
}

func carries(s State, macs []net.HardwareAddr) bool {
	return slices.ContainsFunc(s.MACs, func(l LearnedMAC) bool {
		return slices.ContainsFunc(macs, func(m net.HardwareAddr) bool { return bytes.Equal(m, l.MAC) })
	})
}
