package coordinator

import (
	"errors"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/partition/wipe"
)

// wipeSteps wipe the disks that an install writes, and before them those on which a failed install left something: the next customer must not
// find it. Named says that an operator named the written disks; wiped are those that are certified.
func wipeSteps(m *bloomeryv1.Machine, written []*bloomeryv1.DiskRef, named bool, wiped []*bloomeryv1.DiskRef) []*bloomeryv1.Step {
	var steps []*bloomeryv1.Step
	for _, disk := range customerDisks(m) {
		if !containsDisk(written, disk) {
			steps = append(steps, eraseStep(m, disk, true))
		}
	}
	for _, disk := range written {
		switch {
		case containsDisk(m.GetCustomerDisks(), disk):
			steps = append(steps, eraseStep(m, disk, true))
		case containsDisk(wiped, disk):
			steps = append(steps, wipeStep(&bloomeryv1.WipeStep{Disk: disk, Level: bloomeryv1.WipeLevel_WIPE_LEVEL_SIGNATURES, Named: named}))
		default:
			steps = append(steps, wipeStep(&bloomeryv1.WipeStep{Disk: disk, Level: bloomeryv1.WipeLevel_WIPE_LEVEL_QUICK, Named: named}))
		}
	}
	return steps
}

// eraseStep is for a disk that carried a customer's data, or may have.
func eraseStep(m *bloomeryv1.Machine, disk *bloomeryv1.DiskRef, named bool) *bloomeryv1.Step {
	step := &bloomeryv1.WipeStep{Disk: disk, Level: bloomeryv1.WipeLevel_WIPE_LEVEL_ERASE, Named: named}
	for _, d := range inventoryDisks(m) {
		if sameDisk(d.ref(), disk) {
			step.ExtraSeconds = int32(wipe.Limit(d.SizeBytes).Seconds())
		}
	}
	return wipeStep(step)
}

func wipeStep(w *bloomeryv1.WipeStep) *bloomeryv1.Step {
	return &bloomeryv1.Step{Spec: &bloomeryv1.Step_Wipe{Wipe: w}}
}

// wipedDisks are the machine's disks whose last certificate says that they were cleared or purged in this machine. Wipes of the signatures only
// change nothing of that, and a disk that was written since is in the list of those that carry a customer's data.
func wipedDisks(r *store.Reader, m *bloomeryv1.Machine) ([]*bloomeryv1.DiskRef, error) {
	var wiped []*bloomeryv1.DiskRef
	for _, d := range inventoryDisks(m) {
		last, err := r.LastWipe(d.Serial, d.WWN, string(wipe.Signatures))
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if last.Successful && last.Machine == m.GetName() && last.Sanitization != string(wipe.None) {
			wiped = append(wiped, d.ref())
		}
	}
	return wiped, nil
}

// jobLimit is how long a job may be driven.
func jobLimit(j *store.Job, t Timing) time.Duration {
	limit := t.Job
	for _, s := range j.GetSteps() {
		limit += time.Duration(s.GetWipe().GetExtraSeconds()) * time.Second
	}
	return limit
}
