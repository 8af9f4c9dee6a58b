package system

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"bloomery/partition/layout"
)

// keyFolder is where cryptsetup(8) and systemd look for volumes' keys, by their names.
const keyFolder = "/etc/cryptsetup-keys.d"

func decimal(n int) string { return strconv.Itoa(n) }

// fstab is fstab(5). Every value is one of a validated plan, so that none has a blank or a backslash.
func fstab(p *layout.Plan) string {
	var out strings.Builder
	out.WriteString("# Made by the installer; devices are named by UUID.\n")
	for _, m := range mounts(p) {
		options, pass := slices.Clone(m.options), 0
		switch {
		case isESP(p, m):
			// By automount: the ESP is needed when the boot loader is upgraded, not at every boot, and it may be gone with its disk.
			options = append(options, "umask=0077", "noauto", "x-systemd.automount", "x-systemd.idle-timeout=60")
		case m.fs.Format == layout.FormatExt4 && m.point == "/":
			options, pass = append(options, "errors=remount-ro"), 1
		case m.fs.Format == layout.FormatExt4:
			pass = 2
		}
		if m.subvolume != "" {
			options = append(options, "subvol="+m.subvolume)
		}
		fmt.Fprintf(&out, "UUID=%s %s %s %s 0 %d\n", m.fs.UUID, m.point, m.fs.Format, optionText(options), pass)
	}
	for _, f := range p.Files {
		if f.Format == layout.FormatSwap {
			// Without a disk the system starts without its swap space.
			fmt.Fprintf(&out, "UUID=%s none swap %s 0 0\n", f.UUID, optionText(append([]string{"sw", "nofail"}, f.Options...)))
		}
	}
	return out.String()
}

func optionText(options []string) string {
	var once []string
	for _, o := range options {
		if !slices.Contains(once, o) {
			once = append(once, o)
		}
	}
	if len(once) == 0 {
		return "defaults"
	}
	return strings.Join(once, ",")
}

// isESP says that a mount is an EFI system partition, or an array over such.
func isESP(p *layout.Plan, m mount) bool {
	return m.fs.Format == layout.FormatVFAT && len(esps(p, m.fs.Device)) > 0
}

// esps are the EFI system partitions below a filesystem.
func esps(p *layout.Plan, device layout.Ref) []layout.Ref {
	var all []layout.Ref
	for _, ref := range below(p, device) {
		if _, part, ok := findPartition(p, ref); ok && part.Type == layout.TypeESP {
			all = append(all, ref)
		}
	}
	return all
}

// opensEarly says that the initial RAM filesystem opens a volume: one that the root or /usr stands on, and one that the TPM opens, since clevis
// works there. The others are opened later, so that their key files stay on the root filesystem.
func opensEarly(p *layout.Plan, v layout.LUKSPlan) bool {
	if slices.Contains(v.Unlock, layout.UnlockTPM2) {
		return true
	}
	all := mounts(p)
	for _, path := range []string{"/", "/usr"} {
		if m, ok := holder(all, path); ok && slices.Contains(below(p, m.fs.Device), layout.Ref("luks/"+v.Name)) {
			return true
		}
	}
	return false
}

func hasKeyFile(v layout.LUKSPlan) bool { return slices.Contains(v.Unlock, layout.UnlockKeyFile) }

// crypttab is crypttab(5) of the installed system.
func crypttab(p *layout.Plan) string {
	var out strings.Builder
	out.WriteString("# Made by the installer.\n")
	for _, v := range p.LUKS {
		key, options := "none", "luks"
		if hasKeyFile(v) {
			key = keyFolder + "/" + v.Name + ".key"
		}
		if opensEarly(p, v) {
			options += ",initramfs"
		}
		fmt.Fprintf(&out, "%s UUID=%s %s %s\n", v.Name, v.UUID, key, options)
	}
	return out.String()
}

// earlyCrypttab is the part of it that cryptsetup-initramfs puts into the initial RAM filesystem (its hook cryptroot), with the keys where that puts them.
func earlyCrypttab(p *layout.Plan) string {
	var out strings.Builder
	for _, v := range p.LUKS {
		if !opensEarly(p, v) {
			continue
		}
		key := "none"
		if hasKeyFile(v) {
			key = "/cryptroot/keyfiles/" + v.Name + ".key"
		}
		fmt.Fprintf(&out, "%s UUID=%s %s luks,initramfs\n", v.Name, v.UUID, key)
	}
	return out.String()
}

// mdadmConf is mdadm.conf(5). The arrays are named, or they would come up as foreign ones with numbers for names.
func mdadmConf(p *layout.Plan) string {
	var out strings.Builder
	out.WriteString("# Made by the installer.\nHOMEHOST <system>\nMAILADDR root\n")
	for _, a := range p.Arrays {
		fmt.Fprintf(&out, "ARRAY /dev/md/%s metadata=%s UUID=%s\n", a.Name, a.Metadata, arrayUUID(a.UUID))
	}
	return out.String()
}

// arrayUUID writes a UUID as mdadm does: four groups of eight digits.
func arrayUUID(uuid string) string {
	plain := strings.ReplaceAll(uuid, "-", "")
	var groups []string
	for group := range slices.Chunk([]byte(plain), 8) {
		groups = append(groups, string(group))
	}
	return strings.Join(groups, ":")
}
