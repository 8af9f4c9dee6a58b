package layout

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Every name below ends up as an argument of a tool or in a configuration file of the installed system, some in scripts that read those files.
// The sets of characters are therefore narrow, and none lets a name begin with a dash.
const (
	diskNamePattern  = `^[a-z0-9][a-z0-9-]{0,30}$`
	arrayNamePattern = `^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$`
	luksNamePattern  = `^[A-Za-z0-9][A-Za-z0-9_.-]{0,47}$`
	lvmNamePattern   = `^[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,47}$`
	labelPattern     = `^[A-Za-z0-9][A-Za-z0-9 ._+:()#-]*$`
	secretPattern    = `^[a-z0-9][a-z0-9._-]{0,62}$`
	mountPattern     = `^/([A-Za-z0-9_@+][A-Za-z0-9._@+-]*(/[A-Za-z0-9_@+.][A-Za-z0-9._@+-]*)*)?$`
	optionPattern    = `^[A-Za-z0-9][A-Za-z0-9_.:=+@/-]{0,63}$`
	subvolumePattern = `^[A-Za-z0-9_@+][A-Za-z0-9._@+-]*(/[A-Za-z0-9_@+][A-Za-z0-9._@+-]*)*$`
	// refPattern is of the references that a layout's author writes; those of a plan are the same with numbers for partitions.
	refPattern  = `^(disk/[a-z0-9][a-z0-9-]{0,35}|part/[a-z0-9][a-z0-9-]{0,35}/[A-Za-z0-9][A-Za-z0-9 ._+:()#-]{0,35}|(md|luks)/[A-Za-z0-9][A-Za-z0-9_.-]{0,47}|lv/[A-Za-z0-9_+.-]{1,48}/[A-Za-z0-9_+.-]{1,48})$`
	guidPattern = `^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`
)

var (
	diskNameExpression  = regexp.MustCompile(diskNamePattern)
	arrayNameExpression = regexp.MustCompile(arrayNamePattern)
	luksNameExpression  = regexp.MustCompile(luksNamePattern)
	lvmNameExpression   = regexp.MustCompile(lvmNamePattern)
	labelExpression     = regexp.MustCompile(labelPattern)
	secretExpression    = regexp.MustCompile(secretPattern)
	mountExpression     = regexp.MustCompile(mountPattern)
	optionExpression    = regexp.MustCompile(optionPattern)
	subvolumeExpression = regexp.MustCompile(subvolumePattern)
	refExpression       = regexp.MustCompile(refPattern)
	guidExpression      = regexp.MustCompile(guidPattern)

	// mdadm takes such names of /dev/md/NAME for minor numbers (mdopen.c, create_mddev).
	arrayNumberExpression = regexp.MustCompile(`^(md_?)?d?[0-9]+$`)
	digitsExpression      = regexp.MustCompile(`^[0-9]+$`)
	// deviceNameExpression is of kernel names that a volume group of that name would collide with in /dev.
	deviceNameExpression = regexp.MustCompile(`^(sd[a-z]+|hd[a-z]+|vd[a-z]+|xvd[a-z]+|sr|st|loop|ram|zram|dm-|md|nvme|nbd|mmcblk|tty|pts|vcs|i2c-|tpm|rtc|watchdog|ipmi|mei|sg|fb|hidraw|ptp|mtd|ubi|uhid)[a-z0-9]*$`)
)

func checkDiskName(s string) error {
	if !diskNameExpression.MatchString(s) {
		return fmt.Errorf("%q: use 1 to 31 of a-z, 0-9 and -, beginning with a letter or a digit", clip(s))
	}
	return nil
}

func checkArrayName(s string) error {
	switch {
	case !arrayNameExpression.MatchString(s):
		return fmt.Errorf("%q: use 1 to 32 of A-Z, a-z, 0-9, _, . and -, beginning with a letter or a digit", clip(s))
	case arrayNumberExpression.MatchString(s):
		return fmt.Errorf("%q: mdadm takes this for a device number; use a word such as root", clip(s))
	}
	return nil
}

func checkLUKSName(s string) error {
	switch {
	case !luksNameExpression.MatchString(s):
		return fmt.Errorf("%q: use 1 to 48 of A-Z, a-z, 0-9, _, . and -, beginning with a letter or a digit", clip(s))
	case s == "control":
		return errors.New(`"control" is device-mapper's own; use another name`)
	}
	return nil
}

// checkLVMName follows lvm(8), "VALID NAMES".
func checkLVMName(s string) error {
	if !lvmNameExpression.MatchString(s) || s == "." || s == ".." {
		return fmt.Errorf("%q: use 1 to 48 of A-Z, a-z, 0-9, _, +, . and -, not beginning with -", clip(s))
	}
	return nil
}

func checkGroupName(s string) error {
	if err := checkLVMName(s); err != nil {
		return err
	}
	taken := []string{"block", "bsg", "bus", "char", "console", "core", "cpu", "disk", "dma_heap", "dri", "fd", "full", "fuse", "hugepages", "hwrng", "initctl", "input", "kmsg", "kvm",
		"log", "mapper", "mem", "mqueue", "net", "null", "nvram", "port", "ptmx", "pts", "random", "shm", "snd", "stderr", "stdin", "stdout", "urandom", "vfio", "zero"}
	if slices.Contains(taken, s) || deviceNameExpression.MatchString(s) {
		return fmt.Errorf("%q: /dev/%s is something else; use another name", s, s)
	}
	return nil
}

func checkVolumeName(s string) error {
	if err := checkLVMName(s); err != nil {
		return err
	}
	for _, prefix := range []string{"snapshot", "pvmove"} {
		if strings.HasPrefix(s, prefix) {
			return fmt.Errorf("%q: LVM keeps names that begin with %s; use another name", s, prefix)
		}
	}
	for _, part := range []string{"_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_imeta", "_iorig", "_mimage", "_mlog", "_pmspare", "_rimage", "_rmeta", "_tdata", "_tmeta", "_vdata", "_vorigin", "_wcorig"} {
		if strings.Contains(s, part) {
			return fmt.Errorf("%q: LVM keeps names with %s; use another name", s, part)
		}
	}
	return nil
}

// mapperName is the device-mapper's name of a logical volume: dashes are doubled so that the one between the names stands out.
func mapperName(group, volume string) string {
	return strings.ReplaceAll(group, "-", "--") + "-" + strings.ReplaceAll(volume, "-", "--")
}

// maxMapperName leaves room for the suffixes of a pool's parts; the kernel's limit is 127 (DM_NAME_LEN, dm-ioctl.h).
const maxMapperName = 110

// checkLabel checks a label of at most most characters, all of which are one byte and one UTF-16 unit.
func checkLabel(s string, most int) error {
	switch {
	case s == "":
		return nil
	case len(s) > most:
		return fmt.Errorf("%q has %d characters; at most %d fit", clip(s), len(s), most)
	case !labelExpression.MatchString(s) || strings.HasSuffix(s, " "):
		return fmt.Errorf("%q: use A-Z, a-z, 0-9, spaces within and any of ._+:()#-, beginning with a letter or a digit", clip(s))
	}
	return nil
}

// maxPartitionLabel is the room in a table's entry: 36 UTF-16 units (UEFI 2.10, table 5-7).
const maxPartitionLabel = 36

func checkPartitionLabel(s string) error {
	if digitsExpression.MatchString(s) {
		return fmt.Errorf("%q: a label of digits only would be taken for a partition's number; add a letter", clip(s))
	}
	return checkLabel(s, maxPartitionLabel)
}

// maxLabel of a format in bytes: mke2fs(8) -L, mkfs.xfs(8) -L, mkfs.btrfs(8) -L, mkfs.vfat(8) -n, mkswap(8) -L.
func maxLabel(format string) int {
	switch format {
	case FormatXFS:
		return 12
	case FormatVFAT:
		return 11
	case FormatBtrfs:
		return 255
	}
	return 16
}

// maxLUKSLabel is the room in a LUKS2 header (LUKS2 On-Disk Format Specification 1.1.2, section 2.1), its end included.
const maxLUKSLabel = 47

func checkMountPoint(s string) error {
	if len(s) > 255 || !mountExpression.MatchString(s) || path.Clean(s) != s {
		return fmt.Errorf("%q: use an absolute path without . and .., of A-Z, a-z, 0-9 and any of ._@+-", clip(s))
	}
	for _, kept := range []string{"/proc", "/sys", "/dev", "/run", "/etc", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"} {
		if s == kept || strings.HasPrefix(s, kept+"/") {
			return fmt.Errorf("%q: nothing can be mounted at or below %s before the system has started", s, kept)
		}
	}
	return nil
}

func checkMountOption(s string) error {
	if !optionExpression.MatchString(s) {
		return fmt.Errorf("%q: one option each, 1 to 64 of A-Z, a-z, 0-9 and any of _.:=+@/-, beginning with a letter or a digit", clip(s))
	}
	name, _, _ := strings.Cut(s, "=")
	switch name {
	case "bind", "rbind", "move", "remount", "loop", "offset", "sizelimit", "X-mount.mkdir", "x-initrd.mount":
		return fmt.Errorf("%q is not for a filesystem of a layout; leave it out", name)
	case "subvol", "subvolid":
		return fmt.Errorf("%q is set by subvolumes; leave it out", name)
	}
	return nil
}

func checkSubvolumeName(s string) error {
	if len(s) > 255 || !subvolumeExpression.MatchString(s) {
		return fmt.Errorf("%q: use a path without a leading slash, of A-Z, a-z, 0-9 and any of ._@+-", clip(s))
	}
	return nil
}

func checkSecretName(s string) error {
	if !secretExpression.MatchString(s) {
		return fmt.Errorf("%q: use 1 to 63 of a-z, 0-9, ., _ and -, beginning with a letter or a digit", clip(s))
	}
	return nil
}
