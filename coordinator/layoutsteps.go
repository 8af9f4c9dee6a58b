package coordinator

import (
	"cmp"
	"slices"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/cloudinit"
	"bloomery/partition/layout"
)

// espType marks an EFI system partition (UEFI 2.10, table 5-7).
const espType = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"

// layoutSteps put a root file system onto the disks of a plan, up to the start of the installed system. The plan itself is no part of them: it
// comes beside each step that needs it.
func layoutSteps(m *bloomeryv1.Machine, image ImageFacts, plan *layout.Plan, wiped []*bloomeryv1.DiskRef, seed cloudinit.NoCloud) []*bloomeryv1.Step {
	var disks []*bloomeryv1.DiskRef
	for _, d := range plan.Disks {
		disks = append(disks, &bloomeryv1.DiskRef{Serial: d.Serial, Wwn: d.WWN})
	}
	// A plan holds a removable disk only where the layout names it.
	steps := append(wipeSteps(m, disks, true, wiped),
		&bloomeryv1.Step{Spec: &bloomeryv1.Step_ApplyLayout{ApplyLayout: &bloomeryv1.ApplyLayoutStep{Disks: disks}}},
		&bloomeryv1.Step{Spec: &bloomeryv1.Step_UnpackImage{UnpackImage: &bloomeryv1.UnpackImageStep{Image: image.Name, ManifestSha256: image.ManifestSHA256}}},
		&bloomeryv1.Step{Spec: &bloomeryv1.Step_ConfigureSystem{ConfigureSystem: &bloomeryv1.ConfigureSystemStep{
			Kernel: image.Kernel, Initrd: image.Initrd, CommandLine: image.CommandLine,
		}}},
		&bloomeryv1.Step{Spec: &bloomeryv1.Step_CloudInit{CloudInit: &bloomeryv1.CloudInitStep{
			MetaData: seed.MetaData, UserData: seed.UserData, VendorData: seed.VendorData, NetworkConfig: seed.NetworkConfig,
		}}},
	)
	steps = append(steps, bootEntrySteps(image, plan)...)
	handover := &bloomeryv1.HandoverStep{}
	if image.Kexec {
		handover = &bloomeryv1.HandoverStep{Kernel: image.Kernel, Initrd: image.Initrd, CommandLine: image.CommandLine}
	}
	return append(steps, &bloomeryv1.Step{Spec: &bloomeryv1.Step_Handover{Handover: handover}})
}

// bootEntrySteps make the firmware start each EFI system partition of a plan. Every entry becomes the first of the boot order when it is made,
// so that of the first disk is made last.
func bootEntrySteps(image ImageFacts, plan *layout.Plan) []*bloomeryv1.Step {
	var steps []*bloomeryv1.Step
	for _, d := range slices.Backward(plan.Disks) {
		for _, p := range slices.Backward(d.Partitions) {
			if p.Type != espType {
				continue
			}
			steps = append(steps, &bloomeryv1.Step{Spec: &bloomeryv1.Step_BootEntry{BootEntry: &bloomeryv1.BootEntryStep{
				Disk: &bloomeryv1.DiskRef{Serial: d.Serial, Wwn: d.WWN}, EspPartition: int32(p.Number), LoaderPath: defaultLoader,
				Description: "Bloomery " + image.Name + " on disk " + cmp.Or(d.Serial, d.WWN), KeepOthers: len(steps) > 0,
			}}})
		}
	}
	return steps
}
