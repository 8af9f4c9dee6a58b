package system

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"

	"bloomery/internal/run"
	"bloomery/partition/layout"
)

// Options say what Configure configures. All but CommandLine and, without encrypted volumes, Secrets, Runner and OpenTPM must be set.
type Options struct {
	Plan *layout.Plan
	// Kernel and Initrd are paths in the image; CommandLine is what its kernel wants beside the root.
	Kernel, Initrd, CommandLine string
	// Secrets of the job by name; see layout.LUKSPlan.
	Secrets map[string][]byte
	// Device gives the path of a plan's object.
	Device func(layout.Ref) (string, error)
	Runner run.Runner
	// OpenTPM opens the machine's TPM 2.0; nil where there is none.
	OpenTPM func() (transport.TPMCloser, error)
}

// Boot says how the configured system starts.
type Boot struct {
	// Kernel, Initrd and CommandLine are for a kexec: paths in the tree, links followed.
	Kernel, Initrd, CommandLine string
	// Loaders are one for each EFI system partition; all hold the same.
	Loaders []Loader
}

// Configure makes the tree at root, unpacked and with all of the plan's filesystems mounted in it, boot from the plan's disks: fstab, crypttab
// with key files, mdadm.conf, GRUB on each EFI system partition, and the same for the initial RAM filesystem, appended to it as an archive of its
// own. Volumes that the TPM opens are bound to it. It can be run again: what is done already stays as it is.
func Configure(ctx context.Context, root string, o Options) (Boot, error) {
	boot, err := configure(ctx, root, o)
	if err != nil {
		return Boot{}, fmt.Errorf("configure the system: %w", err)
	}
	return boot, nil
}

func configure(ctx context.Context, path string, o Options) (Boot, error) {
	if o.Plan == nil || o.Kernel == "" || o.Initrd == "" {
		return Boot{}, errors.New("plan, kernel and initial RAM filesystem must be set")
	}
	if !o.Plan.UEFI {
		return Boot{}, errors.New("the plan is for a machine that starts through a BIOS; the image's boot loader is one for UEFI")
	}
	// What the tables are made of is checked again: nothing below quotes.
	if _, err := o.Plan.Encode(); err != nil {
		return Boot{}, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return Boot{}, err
	}
	defer root.Close()
	var boot Boot
	if boot.Kernel, err = follow(root, o.Kernel); err != nil {
		return Boot{}, fmt.Errorf("find the kernel: %w", err)
	}
	if boot.Initrd, err = follow(root, o.Initrd); err != nil {
		return Boot{}, fmt.Errorf("find the initial RAM filesystem: %w", err)
	}
	if boot.CommandLine, err = commandLine(o.Plan, o.CommandLine); err != nil {
		return Boot{}, err
	}
	vendor, title := release(root)
	menu, err := grubMenu(o.Plan, title, boot.Kernel, boot.Initrd, boot.CommandLine)
	if err != nil {
		return Boot{}, err
	}
	if err := bindVolumes(ctx, o); err != nil {
		return Boot{}, err
	}
	if err := writeTables(root, o); err != nil {
		return Boot{}, err
	}
	early, err := earlyFiles(o)
	if err != nil {
		return Boot{}, err
	}
	if err := appendSegment(root, boot.Initrd, early); err != nil {
		return Boot{}, fmt.Errorf("add to the initial RAM filesystem: %w", err)
	}
	if err := writeFile(root, "/boot/grub/grub.cfg", []byte(menu), 0o600); err != nil {
		return Boot{}, fmt.Errorf("write the boot loader's menu: %w", err)
	}
	if boot.Loaders, err = writeLoader(root, o.Plan, vendor); err != nil {
		return Boot{}, err
	}
	unix.Sync() // the plan's filesystems are the only ones of the machine that are written to
	return boot, ctx.Err()
}

// grownByLayout keeps cloud-init from growing partitions and filesystems: their sizes are the layout's.
const grownByLayout = "# The disks' layout is as it was asked for.\ngrowpart: {mode: \"off\"}\nresize_rootfs: false\n"

// writeTables writes what the installed system reads of its disks.
func writeTables(root *os.Root, o Options) error {
	p := o.Plan
	type file struct {
		name, content string
		mode          os.FileMode
	}
	files := []file{
		{"/etc/fstab", fstab(p), 0o644},
		{"/etc/cloud/cloud.cfg.d/91-bloomery-layout.cfg", grownByLayout, 0o644},
	}
	if len(p.LUKS) > 0 {
		files = append(files, file{"/etc/crypttab", crypttab(p), 0o644})
	}
	if len(p.Arrays) > 0 {
		files = append(files, file{"/etc/mdadm/mdadm.conf", mdadmConf(p), 0o644})
	}
	for _, f := range files {
		if err := writeFile(root, f.name, []byte(f.content), f.mode); err != nil {
			return fmt.Errorf("write %s: %w", f.name, err)
		}
	}
	for _, v := range p.LUKS {
		if !hasKeyFile(v) {
			continue
		}
		key, err := generatedKey(o, v)
		if err != nil {
			return err
		}
		if err := root.MkdirAll(inside(keyFolder), 0o700); err != nil {
			return fmt.Errorf("make the folder of key files: %w", err)
		}
		if err := root.Chmod(inside(keyFolder), 0o700); err != nil {
			return fmt.Errorf("make the folder of key files: %w", err)
		}
		if err := writeFile(root, keyFolder+"/"+v.Name+".key", key, 0o400); err != nil {
			return fmt.Errorf("write the key file of %s: %w", v.Name, err)
		}
	}
	return nil
}

// generatedKey is the key that a key file holds and that a TPM guards.
func generatedKey(o Options, v layout.LUKSPlan) ([]byte, error) {
	key := o.Secrets["luks/"+v.Name]
	if len(key) == 0 {
		return nil, fmt.Errorf("volume %s needs the secret %q, which the job has not", v.Name, "luks/"+v.Name)
	}
	return key, nil
}

// earlyFiles are what update-initramfs would put into the initial RAM filesystem for this plan.
func earlyFiles(o Options) ([]earlyFile, error) {
	p := o.Plan
	var files []earlyFile
	if len(p.Arrays) > 0 {
		files = append(files, earlyFile{"etc/mdadm/mdadm.conf", 0o644, []byte(mdadmConf(p))})
	}
	if table := earlyCrypttab(p); table != "" {
		files = append(files, earlyFile{"cryptroot/crypttab", 0o644, []byte(table)})
	}
	for _, v := range p.LUKS {
		if !hasKeyFile(v) || !opensEarly(p, v) {
			continue
		}
		key, err := generatedKey(o, v)
		if err != nil {
			return nil, err
		}
		files = append(files, earlyFile{"cryptroot/keyfiles/" + v.Name + ".key", 0o400, key})
	}
	return files, nil
}

// release gives the name of the folder that the image's signed loaders have built in, and what a menu calls the system, by os-release(5).
func release(root *os.Root) (vendor, title string) {
	vendor, title = "debian", "GNU/Linux"
	text, err := readCapped(root, "/usr/lib/os-release", maxOSRelease)
	if err != nil {
		return vendor, title // Debian's loaders are the ones that are looked for
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, `"'`)
		switch {
		case key == "ID" && slices.Contains([]string{"debian", "ubuntu"}, value):
			vendor = value
		case key == "PRETTY_NAME" && titleExpression().MatchString(value):
			title = value
		}
	}
	return vendor, title
}

// titleExpression keeps a title from meaning anything to GRUB's scripts.
func titleExpression() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9 ./()+_-]{1,80}$`) }
