package coordinator

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/cloudinit"
	"bloomery/images"
	"bloomery/partition/layout"
)

// Request is what a job is made for.
type Request struct {
	Kind bloomeryv1.JobKind
	// Install is set for an install only.
	Install *bloomeryv1.InstallSpec
}

// ImageFacts is what the steps of an install need to know of an image.
type ImageFacts struct {
	Name string
	// Kind is images.KindDisk or images.KindRootfs.
	Kind string
	// SizeBytes is the disk's, or what a rootfs unpacks to.
	SizeBytes      int64
	ManifestSHA256 string
	// RootPartition and ESPPartition are GPT partition numbers; 0 means that there is none to grow, seed or start.
	RootPartition, ESPPartition int32
	Description                 string
	// SeedLabel is the label of a partition of its own that the seed goes into; empty: into the root filesystem.
	SeedLabel string
	// Kernel, Initrd and CommandLine are from the signed manifest.
	Kernel, Initrd, CommandLine string
	// Kexec says that the manifest allows starting that kernel by kexec.
	Kexec bool
	// RootStacks are what a rootfs image can have its root on.
	RootStacks []string
}

// Facts is what Steps knows beside the machine and the request.
type Facts struct {
	JobID    string
	Images   []ImageFacts
	Networks []Network
	// Wiped are the machine's disks that are certified to be wiped and carried nobody's data since.
	Wiped []*bloomeryv1.DiskRef
	// Plan is what the layout makes of the disks; nil for an install of a disk image.
	Plan *layout.Plan
	// Address is the machine's on the customer's network; the zero Prefix when the network has no range.
	Address netip.Prefix
	// PhoneHomeURLs carry the job's token, one for each coordinator that the installed system can call.
	PhoneHomeURLs []string
	AwaitTimeout  time.Duration
}

// defaultLoader is the removable media path of UEFI 2.10, section 3.5.1.1, which images for any machine have.
const defaultLoader = `\EFI\BOOT\BOOTX64.EFI`

const maxSSHKeys = 64

// Steps computes a job's steps, or a *Refusal that names the field. It touches nothing.
func Steps(m *bloomeryv1.Machine, r Request, f Facts) ([]*bloomeryv1.Step, error) {
	var steps []*bloomeryv1.Step
	var err error
	switch r.Kind {
	case bloomeryv1.JobKind_JOB_KIND_INSPECT:
		steps, err = inspectSteps(m)
	case bloomeryv1.JobKind_JOB_KIND_INSTALL:
		steps, err = installSteps(m, r.Install, f)
	case bloomeryv1.JobKind_JOB_KIND_RELEASE:
		steps, err = releaseSteps(m)
	default:
		err = fmt.Errorf("job kind %v has no steps", r.Kind)
	}
	if err != nil {
		return nil, err
	}
	for i, s := range steps {
		s.Id = fmt.Sprintf("%s-%d", f.JobID, i)
		s.Index = int32(i)
		s.Status = bloomeryv1.StepStatus_STEP_STATUS_PENDING
	}
	return steps, nil
}

func inspectSteps(m *bloomeryv1.Machine) ([]*bloomeryv1.Step, error) {
	if m.GetStatus() == faulty && len(m.GetCustomerDisks()) > 0 {
		return nil, notNow("name", "MUST_RELEASE", "disk %s of machine %s may hold a customer's data: release the machine first", diskNames(m.GetCustomerDisks()), m.GetName())
	}
	return []*bloomeryv1.Step{
		{Spec: &bloomeryv1.Step_Netboot{Netboot: &bloomeryv1.NetbootStep{}}},
		{Spec: &bloomeryv1.Step_Inspect{Inspect: &bloomeryv1.InspectStep{}}},
		{Spec: &bloomeryv1.Step_CheckDisks{CheckDisks: &bloomeryv1.CheckDisksStep{}}},
		{Spec: &bloomeryv1.Step_PowerOff{PowerOff: &bloomeryv1.PowerOffStep{}}},
	}, nil
}

func releaseSteps(m *bloomeryv1.Machine) ([]*bloomeryv1.Step, error) {
	if len(m.GetCustomerDisks()) == 0 {
		return nil, notNow("name", "NOTHING_INSTALLED", "machine %s carries no system: inspect it instead", m.GetName())
	}
	var steps []*bloomeryv1.Step
	if m.GetSwitchPort().GetPort() != "" {
		steps = append(steps, &bloomeryv1.Step{Spec: &bloomeryv1.Step_MovePort{MovePort: &bloomeryv1.MovePortStep{From: m.GetNetwork(), To: ProvisioningNetwork}}})
	}
	steps = append(steps, &bloomeryv1.Step{Spec: &bloomeryv1.Step_Netboot{Netboot: &bloomeryv1.NetbootStep{}}})
	for _, disk := range customerDisks(m) {
		steps = append(steps, eraseStep(m, disk, true))
	}
	for _, d := range inventoryDisks(m) {
		// Whoever was root on the machine may have written to these as well.
		if d.fixed() && !containsDisk(m.GetCustomerDisks(), d.ref()) {
			steps = append(steps, eraseStep(m, d.ref(), false))
		}
	}
	return append(steps, &bloomeryv1.Step{Spec: &bloomeryv1.Step_PowerOff{PowerOff: &bloomeryv1.PowerOffStep{}}}), nil
}

func installSteps(m *bloomeryv1.Machine, spec *bloomeryv1.InstallSpec, f Facts) ([]*bloomeryv1.Step, error) {
	if spec == nil {
		return nil, invalid("spec", "REQUIRED", "say what to install")
	}
	image, err := findImage(spec.GetImage(), f.Images)
	if err != nil {
		return nil, err
	}
	network, err := customerNetwork(spec.GetNetwork(), f.Networks)
	if err != nil {
		return nil, err
	}
	if m.GetSwitchPort().GetPort() == "" {
		return nil, notNow("spec.network", "NO_SWITCH_PORT", "machine %s has no switch port on record, so it cannot be moved to network %s", m.GetName(), network.Name)
	}
	var onto *bloomeryv1.DiskRef
	if f.Plan == nil {
		if image.Kind == images.KindRootfs {
			return nil, fmt.Errorf("image %s is a root file system, and there is no plan of the disks for it", image.Name)
		}
		if onto, err = chooseDisk(m, spec.GetDisk(), image); err != nil {
			return nil, err
		}
	}
	seed, err := renderSeed(m, spec, image, network, f)
	if err != nil {
		return nil, err
	}
	evidence := spec.GetEvidence()
	switch evidence {
	case bloomeryv1.Evidence_EVIDENCE_UNSPECIFIED, bloomeryv1.Evidence_EVIDENCE_PHONE_HOME:
		evidence = bloomeryv1.Evidence_EVIDENCE_PHONE_HOME
		if len(f.PhoneHomeURLs) == 0 {
			return nil, invalid("spec.evidence", "NO_PHONE_HOME", "network %s has no phone_home address: ask for the evidence EVIDENCE_SSH_PORT", network.Name)
		}
	case bloomeryv1.Evidence_EVIDENCE_SSH_PORT:
		if !f.Address.IsValid() {
			return nil, invalid("spec.evidence", "NO_ADDRESS", "network %s has no range to give the machine an address from", network.Name)
		}
	default:
		return nil, invalid("spec.evidence", "UNKNOWN", "%d is not known: want EVIDENCE_PHONE_HOME or EVIDENCE_SSH_PORT", evidence)
	}

	steps := []*bloomeryv1.Step{
		{Spec: &bloomeryv1.Step_Netboot{Netboot: &bloomeryv1.NetbootStep{}}},
		{Spec: &bloomeryv1.Step_Inspect{Inspect: &bloomeryv1.InspectStep{}}},
		{Spec: &bloomeryv1.Step_CheckDisks{CheckDisks: &bloomeryv1.CheckDisksStep{}}},
	}
	if f.Plan != nil {
		steps = append(steps, layoutSteps(m, image, f.Plan, f.Wiped, seed)...)
	} else {
		steps = append(steps, diskSteps(m, image, onto, spec.GetDisk() != nil, f.Wiped, seed)...)
	}
	return append(steps,
		&bloomeryv1.Step{Spec: &bloomeryv1.Step_MovePort{MovePort: &bloomeryv1.MovePortStep{From: ProvisioningNetwork, To: network.Name}}},
		&bloomeryv1.Step{Spec: &bloomeryv1.Step_AwaitSystem{AwaitSystem: &bloomeryv1.AwaitSystemStep{Evidence: evidence, TimeoutSeconds: int32(f.AwaitTimeout.Seconds())}}},
	), nil
}

// diskSteps put a disk image onto one disk (that the request named or not), up to the start of the installed system.
func diskSteps(m *bloomeryv1.Machine, image ImageFacts, disk *bloomeryv1.DiskRef, named bool, wiped []*bloomeryv1.DiskRef, seed cloudinit.NoCloud) []*bloomeryv1.Step {
	steps := append(wipeSteps(m, []*bloomeryv1.DiskRef{disk}, named, wiped),
		&bloomeryv1.Step{Spec: &bloomeryv1.Step_WriteImage{WriteImage: &bloomeryv1.WriteImageStep{Disk: disk, Image: image.Name, ManifestSha256: image.ManifestSHA256}}},
	)
	if image.SeedLabel != "" {
		steps = append(steps, &bloomeryv1.Step{Spec: &bloomeryv1.Step_SeedPartition{SeedPartition: &bloomeryv1.SeedPartitionStep{
			Disk: disk, Label: image.SeedLabel, ImageBytes: image.SizeBytes,
			MetaData: seed.MetaData, UserData: seed.UserData, VendorData: seed.VendorData, NetworkConfig: seed.NetworkConfig,
		}}})
	} else if image.RootPartition > 0 {
		steps = append(steps,
			&bloomeryv1.Step{Spec: &bloomeryv1.Step_GrowRoot{GrowRoot: &bloomeryv1.GrowRootStep{Disk: disk, Partition: image.RootPartition}}},
			&bloomeryv1.Step{Spec: &bloomeryv1.Step_CloudInit{CloudInit: &bloomeryv1.CloudInitStep{
				Disk: disk, Partition: image.RootPartition,
				MetaData: seed.MetaData, UserData: seed.UserData, VendorData: seed.VendorData, NetworkConfig: seed.NetworkConfig,
			}}},
		)
	}
	if image.ESPPartition > 0 {
		steps = append(steps, &bloomeryv1.Step{Spec: &bloomeryv1.Step_BootEntry{BootEntry: &bloomeryv1.BootEntryStep{
			Disk: disk, EspPartition: image.ESPPartition, LoaderPath: defaultLoader, Description: "Bloomery " + image.Name,
		}}})
	}
	handover := &bloomeryv1.HandoverStep{}
	if image.Kexec && image.Kernel != "" && image.RootPartition > 0 {
		handover = &bloomeryv1.HandoverStep{
			Disk: disk, Partition: image.RootPartition, Kernel: image.Kernel, Initrd: image.Initrd, CommandLine: image.CommandLine,
		}
	}
	return append(steps, &bloomeryv1.Step{Spec: &bloomeryv1.Step_Handover{Handover: handover}})
}

func findImage(name string, all []ImageFacts) (ImageFacts, error) {
	var names []string
	for _, i := range all {
		if i.Name == name {
			return i, nil
		}
		names = append(names, i.Name)
	}
	slices.Sort(names)
	return ImageFacts{}, invalid("spec.image", "IMAGE_NOT_FOUND", "image %q is not in the rack's store; it holds %s", clip(name), list(names))
}

func customerNetwork(name string, all []Network) (Network, error) {
	var names []string
	for _, n := range all {
		if n.Name == ProvisioningNetwork || n.Name == QuarantineNetwork {
			continue
		}
		if n.Name == name {
			return n, nil
		}
		names = append(names, n.Name)
	}
	return Network{}, invalid("spec.network", "NETWORK_NOT_FOUND", "network %q is not a customer's network of this rack; there is %s", clip(name), list(names))
}

// renderSeed validates what the customer's system is told and makes the NoCloud files.
func renderSeed(m *bloomeryv1.Machine, spec *bloomeryv1.InstallSpec, image ImageFacts, network Network, f Facts) (cloudinit.NoCloud, error) {
	var seed cloudinit.NoCloud
	hostname := spec.GetHostname()
	if hostname == "" {
		hostname = m.GetName()
	}
	if err := cloudinit.ValidateHostname(hostname); err != nil {
		return seed, invalid("spec.hostname", "HOSTNAME_INVALID", "%v", err)
	}
	if len(spec.GetSshKeys()) > maxSSHKeys {
		return seed, invalid("spec.ssh_keys", "SSH_KEY_INVALID", "%d keys are more than %d", len(spec.GetSshKeys()), maxSSHKeys)
	}
	for i, key := range spec.GetSshKeys() {
		if err := cloudinit.ValidateSSHKey(key); err != nil {
			return seed, invalid(fmt.Sprintf("spec.ssh_keys[%d]", i), "SSH_KEY_INVALID", "%v", err)
		}
	}
	if len(spec.GetUserData()) > cloudinit.MaxUserData {
		return seed, invalid("spec.user_data", "USER_DATA_INVALID", "%d bytes are more than %d", len(spec.GetUserData()), cloudinit.MaxUserData)
	}
	if err := cloudinit.ValidateUserData(spec.GetUserData()); err != nil {
		return seed, invalid("spec.user_data", "USER_DATA_INVALID", "%v", err)
	}
	var err error
	seed.UserData = spec.GetUserData()
	if seed.MetaData, err = cloudinit.MetaData(f.JobID, hostname, spec.GetSshKeys()); err != nil {
		return seed, fmt.Errorf("render meta-data: %w", err)
	}
	if seed.VendorData, err = cloudinit.VendorData(f.PhoneHomeURLs, cloudinit.VendorOptions{RootGrown: image.SeedLabel == ""}); err != nil {
		return seed, fmt.Errorf("render vendor-data: %w", err)
	}
	if f.Address.IsValid() {
		if len(m.GetMacs()) == 0 {
			return seed, errors.New("machine has no MAC address")
		}
		mac, err := net.ParseMAC(m.GetMacs()[0])
		if err != nil {
			return seed, fmt.Errorf("machine's MAC address: %w", err)
		}
		if seed.NetworkConfig, err = cloudinit.NetworkV2(mac, f.Address, network.Gateway, network.DNS); err != nil {
			return seed, fmt.Errorf("render network-config: %w", err)
		}
	}
	return seed, nil
}

func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// clip keeps what a caller sent from filling an error text.
func clip(s string) string { return clipTo(s, 80) }
