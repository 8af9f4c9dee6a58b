package vswitch

import (
	"fmt"
	"slices"
)

// Mode is how a port treats tags, spelled as OpenConfig spells it.
type Mode string

// The two modes.
const (
	ModeAccess Mode = "ACCESS"
	ModeTrunk  Mode = "TRUNK"
)

const (
	maxVLAN     = 4094 // IEEE 802.1Q-2018 table 9-2: 4095 is reserved
	defaultVLAN = 1    // the same table: the default port VLAN
)

// VLAN is a port's VLAN configuration. Make one with Access or Trunk.
type VLAN struct {
	Mode    Mode
	Access  uint16   // the VLAN of an access port
	Native  uint16   // a trunk's VLAN without a tag; 0: untagged frames are dropped
	Allowed []uint16 // a trunk's tagged VLANs
}

// Access is a port in one VLAN, without tags.
func Access(vlan uint16) VLAN { return VLAN{Mode: ModeAccess, Access: vlan} }

// Trunk is a port with tagged VLANs, and one untagged unless native is 0.
func Trunk(native uint16, allowed ...uint16) VLAN {
	return VLAN{Mode: ModeTrunk, Native: native, Allowed: slices.Clone(allowed)}
}

// validate looks at what the mode does not use too, because a change of mode alone brings it to life.
func (v VLAN) validate() error {
	if v.Mode != ModeAccess && v.Mode != ModeTrunk {
		return fmt.Errorf("interface-mode %.64q: want %s or %s", v.Mode, ModeAccess, ModeTrunk)
	}
	if v.Access > maxVLAN || v.Access == 0 && v.Mode == ModeAccess {
		return fmt.Errorf("access-vlan %d: want 1 to %d", v.Access, maxVLAN)
	}
	if v.Native > maxVLAN {
		return fmt.Errorf("native-vlan %d: want 1 to %d", v.Native, maxVLAN)
	}
	for _, a := range v.Allowed {
		if a == 0 || a > maxVLAN {
			return fmt.Errorf("trunk-vlans: %d: want 1 to %d", a, maxVLAN)
		}
	}
	return nil
}

func (v VLAN) equal(o VLAN) bool {
	return v.Mode == o.Mode && v.Access == o.Access && v.Native == o.Native && slices.Equal(v.Allowed, o.Allowed)
}

// ingress says in which VLAN a received frame is; false drops it (802.1Q-2018 section 6.9: VID 0 is a priority tag only).
func (v VLAN) ingress(h header) (uint16, bool) {
	if v.Mode == ModeAccess {
		return v.Access, h.vid == 0 || h.vid == v.Access
	}
	if h.vid == 0 {
		return v.Native, v.Native != 0
	}
	return h.vid, h.vid == v.Native || slices.Contains(v.Allowed, h.vid)
}

// egress says whether a frame of the VLAN leaves by this port, and whether with a tag.
func (v VLAN) egress(vid uint16) (tagged, ok bool) {
	if v.Mode == ModeAccess {
		return false, vid == v.Access
	}
	if vid == v.Native {
		return false, true
	}
	return true, slices.Contains(v.Allowed, vid)
}

// pvid is the VLAN of untagged frames, 0 when they are dropped.
func (v VLAN) pvid() uint16 {
	if v.Mode == ModeAccess {
		return v.Access
	}
	return v.Native
}
