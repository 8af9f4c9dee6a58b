package coordinator

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/images"
	"bloomery/partition/layout"
)

const (
	// minPassphrase and maxPassphrase bound what opens an encrypted volume, in bytes: cryptsetup(8) reads no more than 512 from a console.
	minPassphrase = 8
	maxPassphrase = 512
	// generatedKey is the size of a key that is made for a volume, in bytes.
	generatedKey = 64
	// maxSecrets is more than a layout can have volumes for.
	maxSecrets = 64
)

// planInstall is what an install makes of the machine's disks, or why it cannot be; nil for a disk image, which brings its own partitions. It
// touches nothing.
func planInstall(m *bloomeryv1.Machine, spec *bloomeryv1.InstallSpec, f Facts) (*layout.Plan, error) {
	image, err := findImage(spec.GetImage(), f.Images)
	if err != nil {
		return nil, err
	}
	if image.Kind != images.KindRootfs {
		switch {
		case len(spec.GetLayout()) > 0:
			return nil, invalid("spec.layout", "NEEDS_ROOTFS", "image %s is that of a disk, with partitions of its own: want a rootfs image, or no layout", image.Name)
		case len(spec.GetSecrets()) > 0:
			return nil, invalid("spec.secrets", "NOT_USED", "secrets are a layout's, and image %s takes none", image.Name)
		}
		return nil, nil
	}
	want, err := layoutOf(spec)
	if err != nil {
		return nil, err
	}
	machine, err := layoutMachine(m)
	if err != nil {
		return nil, err
	}
	if !machine.BIOS.UEFI {
		return nil, notNow("spec.image", "NEEDS_UEFI", "machine %s started through a BIOS at its last inspection, and rootfs images start through UEFI only", m.GetName())
	}
	target := machine.Target()
	target.Stacks, target.RootBytes, target.Seed = image.stacks(), image.SizeBytes, f.JobID
	plan, err := layout.MakePlan(want, machine.Disks, target)
	if err != nil {
		return nil, layoutRefusal(err)
	}
	if err := checkSecrets(plan, spec.GetSecrets()); err != nil {
		return nil, err
	}
	return plan, nil
}

// stacks is never nil: an image that lists none can stand on a plain partition only.
func (i ImageFacts) stacks() []string { return append([]string{}, i.RootStacks...) }

// layoutOf is the layout that was asked for: the given one, or the default on the given disk.
func layoutOf(spec *bloomeryv1.InstallSpec) (*layout.Layout, error) {
	serial, wwn := spec.GetDisk().GetSerial(), spec.GetDisk().GetWwn()
	if len(spec.GetLayout()) == 0 {
		l := layout.Default()
		switch {
		case serial != "" && wwn != "":
			return nil, invalid("spec.disk", "TWO_NAMES", "want the serial number or the WWN of a disk for a rootfs image")
		case serial != "":
			l.Disks[0].Select = layout.Select{Serial: serial}
		case wwn != "":
			l.Disks[0].Select = layout.Select{WWN: wwn}
		}
		return l, nil
	}
	if serial != "" || wwn != "" {
		return nil, invalid("spec.disk", "LAYOUT_CHOOSES", "the layout chooses the disks: leave this out, or say it there")
	}
	l, err := layout.Parse(spec.GetLayout())
	if err != nil {
		return nil, layoutRefusal(err)
	}
	return l, nil
}

func layoutMachine(m *bloomeryv1.Machine) (layout.Hardware, error) {
	if m.GetInventory() == nil {
		return layout.Hardware{}, notNow("spec.layout", "DISK_NOT_FOUND", "no disk of machine %s is known: inspect it first", m.GetName())
	}
	data, err := m.GetInventory().MarshalJSON()
	if err != nil {
		return layout.Hardware{}, fmt.Errorf("encode the inventory of machine %s: %w", m.GetName(), err)
	}
	found, err := layout.DecodeHardware(data)
	if err != nil {
		return found, notNow("spec.layout", "INVENTORY_UNREADABLE", "the inventory of machine %s has another form than this coordinator's (%v): inspect it again", m.GetName(), err)
	}
	return found, nil
}

// layoutRefusal gives each problem of a layout its place in the request.
func layoutRefusal(err error) error {
	var problems layout.Problems
	if !errors.As(err, &problems) || len(problems) == 0 {
		return fmt.Errorf("plan the layout: %w", err)
	}
	var all Refusals
	for _, p := range problems {
		field := "spec.layout"
		if p.Path != "" {
			field += "." + p.Path
		}
		r := invalid(field, p.Reason, "%s", p.Message)
		if p.Line > 0 {
			r.Message += fmt.Sprintf(" (line %d)", p.Line)
		}
		all = append(all, r)
	}
	return all
}

// checkSecrets wants exactly the passphrases that a plan asks for. No refusal says more of one than its name and its length.
func checkSecrets(plan *layout.Plan, given map[string][]byte) error {
	if len(given) > maxSecrets {
		return invalid("spec.secrets", "TOO_MANY", "%d secrets are more than %d", len(given), maxSecrets)
	}
	asked := plan.AskedSecrets()
	var all Refusals
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !slices.Contains(asked, name) {
			all = append(all, invalid("spec.secrets", "NOT_USED", "no volume of the layout is opened with secret %q; it asks for %s", clip(name), list(asked)))
		}
	}
	for _, name := range asked {
		field, value := fmt.Sprintf("spec.secrets[%s]", name), given[name]
		switch {
		case len(value) == 0:
			all = append(all, invalid(field, "REQUIRED", "the layout opens a volume with this passphrase: give it"))
		case len(value) < minPassphrase || len(value) > maxPassphrase:
			all = append(all, invalid(field, "LENGTH", "%d bytes: want %d to %d", len(value), minPassphrase, maxPassphrase))
		case !utf8.Valid(value) || strings.ContainsFunc(string(value), unicode.IsControl):
			all = append(all, invalid(field, "NOT_TYPEABLE", "a passphrase is typed on a console: want text without control characters and line ends"))
		}
	}
	if len(all) > 0 {
		return all
	}
	return nil
}

// jobSecrets are those that were given, and the keys that are made for this job.
func jobSecrets(plan *layout.Plan, given map[string][]byte) (map[string][]byte, error) {
	all := maps.Clone(given)
	for _, name := range plan.GeneratedSecrets() {
		key := make([]byte, generatedKey)
		if _, err := rand.Read(key); err != nil {
			return nil, fmt.Errorf("make key %s: %w", name, err)
		}
		if all == nil {
			all = map[string][]byte{}
		}
		all[name] = key
	}
	return all, nil
}
