package initramfs

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// modulesByPurpose is the driver set of the image by module name. Everything that these need comes with them.
var modulesByPurpose = []struct {
	purpose string
	names   []string
}{
	{"NICs of Intel", []string{"e1000", "e1000e", "igb", "igc", "ixgbe", "i40e", "ice"}},
	{"NICs of Broadcom", []string{"tg3", "bnx2x", "bnxt_en", "broadcom"}},
	{"NICs of Mellanox", []string{"mlx4_core", "mlx4_en", "mlx5_core"}},
	{"NICs of Realtek", []string{"r8169", "realtek"}},
	{"NICs of virtual machines", []string{"virtio_net"}},
	{"NICs that BMCs show to the host (Redfish host interface)", []string{"cdc_ether", "rndis_host"}},
	{"links on top of links", []string{"8021q", "bonding"}},
	{"disks on PCIe", []string{"nvme"}},
	{"disks on SATA", []string{"ahci", "ata_piix"}},
	{"disks of virtual machines", []string{"virtio_pci", "virtio_blk", "virtio_scsi"}},
	{"SAS HBAs and RAID controllers", []string{"mpt3sas", "megaraid_sas", "smartpqi", "hpsa", "aacraid"}},
	{"SCSI disks, optical drives, generic", []string{"sd_mod", "sr_mod", "cdrom", "sg"}},
	{"md RAID", []string{"md_mod", "raid0", "raid1", "raid10", "raid456"}},
	{"device mapper", []string{"dm_mod", "dm_crypt", "dm_thin_pool", "dm_snapshot", "dm_mirror", "dm_raid"}},
	{"filesystems", []string{"ext4", "xfs", "btrfs", "vfat", "overlay", "squashfs", "isofs", "loop", "efivarfs"}},
	{"file name encodings of vfat and isofs", []string{"nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8"}},
	{"checksums", []string{"crc32c_generic", "crc32c_intel", "crc32_pclmul", "xxhash_generic", "blake2b_generic"}},
	{"ciphers of LUKS", []string{"aesni_intel", "xts", "cbc", "ecb", "essiv", "sha256_generic", "sha512_generic", "algif_skcipher", "algif_hash"}},
	{"compression", []string{"zstd", "lz4"}},
	{"BMC", []string{"ipmi_msghandler", "ipmi_si", "ipmi_devintf", "ipmi_ssif", "i2c_i801"}},
	{"watchdogs", []string{"i6300esb", "iTCO_wdt", "ipmi_watchdog", "sp5100_tco"}},
	{"sensors and memory errors", []string{
		"coretemp", "k10temp", "drivetemp", "amd64_edac", "sb_edac", "skx_edac", "i10nm_edac", "ie31200_edac",
	}},
	{"entropy", []string{"virtio_rng"}},
	{"TPM", []string{"tpm_tis", "tpm_crb"}},
	{"USB controllers and storage", []string{"xhci_hcd", "xhci_pci", "ehci_hcd", "ehci_pci", "uhci_hcd", "usb_storage", "uas"}},
	{"keyboards", []string{"hid", "hid_generic", "usbhid", "atkbd", "i8042"}},
}

// moduleIndexes are the files of depmod(8) that are cut down to the image's modules. The binary indexes are left out:
// the agent and busybox read the text.
var moduleIndexes = []string{"modules.alias", "modules.devname", "modules.softdep", "modules.symbols"}

// addModules puts the driver set with all that it depends on under /lib/modules/RELEASE and returns the names.
func addModules(s *sysrootFiles, release string) ([]string, error) {
	dir := path.Join("lib/modules", release)
	index, err := readModuleIndex(filepath.Join(s.root, dir))
	if err != nil {
		return nil, fmt.Errorf("read module index of %s: %w", release, err)
	}
	var wanted []string
	for _, group := range modulesByPurpose {
		for _, name := range group.names {
			if !index.known(name) {
				return nil, fmt.Errorf("kernel %s has no module %s (%s)", release, name, group.purpose)
			}
			wanted = append(wanted, name)
		}
	}
	names, err := index.closure(wanted)
	if err != nil {
		return nil, fmt.Errorf("resolve modules of %s: %w", release, err)
	}
	for _, name := range names {
		file := path.Join(dir, index.files[name])
		if err := s.tree.copy(file, 0o644, filepath.Join(s.root, file), s.origins[file]); err != nil {
			return nil, err
		}
	}
	if err := s.tree.file(path.Join(dir, "modules.dep"), 0o644, index.depFile(names)); err != nil {
		return nil, err
	}
	keep := map[string]bool{}
	for _, name := range names {
		keep[name] = true
	}
	for _, name := range moduleIndexes {
		if err := s.tree.file(path.Join(dir, name), 0o644, filterIndex(name, index.text[name], keep)); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"modules.builtin", "modules.builtin.modinfo"} {
		file := path.Join(dir, name)
		if err := s.tree.copy(file, 0o644, filepath.Join(s.root, file), s.origins[file]); err != nil {
			return nil, err
		}
	}
	slices.Sort(names)
	return names, nil
}

// filterIndex keeps the lines of a depmod index that speak of kept modules, and its leading comment.
func filterIndex(name, text string, keep map[string]bool) []byte {
	var out strings.Builder
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		module := ""
		switch {
		case strings.HasPrefix(line, "#"):
			out.WriteString(line)
			continue
		case name == "modules.alias" || name == "modules.symbols": // alias PATTERN MODULE
			module = fields[len(fields)-1]
		case name == "modules.softdep" && len(fields) > 1: // softdep MODULE pre: ...
			module = fields[1]
		case name == "modules.devname": // MODULE NODE c10:234
			module = fields[0]
		}
		if keep[moduleName(module)] {
			out.WriteString(line)
		}
	}
	return []byte(out.String())
}
