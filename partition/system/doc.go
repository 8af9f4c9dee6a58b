// Package system makes an unpacked root filesystem on a plan's disks one that boots: it writes the tables that name the filesystems, arrays and
// volumes by their UUIDs, the boot loader, and what the initial RAM filesystem must know before it has a root. Nothing of the system is run for
// that, so no chroot, no network and no device node is needed.
package system
