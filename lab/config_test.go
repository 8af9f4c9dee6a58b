package lab

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestLabPage parses the rack.yaml that docs/lab.md tells people to paste.
func TestLabPage(t *testing.T) {
	page, err := os.ReadFile("../docs/lab.md")
	if err != nil {
		t.Fatal(err)
	}
	for i, text := range strings.Split(string(page), "```yaml\n")[1:] {
		example, _, _ := strings.Cut(text, "```")
		if _, err := ParseConfig([]byte(example)); err != nil {
			t.Errorf("example %d: %v", i+1, err)
		}
	}
	_, rest, ok := strings.Cut(string(page), "## rack.yaml\n\n```yaml\n")
	example, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		t.Fatal("docs/lab.md has no yaml example")
	}
	c, err := ParseConfig([]byte(example))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Machines) != 2 || c.Machines[0].Disks[0].Size != 8*GiB || c.Machines[1].NICs[0].Port == c.Machines[0].NICs[0].Port {
		t.Errorf("the example came out as %+v", c.Machines)
	}
	// The page says that the example's networks are the default's.
	if diff := cmp.Diff(Default(1).Networks, c.Networks, cmp.Transformer("addr", netip.Addr.String), cmp.Transformer("prefix", netip.Prefix.String)); diff != "" {
		t.Errorf("networks differ from the default's: %s", diff)
	}
}

func TestParseConfigRefuses(t *testing.T) {
	const one = "machines: [{name: m1}]\n"
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", "it is empty"},
		{"no machines", "name: a\n", "machines: 0"},
		{"unknown field", one + "wings: 2\n", "wings"},
		{"two documents", one + "---\n" + one, "more than one YAML document"},
		{"name", one + "name: Rack_1\n", `name: "Rack_1"`},
		{"accel", one + "accel: magic\n", `accel: "magic"`},
		{"machine twice", "machines: [{name: m1}, {name: m1}]\n", "machines[0].name's already"},
		{"size", "machines: [{name: m1, disks: [{size: 8 bananas}]}]\n", "8 bananas"},
		{"size overflows", "machines: [{name: m1, disks: [{size: 9999999999TiB}]}]\n", "want a whole number"},
		{"odd size", "machines: [{name: m1, disks: [{size: 1049088}]}]\n", "whole sectors"},
		{"odd sector", "machines: [{name: m1, disks: [{sector: 520}]}]\n", "disks[0].sector: 520 must be 512 or 4096"},
		{"bus", "machines: [{name: m1, disks: [{bus: floppy}]}]\n", "must be nvme, virtio or scsi"},
		{"disk serial injects", "machines: [{name: m1, disks: [{serial: 'a,file=/etc/shadow'}]}]\n", "disks[0].serial"},
		{"multicast MAC", "machines: [{name: m1, nics: [{mac: '01:00:00:00:00:01'}]}]\n", "unicast MAC"},
		{"wwn on virtio", "machines: [{name: m1, disks: [{bus: virtio, wwn: '0123456789abcdef'}]}]\n", "on nvme and scsi only"},
		{"no quarantine", one + "networks: [{name: provisioning, vlan: 100}]\n", `"quarantine" is missing`},
		{"VLAN twice", one + "networks: [{name: provisioning, vlan: 1}, {name: quarantine, vlan: 1}]\n", "already"},
		{"range outside", one + "provisioning: {address: 10.0.0.1/24, range: 10.1.0.1-10.1.0.9}\n", "provisioning.range"},
		{"two coordinators", one + "coordinators: 2\n", "1 or 3"},
		{"coordinator in the range", one + "coordinators: 3\nprovisioning: {address: 10.66.0.1/24, range: 10.66.0.3-10.66.0.9}\n", "coordinator c3 would have 10.66.0.3"},
		{"coordinator is the customer", one + "coordinators: 3\nnetworks: [{name: provisioning, vlan: 1}, {name: quarantine, vlan: 2}, {name: a, vlan: 3, prefix: 10.77.0.0/24, gateway: 10.77.0.1, range: 10.77.0.9-10.77.0.20, customer: 10.77.0.2}]\n", "coordinator c2 would have gateway 10.77.0.2"},
		{"name like another rack's coordinator", one + "name: a-c2\n", "names a part of rack a"},
		{"out-of-band VLAN", one + "networks: [{name: provisioning, vlan: 4000}, {name: quarantine, vlan: 2}]\n", "out-of-band network's"},
		{"BMC elsewhere", "machines: [{name: m1, bmc: {address: '192.0.2.1:623'}}]\n", "must be in 10.65.0.0/16"},
		{"BMC is a coordinator", "machines: [{name: m1, bmc: {address: '10.65.255.251:623'}}]\n", "is coordinator c1's"},
		{"password too long", "machines: [{name: m1, bmc: {password: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}}]\n", "IPMI allows 20"},
		{"too large", strings.Repeat("#", maxConfigBytes+1), "more than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := ParseConfig([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// FuzzParseConfig wants of every description that is accepted that it comes back the same after Marshal.
func FuzzParseConfig(f *testing.F) {
	f.Add([]byte("machines: [{name: m1}]\n"))
	f.Add([]byte("name: a\nmachines: [{name: m1, disks: [{bus: virtio, size: 1GiB}]}]\n"))
	f.Add([]byte("machines: [{name: m1, tpm: true, disks: [{bus: scsi, sector: 4096, wwn: '5000c50012345678'}]}]\n"))
	f.Add([]byte("coordinators: 3\nmachines: [{name: m1}]\n"))
	f.Add([]byte("\x00\xff:::"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseConfig(text)
		if err != nil {
			return
		}
		again, err := c.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseConfig(again)
		if err != nil {
			t.Fatalf("%v in\n%s", err, again)
		}
		third, err := back.Marshal()
		if err != nil || string(third) != string(again) {
			t.Errorf("%v:\n%s\nbecame\n%s", err, again, third)
		}
	})
}

func TestParseStat(t *testing.T) {
	const tail = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21\n"
	for _, c := range []struct {
		name, stat string
		start      uint64
		state      byte
		bad        bool
	}{
		{name: "plain", stat: "7 (sleep)" + tail, start: 4711, state: 'S'},
		{name: "name like the rest", stat: "7 (a) Z 9 (b)" + tail, start: 4711, state: 'S'},
		{name: "name with a newline", stat: "7 (a\nb)" + tail, start: 4711, state: 'S'},
		{name: "no command", stat: "7 sleep", bad: true},
		{name: "short", stat: "7 (sleep) S 1 2", bad: true},
		{name: "no number", stat: strings.Replace("7 (sleep)"+tail, "4711", "x", 1), bad: true},
		{name: "empty", bad: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			start, state, err := parseStat([]byte(c.stat))
			if (err != nil) != c.bad || err == nil && (start != c.start || state != c.state) {
				t.Errorf("%d %c %v, want %d %c", start, state, err, c.start, c.state)
			}
		})
	}
	if _, err := identify(1 << 30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a process that is not there: %v", err)
	}
}
