package cloudinit

import (
	"encoding/json"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const driveKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGz1x6kBl9Mkn3NnT6oXFtUG3IMvvR8ZuvKfGqXgXoTH a@b"

func TestVolume(t *testing.T) {
	meta, err := MetaData("job-1", "m1", []string{driveKey})
	if err != nil {
		t.Fatal(err)
	}
	network, err := NetworkV2(net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}, netip.MustParsePrefix("192.0.2.10/24"), netip.MustParseAddr("192.0.2.1"), []netip.Addr{netip.MustParseAddr("192.0.2.53")})
	if err != nil {
		t.Fatal(err)
	}
	seed := NoCloud{MetaData: meta, UserData: []byte("#cloud-config\n"), VendorData: []byte("#cloud-config\n{}\n"), NetworkConfig: network}
	plain, err := Volume(LabelNoCloud, seed)
	if err != nil || string(plain["meta-data"]) != string(meta) || len(plain) != 4 {
		t.Errorf("NoCloud: %d files, %v", len(plain), err)
	}
	drive, err := Volume(LabelConfigDrive, seed)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]any{}
	for name, data := range drive {
		var value any
		if err := json.Unmarshal(data, &value); err != nil {
			value = string(data)
		}
		got[name] = value
	}
	want := map[string]any{
		"openstack/latest/meta_data.json":   map[string]any{"uuid": "job-1", "hostname": "m1", "name": "m1", "public_keys": map[string]any{"key-0": driveKey}},
		"openstack/latest/user_data":        "#cloud-config\n",
		"openstack/latest/vendor_data.json": map[string]any{"cloud-init": "#cloud-config\n{}\n"},
		"openstack/latest/network_data.json": map[string]any{
			"links": []any{map[string]any{"id": "primary", "type": "phy", "ethernet_mac_address": "52:54:00:00:00:01"}},
			"networks": []any{map[string]any{"id": "primary-0", "link": "primary", "type": "ipv4", "ip_address": "192.0.2.10/24",
				"routes": []any{map[string]any{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "192.0.2.1"}}}},
			"services": []any{map[string]any{"type": "dns", "address": "192.0.2.53"}},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, label := range []string{"", "cidata2"} {
		if _, err := Volume(label, seed); err == nil {
			t.Errorf("label %q was taken", label)
		}
	}
	if _, err := Volume(LabelNoCloud, NoCloud{}); err == nil {
		t.Error("an empty seed was taken")
	}
}
