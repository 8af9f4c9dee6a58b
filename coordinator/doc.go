// Package coordinator decides what each machine of a rack does next and remembers what happened: enrolment, lifecycle, jobs, events, RPC handlers.
// Decisions (lifecycle, Steps, Next) are pure; reconcile.go carries them out.
package coordinator
