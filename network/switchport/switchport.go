// Package switchport moves a machine's switch port from one VLAN to another, guarded by what the switch itself
// has learned on that port. Drivers speak the switches' protocols; Move is the only way that changes a port.
package switchport

import (
	"context"
	"net"
	"time"
)

// Mode is how a port treats VLAN tags (openconfig-vlan-types:vlan-mode-type).
type Mode string

// The modes of OpenConfig.
const (
	ModeAccess Mode = "ACCESS"
	ModeTrunk  Mode = "TRUNK"
)

// MaxVLAN is the highest VLAN a port can be in (IEEE 802.1Q-2018 table 9-2; 4095 is reserved).
const MaxVLAN = 4094

// LearnedMAC is one address that the switch has learned on a port.
type LearnedMAC struct {
	MAC  net.HardwareAddr
	VLAN uint16        // 0: the switch does not say
	Age  time.Duration // since it was learned or last seen, as the switch counts it; 0: the switch does not say
}

// State is what a switch says of one port at one moment.
type State struct {
	Port       string
	Mode       Mode   // "" when the port is not a switched port
	AccessVLAN uint16 // 0 when the switch has none configured
	MACs       []LearnedMAC
	LinkUp     bool
	SpeedMbps  uint32 // 0: unknown
}

// Driver talks to one switch. Calls may run at the same time and honour the context's deadline.
type Driver interface {
	// Port reads a port; a port that the switch does not have is an error that wraps ErrNoPort.
	Port(ctx context.Context, port string) (State, error)
	// SetAccessVLAN makes the port an access port of the VLAN, without any guard: call Move instead.
	SetAccessVLAN(ctx context.Context, port string, vlan uint16) error
	// Close ends the connection.
	Close() error
}
