//go:build nightly

package e2e

// nightlyLayouts are those that take too long for every run.
func nightlyLayouts() []layoutCase {
	const disk = "{bus: virtio, size: 3GiB, serial: "
	return []layoutCase{
		{name: "raid10", machine: "disks: [" + disk + "R1}, " + disk + "R2}, " + disk + "R3}, " + disk + "R4}]"},
		{name: "btrfs", machine: "disks: [{bus: nvme, size: 6GiB, serial: BTRFS}]"},
		{name: "4kn", machine: "disks: [{bus: nvme, size: 6GiB, serial: LARGESECTORS, sector: 4096}]"},
	}
}
