// Package takeover tests that a coordinator which was stopped past its lease does nothing more, by what a BMC and a switch see: its test
// runs coordinators as processes of their own, which are stopped and continued (SIGSTOP, SIGCONT).
package takeover
