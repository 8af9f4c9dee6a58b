package coordinator

import (
	"testing"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

func TestCustomerDisks(t *testing.T) {
	ref := func(serial, wwn string) *bloomeryv1.DiskRef { return &bloomeryv1.DiskRef{Serial: serial, Wwn: wwn} }
	for name, tc := range map[string]struct {
		a, b *bloomeryv1.DiskRef
		same bool
	}{
		"same serial":               {ref("A", ""), ref("A", ""), true},
		"old record":                {ref("A", ""), ref("A", "eui.1"), true},
		"another serial":            {ref("A", ""), ref("B", ""), false},
		"namespaces of one disk":    {ref("A", "eui.1"), ref("A", "eui.2"), false},
		"serial changed by a cable": {ref("A", "eui.1"), ref("B", "eui.1"), false},
		"only WWNs":                 {ref("", "eui.1"), ref("", "eui.1"), true},
		"nothing in common":         {ref("A", ""), ref("", "eui.1"), false},
		"nothing":                   {ref("", ""), ref("", ""), false},
	} {
		if sameDisk(tc.a, tc.b) != tc.same || sameDisk(tc.b, tc.a) != tc.same {
			t.Errorf("%s: want %v", name, tc.same)
		}
	}

	m := &bloomeryv1.Machine{}
	addCustomerDisk(m, ref("A", "eui.1"))
	addCustomerDisk(m, ref("B", ""))
	addCustomerDisk(m, ref("A", "eui.1"))
	if len(m.GetCustomerDisks()) != 2 || m.GetDiskSerial() != "A" {
		t.Errorf("after three were added, one twice: %v", m)
	}
	strikeCustomerDisk(m, ref("A", ""))
	if len(m.GetCustomerDisks()) != 1 || m.GetDiskSerial() != "B" {
		t.Errorf("after A was struck off: %v", m)
	}
	strikeCustomerDisk(m, ref("B", ""))
	if len(m.GetCustomerDisks()) != 0 || m.GetDiskSerial() != "" {
		t.Errorf("after both were struck off: %v", m)
	}
}
