package layout

// Format is the value of a layout's format field.
const Format = "bloomery.layout/v1"

// Limits of a layout.
const (
	// MaxLayoutSize is the longest document that is read, in bytes.
	MaxLayoutSize = 64 << 10

	maxDisks       = 64
	maxPartitions  = 128 // entries of a GUID partition table as every system makes it
	maxArrays      = 32
	maxVolumes     = 32
	maxGroups      = 16
	maxVolumesEach = 64
	maxFilesystems = 128
	maxSubvolumes  = 64
	maxOptions     = 16
	maxMembers     = 64
)

// Layout is the desired state of a machine's disks.
type Layout struct {
	Format      string           `json:"format"`
	Disks       []DiskSpec       `json:"disks"`
	RAIDs       []RAIDSpec       `json:"raids,omitempty"`
	LUKS        []LUKSSpec       `json:"luks,omitempty"`
	Groups      []GroupSpec      `json:"volume_groups,omitempty"`
	Filesystems []FilesystemSpec `json:"filesystems,omitempty"`

	// Origin says what the layout was converted from: "scaleway", "equinix", or "" for a layout of our own format.
	Origin string `json:"-"`
}

// DiskSpec chooses a disk, or several alike, and says what is on it. With select.count there are several: name-0, name-1 and so on.
type DiskSpec struct {
	Name   string `json:"name"`
	Select Select `json:"select"`
	// Partitions in the order in which they lie on the disk; without any, the whole disk is a member of something.
	Partitions []PartitionSpec `json:"partitions,omitempty"`
}

// Select chooses disks: exactly one of serial, wwn, by_path, device and pick.
type Select struct {
	Serial string `json:"serial,omitempty"`
	WWN    string `json:"wwn,omitempty"`
	ByPath string `json:"by_path,omitempty"`
	// Device is a kernel name such as /dev/nvme1n1, taken by order: see docs/layouts.md.
	Device string `json:"device,omitempty"`
	// Pick is "smallest", "largest" or "any" of the disks that the fields below let through.
	Pick       string `json:"pick,omitempty"`
	Rotational *bool  `json:"rotational,omitempty"`
	// Transport is the inventory's: nvme, sata, sas, scsi, virtio, usb or mmc.
	Transport string `json:"transport,omitempty"`
	MinSize   *Size  `json:"min_size,omitempty"`
	MaxSize   *Size  `json:"max_size,omitempty"`
	// Model is a glob: * stands for any text, ? for one character.
	Model string `json:"model,omitempty"`
	// Count of disks; they are called name-0, name-1 and so on, even where it is 1.
	Count int `json:"count,omitempty"`
}

// PartitionSpec is a partition.
type PartitionSpec struct {
	// Number in the table; the next free one unless given.
	Number int    `json:"number,omitempty"`
	Label  string `json:"label,omitempty"`
	// Type is a name or a GUID; what stands on the partition decides unless given.
	Type string `json:"type,omitempty"`
	// Attributes are names of bits of the entry.
	Attributes []string `json:"attributes,omitempty"`
	// Alignment of its start, 1 MiB unless given.
	Alignment *Size `json:"alignment,omitempty"`
	Size      Size  `json:"size"`
}

// RAIDSpec is an md array.
type RAIDSpec struct {
	Name     string   `json:"name"`
	Level    int      `json:"level"`
	Metadata string   `json:"metadata,omitempty"`
	Members  []string `json:"members"`
	Spares   []string `json:"spares,omitempty"`
	Chunk    *Size    `json:"chunk,omitempty"`
}

// LUKSSpec is an encrypted volume.
type LUKSSpec struct {
	Name   string `json:"name"`
	Device string `json:"device"`
	Label  string `json:"label,omitempty"`
	// Unlock are ways to open it: key-file, passphrase, tpm2.
	Unlock []string `json:"unlock"`
	// Secret names the passphrase.
	Secret     string `json:"secret,omitempty"`
	SectorSize int    `json:"sector_size,omitempty"`
}

// GroupSpec is an LVM volume group.
type GroupSpec struct {
	Name       string       `json:"name"`
	Devices    []string     `json:"devices"`
	ExtentSize *Size        `json:"extent_size,omitempty"`
	Volumes    []VolumeSpec `json:"volumes"`
}

// VolumeSpec is a logical volume.
type VolumeSpec struct {
	Name string `json:"name"`
	// Kind is linear unless given; striped, thin-pool, thin.
	Kind string `json:"kind,omitempty"`
	Size Size   `json:"size"`
	// Stripes of a striped volume, over all the group's devices unless given.
	Stripes    int   `json:"stripes,omitempty"`
	StripeSize *Size `json:"stripe_size,omitempty"`
	// Pool of a thin volume.
	Pool string `json:"pool,omitempty"`
}

// FilesystemSpec is a filesystem or swap space.
type FilesystemSpec struct {
	Device      string          `json:"device"`
	Format      string          `json:"format"`
	Label       string          `json:"label,omitempty"`
	MountPoint  string          `json:"mount_point,omitempty"`
	Options     []string        `json:"options,omitempty"`
	MakeOptions []string        `json:"make_options,omitempty"`
	Subvolumes  []SubvolumeSpec `json:"subvolumes,omitempty"`
}

// SubvolumeSpec is a btrfs subvolume.
type SubvolumeSpec struct {
	Name       string   `json:"name"`
	MountPoint string   `json:"mount_point,omitempty"`
	Options    []string `json:"options,omitempty"`
}

// Default is the layout of an install that names none: an EFI system partition and a root filesystem on the smallest fixed disk.
func Default() *Layout {
	return &Layout{
		Format: Format,
		Disks: []DiskSpec{{
			Name: "system", Select: Select{Pick: PickSmallest},
			Partitions: []PartitionSpec{
				{Label: "efi", Type: "esp", Size: Size{Bytes: 512 * mib}},
				{Label: "root", Size: Size{Rest: true}},
			},
		}},
		Filesystems: []FilesystemSpec{
			{Device: "part/system/efi", Format: FormatVFAT, MountPoint: "/boot/efi"},
			{Device: "part/system/root", Format: FormatExt4, MountPoint: "/"},
		},
	}
}
