package switchport

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
)

// ErrNoPort is wrapped when the switch has no port of that name.
var ErrNoPort = errors.New("switch has no such port")

// Reason says which guard refused a move.
type Reason string

// The reasons of a GuardError.
const (
	ReasonMACNotSeen    Reason = "mac-not-seen"    // none of the machine's addresses is learned on the port
	ReasonForeignMAC    Reason = "foreign-mac"     // another machine's address is learned on the port: a wrong cable
	ReasonWrongNetwork  Reason = "wrong-network"   // the port is neither in the expected VLAN nor in the target
	ReasonNotAccessPort Reason = "not-access-port" // a trunk or routed port is never a machine's
)

// GuardError refuses a move; nothing was changed on the switch.
type GuardError struct {
	Port   string
	Reason Reason
	Want   string
	Found  string
}

// Error says what was expected and what the switch showed.
func (e *GuardError) Error() string {
	return fmt.Sprintf("refusing to move switch port %s (%s): expected %s, found %s", e.Port, e.Reason, e.Want, e.Found)
}

// VerifyError says that the switch accepted a move and afterwards showed something else.
type VerifyError struct {
	Port  string
	Want  uint16
	Found State
}

// Error says what was set and what was read back.
func (e *VerifyError) Error() string {
	return fmt.Sprintf("switch port %s was set to access VLAN %d and reads back as mode %q, VLAN %d",
		e.Port, e.Want, e.Found.Mode, e.Found.AccessVLAN)
}

// MoveRequest is one machine's port and the change wanted.
type MoveRequest struct {
	Port string
	MACs []net.HardwareAddr // every address that the machine may send from on this port, a shared BMC's included
	From uint16             // the VLAN that the port must be in
	To   uint16
}

func (r MoveRequest) validate() error {
	if strings.TrimSpace(r.Port) == "" {
		return errors.New("move switch port: port: empty, want the switch's name of the port")
	}
	if len(r.MACs) == 0 {
		return fmt.Errorf("move switch port %s: macs: empty, want the machine's addresses", r.Port)
	}
	for _, m := range r.MACs {
		if len(m) != 6 || m[0]&1 != 0 || bytes.Equal(m, make([]byte, 6)) {
			return fmt.Errorf("move switch port %s: macs: %q is not a machine's 48-bit address", r.Port, m)
		}
	}
	if err := checkVLAN(r.From); err != nil {
		return fmt.Errorf("move switch port %s: from: %w", r.Port, err)
	}
	if err := checkVLAN(r.To); err != nil {
		return fmt.Errorf("move switch port %s: to: %w", r.Port, err)
	}
	return nil
}

func checkVLAN(v uint16) error {
	if v == 0 || v > MaxVLAN {
		return fmt.Errorf("VLAN %d: want 1 to %d", v, MaxVLAN)
	}
	return nil
}

// Guard decides whether the port may be moved: it returns nil or a *GuardError. A port that is in the target already may
// have no address learned (a move flushes them, and the machine may be silent), because there is nothing left to change.
func Guard(s State, r MoveRequest) error {
	refuse := func(reason Reason, want, found string) error {
		return &GuardError{Port: r.Port, Reason: reason, Want: want, Found: found}
	}
	if s.Mode != ModeAccess {
		found := string(s.Mode)
		if found == "" {
			found = "no switched-port mode"
		}
		return refuse(ReasonNotAccessPort, "an access port", found)
	}
	seen := false
	var foreign []string
	for _, l := range s.MACs {
		switch {
		case slices.ContainsFunc(r.MACs, func(m net.HardwareAddr) bool { return bytes.Equal(m, l.MAC) }):
			seen = true
		case len(l.MAC) > 0 && l.MAC[0]&1 != 0:
			// a group address is a subscription, not a machine
		default:
			foreign = append(foreign, l.MAC.String())
		}
	}
	if len(foreign) > 0 {
		return refuse(ReasonForeignMAC, "only the machine's "+list(r.MACs), "also "+shorten(foreign))
	}
	if s.AccessVLAN == r.To {
		return nil
	}
	if !seen {
		found := "no learned address"
		if !s.LinkUp {
			found += " (its link is down)"
		}
		return refuse(ReasonMACNotSeen, "one of "+list(r.MACs), found)
	}
	if s.AccessVLAN != r.From {
		return refuse(ReasonWrongNetwork, fmt.Sprintf("VLAN %d", r.From), fmt.Sprintf("VLAN %d", s.AccessVLAN))
	}
	return nil
}

func list(macs []net.HardwareAddr) string {
	out := make([]string, len(macs))
	for i, m := range macs {
		out[i] = m.String()
	}
	return shorten(out)
}

// shorten keeps an error line readable when a whole switch hangs on the port.
func shorten(items []string) string {
	const most = 4
	slices.Sort(items)
	items = slices.Compact(items)
	if len(items) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(items[:most], ", "), len(items)-most)
	}
	return strings.Join(items, ", ")
}
