package lab

import (
	"fmt"
	"os"
	"testing"

	"bloomery/firmware/bmc"
)

// TestUp brings a rack up without starting a machine: the BMC answers in the rack's namespace.
func TestUp(t *testing.T) {
	st := up(t, testRack(fmt.Sprintf("u%d", os.Getpid())))
	if !st.SupervisorUp || st.Supervisor == nil || st.Accel != "tcg" {
		t.Fatalf("status: %+v", st)
	}
	d := dialBMC(t, st)
	if on, err := d.PowerStatus(t.Context()); err != nil || on {
		t.Errorf("power: on=%t, %v", on, err)
	}
	if err := d.SetBootDevice(t.Context(), bmc.BootDevice{Target: bmc.BootNetwork, Once: true, UEFI: true}); err != nil {
		t.Error(err)
	}
	now, err := NewClient(st.StateDir).Status(t.Context())
	if err != nil || now.Machines[0].NextBoot != "network" {
		t.Errorf("status: %+v, %v", now.Machines, err)
	}
}
