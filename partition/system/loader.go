package system

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"bloomery/partition/layout"
)

// Loader is where the firmware finds a boot loader.
type Loader struct {
	// Serial and WWN are the disk's, as in the plan.
	Serial, WWN string
	// Partition is the number of the EFI system partition.
	Partition int
	// Path in it, as firmware writes it: with backslashes.
	Path string
}

// Folders of the signed loaders in Debian's and Ubuntu's packages shim-signed and grub-efi-amd64-signed.
const (
	shimFile       = "usr/lib/shim/shimx64.efi.signed"
	mokManagerFile = "usr/lib/shim/mmx64.efi.signed"
	grubFile       = "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
)

// commandLine is the kernel's: where the root is, then what the image wants.
func commandLine(p *layout.Plan, image string) (string, error) {
	root, ok := holder(mounts(p), "/")
	if !ok || root.point != "/" {
		return "", errors.New("the plan has no root filesystem")
	}
	words := []string{"root=" + rootDevice(root.fs)}
	if root.subvolume != "" {
		words = append(words, "rootflags=subvol="+root.subvolume)
	}
	for word := range strings.FieldsSeq(image) {
		if !strings.HasPrefix(word, "root=") && !strings.HasPrefix(word, "rootflags=") {
			words = append(words, word)
		}
	}
	return strings.Join(words, " "), nil
}

// rootDevice is how the kernel command line names the root: initramfs-tools' scripts find the volume of a device mapper's name, and a UUID else.
func rootDevice(f layout.FilesystemPlan) string {
	switch kind, names := split(f.Device); kind {
	case "lv":
		return "/dev/mapper/" + mapperName(names[0]) + "-" + mapperName(names[1])
	case "luks":
		return "/dev/mapper/" + names[0]
	}
	return "UUID=" + f.UUID
}

// mapperName doubles the dashes of a name that is joined to another by one (lvm2, lib/misc/lvm-string.c).
func mapperName(name string) string { return strings.ReplaceAll(name, "-", "--") }

// grubMenu is the first /boot/grub/grub.cfg; update-grub in the installed system writes its own over it.
func grubMenu(p *layout.Plan, title, kernel, initrd, line string) (string, error) {
	at, ok := holder(mounts(p), kernel)
	if other, same := holder(mounts(p), initrd); !ok || !same || other.point != at.point {
		return "", fmt.Errorf("kernel %s and initial RAM filesystem %s are not on one filesystem", kernel, initrd)
	}
	for _, ref := range below(p, at.fs.Device) {
		if kind, _ := split(ref); kind == "luks" {
			return "", fmt.Errorf("%s lies on the encrypted %s, which the boot loader cannot open", kernel, ref)
		}
	}
	return fmt.Sprintf(`set timeout=0
search --no-floppy --fs-uuid --set=root %s
menuentry '%s' {
	linux %s %s
	initrd %s
}
`, at.fs.UUID, title, at.within(kernel), line, at.within(initrd)), nil
}

// grubStart is what the signed GRUB reads on the EFI system partition: it finds /boot/grub.
func grubStart(p *layout.Plan) (string, error) {
	at, ok := holder(mounts(p), "/boot/grub")
	if !ok {
		return "", errors.New("the plan has no filesystem for /boot/grub")
	}
	return fmt.Sprintf(`search --no-floppy --fs-uuid --set=root %s
set prefix=($root)%s
configfile $prefix/grub.cfg
`, at.fs.UUID, at.within("/boot/grub")), nil
}

// writeLoader fills each mounted EFI system partition with the image's signed loaders: under its vendor's name, which GRUB has built in, and where
// firmware looks without a boot entry (UEFI 2.10, section 3.5.1.1).
func writeLoader(root *os.Root, p *layout.Plan, vendor string) ([]Loader, error) {
	start, err := grubStart(p)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{path.Join("EFI", vendor, "grub.cfg"): []byte(start)}
	for source, targets := range map[string][]string{
		shimFile:       {path.Join("EFI", vendor, "shimx64.efi"), "EFI/BOOT/BOOTX64.EFI"},
		grubFile:       {path.Join("EFI", vendor, "grubx64.efi"), "EFI/BOOT/grubx64.efi"},
		mokManagerFile: {path.Join("EFI", vendor, "mmx64.efi")},
	} {
		content, err := readCapped(root, source, maxLoader)
		if err != nil {
			return nil, fmt.Errorf("read the image's boot loader: %w", err)
		}
		for _, target := range targets {
			files[target] = content
		}
	}
	var loaders []Loader
	for _, m := range mounts(p) {
		if !isESP(p, m) {
			continue
		}
		for name, content := range files {
			if err := writeFile(root, path.Join(m.point, name), content, 0o644); err != nil {
				return nil, fmt.Errorf("write the boot loader: %w", err)
			}
		}
		for _, ref := range esps(p, m.fs.Device) {
			disk, part, _ := findPartition(p, ref)
			loaders = append(loaders, Loader{Serial: disk.Serial, WWN: disk.WWN, Partition: part.Number, Path: `\EFI\` + vendor + `\shimx64.efi`})
		}
	}
	if len(loaders) == 0 {
		return nil, errors.New("the plan mounts no EFI system partition")
	}
	slices.SortFunc(loaders, func(a, b Loader) int { return strings.Compare(a.Serial+a.WWN, b.Serial+b.WWN) })
	return loaders, nil
}
