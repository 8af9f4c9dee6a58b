// Package guest runs tests inside the agent's own kernel. What the build machine's kernel lacks (md, device mapper, LUKS, vfat, disks of
// 4096-byte sectors, a TPM) is tested there: `go test ./lab/guest` builds every package's guest tests, boots the agent image once in QEMU with
// them in place of the agent, and reports each as a test of its own.
//
// A guest test is a Test function in a file *_guest_test.go with the line
//
//	//go:build guest
//
// in the package that it tests. Its binary is static, runs as root in a copy of the package's folder (only testdata is there), finds the
// image's tools in PATH and has /run and /tmp. One that takes longer than PackageTimeout with all of its package is ended.
//
// The machine has a TPM 2.0 at /dev/tpmrm0 and these disks, all zeros, which a test takes by Take and so gives back as it found them:
//
//	GUESTV1 to GUESTV4   virtio, 512 MiB
//	GUESTN1, GUESTN2     NVMe, 768 MiB
//	GUEST4K1             NVMe, 1 GiB, sectors of 4096 bytes
//
// One package's tests run after another's, so that a test that does not call t.Parallel has the machine to itself.
package guest

import "time"

// PackageTimeout is how long all guest tests of a package may take together.
const PackageTimeout = 6 * time.Minute

// Plan is what the machine's runner is told in PlanPath.
type Plan struct {
	// Disks are the serials that must be there before the first test.
	Disks    []string      `json:"disks"`
	Packages []PlanPackage `json:"packages"`
}

// PlanPath is where the runner finds its Plan.
const PlanPath = "/guest/plan.json"

// PlanPackage is one package's test binary.
type PlanPackage struct {
	// Name is the import path without the module's.
	Name   string   `json:"name"`
	Binary string   `json:"binary"`
	Dir    string   `json:"dir"`
	Args   []string `json:"args"`
}
