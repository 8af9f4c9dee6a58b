package coordinator

import (
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/partition/wipe"
)

// wipeSteps wipe the disks that an install writes, and before them those on which a failed install left something: the next customer must not find it.
func wipeSteps(m *bloomeryv1.Machine, written []*bloomeryv1.DiskRef, named bool) []*bloomeryv1.Step {
	var steps []*bloomeryv1.Step
	for _, disk := range customerDisks(m) {
		if !containsDisk(written, disk) {
			steps = append(steps, wipeStep(m, disk, false))
		}
	}
	for _, disk := range written {
		steps = append(steps, wipeStep(m, disk, named))
	}
	return steps
}

// wipeStep wipes one disk as thoroughly as what it carried asks for. Named says that an operator named this very disk.
func wipeStep(m *bloomeryv1.Machine, disk *bloomeryv1.DiskRef, named bool) *bloomeryv1.Step {
	step := &bloomeryv1.WipeStep{Disk: disk, Level: bloomeryv1.WipeLevel_WIPE_LEVEL_QUICK, Named: named}
	if containsDisk(m.GetCustomerDisks(), disk) {
		step.Level, step.Named = bloomeryv1.WipeLevel_WIPE_LEVEL_ERASE, true
		for _, d := range inventoryDisks(m) {
			if sameDisk(d.ref(), disk) {
				step.ExtraSeconds = int32(wipe.Limit(d.SizeBytes).Seconds())
			}
		}
	}
	return &bloomeryv1.Step{Spec: &bloomeryv1.Step_Wipe{Wipe: step}}
}

// jobLimit is how long a job may be driven.
func jobLimit(j *store.Job, t Timing) time.Duration {
	limit := t.Job
	for _, s := range j.GetSteps() {
		limit += time.Duration(s.GetWipe().GetExtraSeconds()) * time.Second
	}
	return limit
}
