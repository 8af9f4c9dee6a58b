package qemu

import "syscall"

// sysProcAttr makes QEMU die with its supervisor and keeps a terminal's Ctrl-C from it.
func sysProcAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
