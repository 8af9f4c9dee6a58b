package coordinator

import (
	"fmt"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// LifecycleEvent is what moves a machine from one status to another.
type LifecycleEvent string

// The events of a machine's lifecycle.
const (
	InspectStarted LifecycleEvent = "inspect-started"
	InspectPassed  LifecycleEvent = "inspect-passed"
	InspectFailed  LifecycleEvent = "inspect-failed"
	InstallStarted LifecycleEvent = "install-started"
	InstallDone    LifecycleEvent = "install-done"
	InstallFailed  LifecycleEvent = "install-failed"
	ReleaseStarted LifecycleEvent = "release-started"
	ReleaseDone    LifecycleEvent = "release-done"
	ReleaseFailed  LifecycleEvent = "release-failed"
	// Condemned: a check or a step found that the machine itself is broken.
	Condemned LifecycleEvent = "condemned"
)

// Transition is one arrow of the lifecycle.
type Transition struct {
	From  bloomeryv1.MachineStatus
	Event LifecycleEvent
	To    bloomeryv1.MachineStatus
	// Why says what the arrow means, for docs/lifecycle.md.
	Why string
}

const (
	discovered = bloomeryv1.MachineStatus_MACHINE_STATUS_DISCOVERED
	checking   = bloomeryv1.MachineStatus_MACHINE_STATUS_CHECKING
	available  = bloomeryv1.MachineStatus_MACHINE_STATUS_AVAILABLE
	installing = bloomeryv1.MachineStatus_MACHINE_STATUS_INSTALLING
	running    = bloomeryv1.MachineStatus_MACHINE_STATUS_RUNNING
	releasing  = bloomeryv1.MachineStatus_MACHINE_STATUS_RELEASING
	faulty     = bloomeryv1.MachineStatus_MACHINE_STATUS_FAULTY
)

// Transitions returns every arrow of the lifecycle; what is not here is not possible.
func Transitions() []Transition {
	return []Transition{
		{discovered, InspectStarted, checking, "a new machine is inventoried and checked"},
		{available, InspectStarted, checking, "an operator wants a fresh look"},
		{faulty, InspectStarted, checking, "the machine was repaired; one that holds a customer's data is released first"},
		{checking, InspectPassed, available, "all checks passed"},
		{checking, InspectFailed, discovered, "the checks could not be run or were cancelled, so nothing is known"},
		{checking, Condemned, faulty, "a check found a broken part"},
		{available, InstallStarted, installing, "a customer's request was accepted"},
		{installing, InstallDone, running, "there is evidence that the installed system runs"},
		{installing, InstallFailed, available, "the request failed or was cancelled, the machine is sound; the next install wipes again"},
		{installing, Condemned, faulty, "a step found a broken part"},
		{running, ReleaseStarted, releasing, "the customer gave the machine back"},
		{faulty, ReleaseStarted, releasing, "a release is tried again"},
		{releasing, ReleaseDone, available, "the disks were wiped and that was verified"},
		{releasing, ReleaseFailed, faulty, "the disks may still hold a customer's data"},
		{releasing, Condemned, faulty, "a disk could not be wiped"},
	}
}

// TransitionError says that an event is not possible in a status.
type TransitionError struct {
	From  bloomeryv1.MachineStatus
	Event LifecycleEvent
}

func (e *TransitionError) Error() string {
	return fmt.Sprintf("%s is not possible while the machine is %s", e.Event, statusName(e.From))
}

// NextStatus returns the status that an event leads to, or a *TransitionError.
func NextStatus(from bloomeryv1.MachineStatus, event LifecycleEvent) (bloomeryv1.MachineStatus, error) {
	for _, t := range Transitions() {
		if t.From == from && t.Event == event {
			return t.To, nil
		}
	}
	return from, &TransitionError{From: from, Event: event}
}
