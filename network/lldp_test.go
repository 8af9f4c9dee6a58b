package network

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"
)

// frame was put together by hand from IEEE 802.1AB: chassis MAC, port name, TTL 120, port description, system name,
// management address, port VLAN 100, end.
const frame = "020704" + "525400aabbcc" + "0406" + "05" + "4574683132" + "06020078" + "0802" + "7031" + "0a03" + "746f72" +
	"100c" + "0501c0000201" + "0200000001" + "00" + "fe06" + "0080c2010064" + "0000"

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseLLDP(t *testing.T) {
	n, err := ParseLLDP(unhex(t, frame))
	if err != nil {
		t.Fatal(err)
	}
	if n.ChassisID != "52:54:00:aa:bb:cc" || n.PortID != "Eth12" || n.PortDescription != "p1" || n.SystemName != "tor" ||
		n.ManagementAddress.String() != "192.0.2.1" || n.PortVLAN != 100 || n.TTL != 2*time.Minute {
		t.Errorf("got %+v", n)
	}
	for _, tt := range []struct{ name, data, errHas string }{
		{"empty", "", "cut"},
		{"wrong order", "0406054574683132", "must be 1"},
		{"cut", frame[:20], "TLV"},
		{"end too early", "02070452540000aabb0000", "must be 2"},
		{"short id", "020104", "less than 2"},
	} {
		if _, err := ParseLLDP(unhex(t, tt.data)); err == nil || !strings.Contains(err.Error(), tt.errHas) {
			t.Errorf("%s: got %v", tt.name, err)
		}
	}
}

func FuzzParseLLDP(f *testing.F) {
	f.Add(unhex(f, frame))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := ParseLLDP(data)
		if err != nil {
			return
		}
		for _, s := range []string{n.ChassisID, n.PortID, n.PortDescription, n.SystemName, n.SystemDescription} {
			if len(s) > 2*maxText || strings.ContainsAny(s, "\x00\x1b\n") {
				t.Errorf("unfit text %q", s)
			}
		}
	})
}
