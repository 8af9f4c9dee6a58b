package layout

import (
	"fmt"
	"slices"
	"strings"
)

// Actions are the steps that carry the plan out, each after what it stands on. They are the same whenever they are asked for.
func (p *Plan) Actions() []Action {
	var all []Action
	add := func(kind string, target Ref, destroys bool, format string, args ...any) {
		all = append(all, Action{ID: kind + "/" + string(target), Kind: kind, Target: target, Destroys: destroys, Text: fmt.Sprintf(format, args...)})
	}
	for _, d := range p.Disks {
		add(ActionStop, diskRef(d.Name), false, "stop whatever uses disk %s (%s)", d.Name, d.about())
	}
	for _, d := range p.Disks {
		add(ActionErase, diskRef(d.Name), true, "remove every partition and signature on disk %s (%s, %s)", d.Name, d.about(), bytesText(d.SizeBytes))
	}
	for _, d := range p.Disks {
		if d.Table {
			add(ActionTable, diskRef(d.Name), true, "write a GUID partition table with %d partition(s) to disk %s", len(d.Partitions), d.Name)
		}
	}
	for _, a := range p.Arrays {
		spares := ""
		if len(a.Spares) > 0 {
			spares = fmt.Sprintf(" and %d spare(s)", len(a.Spares))
		}
		add(ActionArray, arrayRef(a.Name), false, "make RAID %d md/%s of %s%s, %s", a.Level, a.Name, refsText(a.Members), spares, bytesText(a.SizeBytes))
	}
	for _, ref := range p.stacked() {
		kind, names := ref.split()
		if kind == "luks" {
			v := p.luks(names[0])
			add(ActionEncrypt, ref, false, "encrypt %s as luks/%s, opened by %s, %s", v.Device, v.Name, strings.Join(v.Unlock, " or "), bytesText(v.SizeBytes))
			continue
		}
		g := p.group(names[0])
		add(ActionGroup, ref, false, "make volume group %s of %s, %s", g.Name, refsText(g.Devices), bytesText(g.SizeBytes))
		for _, v := range g.Volumes {
			add(ActionVolume, volumeRef(g.Name, v.Name), false, "make %s", g.volumeText(v))
		}
	}
	for _, f := range p.Files {
		add(ActionFilesystem, f.Device, false, "make %s", f.text())
	}
	return all
}

// groupRef names a volume group as an action's target; nothing stands on it by itself.
func groupRef(name string) Ref { return Ref("vg/" + name) }

// stacked are LUKS volumes and volume groups, each after what it stands on; those that stand on themselves are left out.
func (p *Plan) stacked() []Ref {
	var done []Ref
	ready := func(ref Ref) bool {
		kind, names := ref.split()
		switch kind {
		case "luks":
			return slices.Contains(done, ref)
		case "lv":
			return slices.Contains(done, groupRef(names[0]))
		}
		return true
	}
	for before := -1; before < len(done); {
		before = len(done)
		for _, v := range p.LUKS {
			if ref := luksRef(v.Name); !slices.Contains(done, ref) && ready(v.Device) {
				done = append(done, ref)
			}
		}
		for _, g := range p.Groups {
			if ref := groupRef(g.Name); !slices.Contains(done, ref) && !slices.ContainsFunc(g.Devices, func(r Ref) bool { return !ready(r) }) {
				done = append(done, ref)
			}
		}
	}
	return done
}

func (p *Plan) luks(name string) LUKSPlan {
	i := slices.IndexFunc(p.LUKS, func(v LUKSPlan) bool { return v.Name == name })
	return p.LUKS[i]
}

func (p *Plan) group(name string) GroupPlan {
	i := slices.IndexFunc(p.Groups, func(g GroupPlan) bool { return g.Name == name })
	return p.Groups[i]
}

// GeneratedSecrets are the names of the keys that are made for the plan: random bytes that open its volumes without a passphrase.
func (p *Plan) GeneratedSecrets() []string {
	var names []string
	for _, v := range p.LUKS {
		if slices.Contains(v.Unlock, UnlockKeyFile) || slices.Contains(v.Unlock, UnlockTPM2) {
			names = append(names, "luks/"+v.Name)
		}
	}
	return names
}

// AskedSecrets are the names of the passphrases that whoever asks for the install has to give, each once.
func (p *Plan) AskedSecrets() []string {
	var names []string
	for _, v := range p.LUKS {
		if v.Secret != "" && !slices.Contains(names, v.Secret) {
			names = append(names, v.Secret)
		}
	}
	return names
}

// about says which of the machine's disks it is.
func (d DiskPlan) about() string {
	if d.Serial != "" {
		return "serial " + d.Serial
	}
	return "wwn " + d.WWN
}

func (g GroupPlan) volumeText(v VolumePlan) string {
	text := fmt.Sprintf("%s volume lv/%s/%s, %s", v.Kind, g.Name, v.Name, bytesText(v.SizeBytes))
	switch v.Kind {
	case VolumeStriped:
		text += fmt.Sprintf(" over %d stripes of %s", v.Stripes, bytesText(v.StripeBytes))
	case VolumeThinPool:
		text = fmt.Sprintf("thin pool lv/%s/%s, %s", g.Name, v.Name, bytesText(v.SizeBytes))
	case VolumeThin:
		text += " in " + v.Pool
	}
	return text
}

func (f FilesystemPlan) text() string {
	text := fmt.Sprintf("%s on %s, %s", f.Format, f.Device, bytesText(f.SizeBytes))
	if f.Label != "" {
		text += fmt.Sprintf(", label %q", f.Label)
	}
	if f.MountPoint != "" {
		text += ", mounted at " + f.MountPoint
	}
	for _, s := range f.Subvolumes {
		text += ", subvolume " + s.Name
		if s.MountPoint != "" {
			text += " at " + s.MountPoint
		}
	}
	return text
}

func refsText(refs []Ref) string {
	var all []string
	for _, r := range refs {
		all = append(all, string(r))
	}
	return strings.Join(all, ", ")
}
