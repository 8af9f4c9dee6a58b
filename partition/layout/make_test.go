package layout

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// twoNVMe are the disks of the machine whose default layout Scaleway recorded.
func twoNVMe() []Disk {
	return []Disk{
		{Name: "nvme0n1", Serial: "S64GNS0T000001", WWN: "eui.0025385b11b0aa01", ByPath: "pci-0000:01:00.0-nvme-1", Model: "SAMSUNG MZQL21T9HCJR-00A07", Transport: "nvme", SizeBytes: 1920383410176, LogicalSector: 512, PhysicalSector: 4096},
		{Name: "nvme1n1", Serial: "S64GNS0T000002", WWN: "eui.0025385b11b0aa02", ByPath: "pci-0000:02:00.0-nvme-1", Model: "SAMSUNG MZQL21T9HCJR-00A07", Transport: "nvme", SizeBytes: 1920383410176, LogicalSector: 512, PhysicalSector: 4096},
	}
}

func uefi() Target { return Target{UEFI: true, TPM2: true, Seed: "job-1"} }

func parse(t *testing.T, text string) *Layout {
	t.Helper()
	l, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func plan(t *testing.T, text string, disks []Disk) *Plan {
	t.Helper()
	p, err := MakePlan(parse(t, text), disks, uefi())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const raid1 = `
format: bloomery.layout/v1
disks:
  - name: d
    select: {pick: smallest, transport: nvme, count: 2}
    partitions:
      - {label: efi, type: esp, size: 512MiB}
      - {label: root, size: rest}
raids:
  - {name: efi, level: 1, members: [part/d/efi]}
  - {name: root, level: 1, members: [part/d/root]}
filesystems:
  - {device: md/efi, format: vfat, mount_point: /boot/efi}
  - {device: md/root, format: ext4, mount_point: /}
`

func TestRAID1OfTwoDisks(t *testing.T) {
	p := plan(t, raid1, twoNVMe())
	if len(p.Disks) != 2 || p.Disks[0].Serial != "S64GNS0T000001" || p.Disks[1].Name != "d-1" {
		t.Errorf("disks: %+v", p.Disks)
	}
	efi, root := p.Arrays[0], p.Arrays[1]
	if efi.Metadata != "1.0" || root.Metadata != "1.2" {
		t.Errorf("metadata %s and %s, want 1.0 for the ESP and 1.2 for the root", efi.Metadata, root.Metadata)
	}
	if diff := cmp.Diff([]Ref{"part/d-0/2", "part/d-1/2"}, root.Members); diff != "" {
		t.Errorf("members (-want +got)\n%s", diff)
	}
	part := p.Disks[0].Partitions[1]
	if part.Type != typeRAID || part.StartBytes != 513*mib || part.StartBytes+part.SizeBytes > 1920383410176-33*512 {
		t.Errorf("root's partition: %+v", part)
	}
	if len(p.Warnings) > 0 {
		t.Errorf("warnings: %q", p.Warnings)
	}
}

func TestPlansAreEncodedAndReadAgain(t *testing.T) {
	p := plan(t, raid1, twoNVMe())
	data, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := DecodePlan(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, again); diff != "" {
		t.Errorf("plan (-made +read)\n%s", diff)
	}
	if diff := cmp.Diff(p, plan(t, raid1, twoNVMe())); diff != "" {
		t.Errorf("the same layout, disks and seed make another plan (-first +second)\n%s", diff)
	}
}

func TestDefaultCanBePlanned(t *testing.T) {
	if _, err := MakePlan(Default(), twoNVMe(), uefi()); err != nil {
		t.Error(err)
	}
}

// problems of err by path and reason.
func problems(err error) []string {
	var all Problems
	errors.As(err, &all)
	var lines []string
	for _, p := range all {
		lines = append(lines, p.Path+" "+p.Reason)
	}
	return lines
}

func wantProblem(t *testing.T, err error, path, reason, says string) {
	t.Helper()
	if err == nil {
		t.Fatal("nothing was refused")
	}
	if !slices.Contains(problems(err), path+" "+reason) {
		t.Errorf("problems %q, want %q", problems(err), path+" "+reason)
	}
	if !strings.Contains(err.Error(), says) {
		t.Errorf("error %q, want it to say %q", err, says)
	}
}

func TestUnknownDisk(t *testing.T) {
	l := parse(t, strings.Replace(raid1, "{pick: smallest, transport: nvme, count: 2}", "{pick: smallest, transport: nvme, count: 3}", 1))
	_, err := MakePlan(l, twoNVMe(), uefi())
	wantProblem(t, err, "disks[0].select", ReasonDiskNotFound, "3 disk(s) wanted, 2 match; it has nvme0n1 (serial S64GNS0T000001) nvme 1.7 TiB")
}

// disk is one of the machine's disks with other traits than the first of twoNVMe.
func disk(name string, size int64, change ...func(*Disk)) Disk {
	d := Disk{Name: name, Serial: "serial-" + name, ByPath: "path-" + name, Model: "Disk", Transport: "nvme", SizeBytes: size, LogicalSector: 512, PhysicalSector: 512}
	for _, c := range change {
		c(&d)
	}
	return d
}
