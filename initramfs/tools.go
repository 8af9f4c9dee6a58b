package initramfs

import (
	"fmt"
	"strings"
)

// toolsByPurpose are the programs of the sysroot that go into the image, with the libraries that they need.
var toolsByPurpose = []struct {
	purpose string
	paths   []string
}{
	{"shell and everyday commands of a rescue session", []string{"/bin/busybox"}},
	{"ext4", []string{"/sbin/mkfs.ext4", "/sbin/e2fsck", "/sbin/fsck.ext4", "/sbin/resize2fs", "/sbin/tune2fs", "/sbin/dumpe2fs"}},
	{"xfs", []string{"/sbin/mkfs.xfs", "/usr/sbin/xfs_growfs", "/sbin/xfs_repair"}},
	{"btrfs", []string{"/bin/btrfs", "/sbin/mkfs.btrfs"}},
	{"vfat", []string{"/sbin/mkfs.vfat", "/sbin/fsck.vfat"}},
	{"swap", []string{"/sbin/mkswap"}},
	{"md RAID", []string{"/sbin/mdadm", "/sbin/mdmon"}},
	{"device mapper, LVM, LUKS", []string{"/sbin/dmsetup", "/sbin/lvm", "/sbin/cryptsetup"}},
	{"thin pools, which LVM has checked before it starts one", []string{"/usr/sbin/pdata_tools", "/usr/sbin/thin_check", "/usr/sbin/thin_dump", "/usr/sbin/thin_repair"}},
	{"partition tables and signatures", []string{"/sbin/sgdisk", "/sbin/sfdisk", "/sbin/blkid", "/sbin/wipefs", "/bin/lsblk", "/usr/bin/partx", "/sbin/blkdiscard"}},
	{"health of disks", []string{"/usr/sbin/nvme", "/usr/sbin/smartctl", "/sbin/hdparm"}},
	{"burn-in", []string{"/usr/bin/stressapptest"}},
}

// toolLibraries are opened at run time by name, so that no DT_NEEDED tells of them: glibc loads libgcc_s when a thread
// is cancelled or ends.
var toolLibraries = []string{"libgcc_s.so.1"}

// toolData are files that the tools read.
var toolData = []string{"/etc/mke2fs.conf"}

// lvmCommands are the names under which lvm runs its subcommands.
var lvmCommands = []string{
	"pvcreate", "pvs", "pvdisplay", "pvremove", "pvresize", "pvscan", "vgcreate", "vgs", "vgdisplay", "vgremove", "vgextend",
	"vgreduce", "vgchange", "vgscan", "vgrename", "vgck", "lvcreate", "lvs", "lvdisplay", "lvremove", "lvextend", "lvreduce",
	"lvresize", "lvchange", "lvconvert", "lvrename", "lvscan",
}

// busyboxApplets get a link of their own: what a rescue session types, and modprobe, which the kernel calls.
var busyboxApplets = []string{
	"/bin/ash", "/bin/cat", "/bin/chgrp", "/bin/chmod", "/bin/chown", "/bin/cp", "/bin/cpio", "/bin/date", "/bin/dd", "/bin/df",
	"/bin/dmesg", "/bin/echo", "/bin/false", "/bin/grep", "/bin/gunzip", "/bin/gzip", "/bin/hostname", "/bin/kill", "/bin/ln",
	"/bin/ls", "/bin/mkdir", "/bin/mknod", "/bin/more", "/bin/mount", "/bin/mv", "/bin/ping", "/bin/ps", "/bin/pwd", "/bin/rm", "/bin/rmdir",
	"/bin/sed", "/bin/sh", "/bin/sleep", "/bin/stty", "/bin/sync", "/bin/tar", "/bin/touch", "/bin/true", "/bin/umount", "/bin/uname",
	"/bin/vi", "/bin/zcat",
	"/sbin/blockdev", "/sbin/hwclock", "/sbin/ifconfig", "/sbin/insmod", "/sbin/ip", "/sbin/losetup",
	"/sbin/lsmod", "/sbin/modinfo", "/sbin/modprobe", "/sbin/pivot_root", "/sbin/poweroff", "/sbin/reboot", "/sbin/rmmod", "/sbin/route",
	"/sbin/swapoff", "/sbin/swapon", "/sbin/switch_root", "/sbin/sysctl",
	"/usr/bin/awk", "/usr/bin/basename", "/usr/bin/bunzip2", "/usr/bin/bzcat", "/usr/bin/chvt", "/usr/bin/clear", "/usr/bin/cmp",
	"/usr/bin/cut", "/usr/bin/diff", "/usr/bin/dirname", "/usr/bin/du", "/usr/bin/env", "/usr/bin/expr", "/usr/bin/find",
	"/usr/bin/free", "/usr/bin/head", "/usr/bin/hexdump", "/usr/bin/id", "/usr/bin/killall", "/usr/bin/less", "/usr/bin/logger",
	"/usr/bin/md5sum", "/usr/bin/mkfifo", "/usr/bin/nc", "/usr/bin/nslookup", "/usr/bin/od", "/usr/bin/printf", "/usr/bin/realpath",
	"/usr/bin/readlink", "/usr/bin/reset", "/usr/bin/seq", "/usr/bin/sha256sum", "/usr/bin/sort", "/usr/bin/stat", "/usr/bin/strings",
	"/usr/bin/tail", "/usr/bin/tee", "/usr/bin/telnet", "/usr/bin/test", "/usr/bin/time", "/usr/bin/timeout", "/usr/bin/top",
	"/usr/bin/tr", "/usr/bin/traceroute", "/usr/bin/tty", "/usr/bin/uniq", "/usr/bin/uptime", "/usr/bin/wc", "/usr/bin/wget",
	"/usr/bin/which", "/usr/bin/whoami", "/usr/bin/xargs", "/usr/bin/xxd", "/usr/bin/xz", "/usr/bin/xzcat", "/usr/bin/yes",
	"/usr/sbin/chroot",
}

// addTools puts every tool, its libraries and its links into the tree; a missing one is an error.
func addTools(s *sysrootFiles) error {
	for _, group := range toolsByPurpose {
		for _, name := range group.paths {
			if err := s.add(name); err != nil {
				return fmt.Errorf("tools for %s: %w", group.purpose, err)
			}
		}
	}
	for _, soname := range toolLibraries {
		file, err := s.library(soname)
		if err != nil {
			return fmt.Errorf("add library %s: %w", soname, err)
		}
		if err := s.add(file); err != nil {
			return err
		}
	}
	for _, name := range toolData {
		if err := s.add(name); err != nil {
			return err
		}
	}
	for _, name := range lvmCommands {
		if err := s.tree.link("sbin/"+name, "lvm", s.origins["sbin/lvm"]); err != nil {
			return err
		}
	}
	for _, name := range busyboxApplets {
		if _, taken := s.tree.entries[strings.TrimPrefix(name, "/")]; taken {
			return fmt.Errorf("busybox applet %s would hide a tool of that name", name)
		}
		if err := s.tree.link(strings.TrimPrefix(name, "/"), "/bin/busybox", s.origins["bin/busybox"]); err != nil {
			return err
		}
	}
	return nil
}
