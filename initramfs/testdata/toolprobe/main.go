// Command toolprobe stands in for the agent in boot tests: it runs every tool of the image, checks the image's
// checksum list, loads drivers, and says OK or FAIL for each on the console.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// probes are command lines that show a tool to run; the exit code is the verdict.
var probes = []string{
	"busybox true", "mkfs.ext4 -V", "e2fsck -V", "fsck.ext4 -V", "resize2fs /none 2>&1 | grep resize2fs", "tune2fs 2>&1 | grep tune2fs", "dumpe2fs -V",
	"mkfs.xfs -V", "xfs_growfs -V", "xfs_repair -V", "btrfs --version", "mkfs.btrfs --version",
	"mkfs.vfat --help 2>&1 | grep -i usage", "fsck.vfat --help 2>&1 | grep -i usage", "mkswap --version",
	"mdadm --version", "mdmon --help 2>&1 | grep -i usage", "dmsetup version", "thin_check --version", "thin_dump --version", "thin_repair --version", "lvm version", "pvs", "lvs", "cryptsetup --version",
	"sgdisk --version", "sfdisk --version", "blkid -V", "wipefs --version", "lsblk --version", "partx --version", "blkdiscard --version",
	"nvme version", "smartctl --version", "hdparm -V", "stressapptest -s 1 -M 8 -m 1 -v 3",
	"modprobe xfs && grep -q crc32c_generic /proc/modules", "modprobe mlx5_core", "modprobe ice", "modprobe btrfs", "modprobe ext4", "modprobe vfat",
	"modprobe raid456", "modprobe dm-thin-pool", "modprobe dm-crypt", "modprobe ipmi_devintf", "modprobe virtio_rng",
	"modprobe virtio_net", "modprobe megaraid_sas", "modprobe mpt3sas", "modprobe overlay", "modprobe bonding", "modprobe 8021q",
	// The tools against real devices: a loop device with each filesystem, an md array, a LUKS volume.
	"modprobe loop && mkdir -p /mnt/t && dd if=/dev/zero of=/tmp/d bs=1M count=0 seek=120 && mkfs.ext4 -q -F /tmp/d && mount -o loop /tmp/d /mnt/t && umount /mnt/t && e2fsck -fn /tmp/d",
	"rm /tmp/d && dd if=/dev/zero of=/tmp/d bs=1M count=0 seek=320 && mkfs.xfs -q -f /tmp/d && mount -o loop /tmp/d /mnt/t && umount /mnt/t && xfs_repair -n /tmp/d",
	"rm /tmp/d && dd if=/dev/zero of=/tmp/d bs=1M count=0 seek=120 && mkfs.btrfs -q /tmp/d && mount -t btrfs -o loop /tmp/d /mnt/t && umount /mnt/t",
	"rm /tmp/d && dd if=/dev/zero of=/tmp/d bs=1M count=0 seek=40 && mkfs.vfat /tmp/d && mount -t vfat -o loop /tmp/d /mnt/t && umount /mnt/t && fsck.vfat -n /tmp/d",
	"dd if=/dev/zero of=/tmp/a bs=1M count=0 seek=24 && dd if=/dev/zero of=/tmp/b bs=1M count=0 seek=24 && losetup /dev/loop6 /tmp/a && losetup /dev/loop7 /tmp/b && " +
		"modprobe raid1 && mdadm --create /dev/md9 --run --level=1 --metadata=1.2 --raid-devices=2 /dev/loop6 /dev/loop7 && mdadm --detail /dev/md9 && mdadm --stop /dev/md9",
	"mkdir -p /run/cryptsetup && dd if=/dev/zero of=/tmp/c bs=1M count=0 seek=24 && losetup /dev/loop5 /tmp/c && echo -n secret | cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/loop5 - && " +
		"echo -n secret | cryptsetup open /dev/loop5 probe --key-file - && cryptsetup status probe && cryptsetup close probe",
	"dd if=/dev/zero of=/tmp/l bs=1M count=0 seek=24 && losetup /dev/loop4 /tmp/l && pvcreate -y /dev/loop4 && vgcreate vgp /dev/loop4 && lvcreate -y -Zn -L 8M -n lv vgp && lvs vgp && vgchange -an vgp",
	// A thin pool starts again only if LVM finds thin_check. Without udev LVM makes its nodes itself only if it is told to.
	"export DM_DISABLE_UDEV=1 && dd if=/dev/zero of=/tmp/m bs=1M count=0 seek=40 && losetup /dev/loop3 /tmp/m && vgcreate vgt /dev/loop3 && " +
		"lvcreate --config 'activation/udev_sync=0 activation/udev_rules=0' -y --type thin-pool -L 16M --poolmetadatasize 4M -n pool vgt && " +
		"vgchange --config activation/monitoring=0 -an vgt && vgchange --config activation/monitoring=0 -ay vgt && dmsetup status | grep thin-pool && vgchange -an vgt",
}

func main() {
	uptime, err := os.ReadFile("/proc/uptime")
	fmt.Printf("PROBE started uptime=%s %v\n", strings.Fields(string(uptime) + " ?")[0], err)
	if cmdline, err := os.ReadFile("/proc/cmdline"); err == nil && bytes.Contains(cmdline, []byte("probe=exit")) {
		return
	}
	if cmdline, err := os.ReadFile("/proc/cmdline"); err == nil && !bytes.Contains(cmdline, []byte("probe=start")) {
		verdict("checksums", checksums("/etc/bloomery/files.sha256"))
		for _, line := range probes {
			verdict(line, runProbe(line))
		}
	}
	config, err := os.ReadFile("/etc/bloomery/agent.json")
	fmt.Printf("PROBE config %s %v\n", bytes.TrimSpace(config), err)
	if mem, err := os.ReadFile("/proc/meminfo"); err == nil {
		for line := range strings.Lines(string(mem)) {
			if strings.HasPrefix(line, "MemAvailable") || strings.HasPrefix(line, "MemTotal") {
				fmt.Print("PROBE ", line)
			}
		}
	}
	fmt.Println("PROBE done")
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func verdict(what string, err error) {
	if err != nil {
		fmt.Printf("PROBE FAIL %s: %v\n", what, err)
		return
	}
	fmt.Printf("PROBE OK %s\n", what)
}

func runProbe(line string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "/bin/sh", "-c", line).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %q", err, out)
	}
	return nil
}

// checksums verifies a list as sha256sum writes it.
func checksums(list string) error {
	f, err := os.Open(list)
	if err != nil {
		return err
	}
	defer f.Close()
	n := 0
	for lines := bufio.NewScanner(f); lines.Scan(); n++ {
		want, name, _ := strings.Cut(lines.Text(), "  ")
		file, err := os.Open(name)
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, file)
		_ = file.Close()
		if err != nil {
			return err
		}
		if hex.EncodeToString(h.Sum(nil)) != want {
			return fmt.Errorf("%s differs", name)
		}
	}
	if n < 100 {
		return fmt.Errorf("only %d files listed", n)
	}
	return nil
}
