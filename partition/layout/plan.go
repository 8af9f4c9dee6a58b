package layout

// PlanFormat is the value of a plan's format field.
const PlanFormat = "bloomery.plan/v1"

// Ref names a thing that a plan makes and others stand on:
//
//	disk/NAME            a whole disk            /dev/nvme0n1
//	part/DISK/NUMBER     a partition             /dev/nvme0n1p2
//	md/NAME              an md array             /dev/md/NAME
//	luks/NAME            an opened LUKS2 volume  /dev/mapper/NAME
//	lv/GROUP/NAME        a logical volume        /dev/GROUP/NAME
type Ref string

// Plan is everything that a layout makes of a machine's disks: which, where, how large and under which identifiers. It is made once, shown,
// stored and then carried out as it is, as often as it takes: every identifier is in it, so that whoever goes on after an interruption
// can tell what is done. Sizes are bytes.
type Plan struct {
	// Format is always "bloomery.plan/v1".
	Format string `json:"format"`
	// LayoutSHA256 is the digest of the layout's canonical JSON, 64 lower-case hexadecimal digits.
	LayoutSHA256 string `json:"layout_sha256"`
	// UEFI says that the machine starts through UEFI, which every plan needs.
	UEFI   bool             `json:"uefi"`
	Disks  []DiskPlan       `json:"disks"`
	Arrays []ArrayPlan      `json:"arrays,omitempty"`
	LUKS   []LUKSPlan       `json:"luks,omitempty"`
	Groups []GroupPlan      `json:"volume_groups,omitempty"`
	Files  []FilesystemPlan `json:"filesystems,omitempty"`
	// Warnings are for whoever reads the plan before it is carried out.
	Warnings []string `json:"warnings,omitempty"`
}

// DiskPlan is one disk: everything on it is destroyed.
type DiskPlan struct {
	// Name is what the layout calls the disk; Ref is disk/Name.
	Name string `json:"name"`
	// Serial and WWN bind the plan to the disk; at least one is set. Device names play no part.
	Serial string `json:"serial,omitempty"`
	WWN    string `json:"wwn,omitempty"`
	Model  string `json:"model,omitempty"`
	// KernelName is the disk's at the last inventory, for people only.
	KernelName string `json:"kernel_name,omitempty"`
	SizeBytes  int64  `json:"size_bytes"`
	// SectorSize is the logical one, 512 or 4096.
	SectorSize int `json:"sector_size"`
	// Table says that the disk gets a GUID partition table; without one the whole disk is a member of something.
	Table      bool            `json:"table"`
	GUID       string          `json:"guid,omitempty"`
	Partitions []PartitionPlan `json:"partitions,omitempty"`
}

// PartitionPlan is an entry of a GUID partition table (UEFI 2.10, section 5.3.3).
type PartitionPlan struct {
	// Number counts from 1.
	Number int    `json:"number"`
	Label  string `json:"label,omitempty"`
	// Type and GUID are RFC 4122 text in lower case.
	Type string `json:"type"`
	GUID string `json:"guid"`
	// StartBytes and SizeBytes are multiples of the disk's sector size.
	StartBytes int64 `json:"start_bytes"`
	SizeBytes  int64 `json:"size_bytes"`
	// Attributes are the 64 bits of the entry (table 5-8).
	Attributes uint64 `json:"attributes,omitempty"`
}

// ArrayPlan is an md array.
type ArrayPlan struct {
	// Name is the array's, at most 32 characters; Ref is md/Name.
	Name string `json:"name"`
	// UUID is RFC 4122 text; mdadm prints it in four groups of eight digits.
	UUID string `json:"uuid"`
	// Level is 0, 1, 5, 6 or 10.
	Level int `json:"level"`
	// Metadata is "1.2", or "1.0" where firmware reads a member as a plain partition (the superblock is then at the end).
	Metadata string `json:"metadata"`
	Members  []Ref  `json:"members"`
	Spares   []Ref  `json:"spares,omitempty"`
	// ChunkBytes is 0 for level 1.
	ChunkBytes int64 `json:"chunk_bytes,omitempty"`
	// SizeBytes is a lower bound of the array's size: what its members give less mdadm's own areas.
	SizeBytes int64 `json:"size_bytes"`
}

// Ways to open a LUKS2 volume at boot.
const (
	// UnlockKeyFile keeps a random key beside the system, in its initial RAM filesystem: whoever takes all disks can open it.
	UnlockKeyFile = "key-file"
	// UnlockPassphrase is asked for on the console at every boot.
	UnlockPassphrase = "passphrase"
	// UnlockTPM2 seals a random key in the machine's TPM 2.0.
	UnlockTPM2 = "tpm2"
)

// LUKSPlan is a LUKS2 volume.
type LUKSPlan struct {
	// Name is the opened volume's; Ref is luks/Name.
	Name   string `json:"name"`
	UUID   string `json:"uuid"`
	Device Ref    `json:"device"`
	Label  string `json:"label,omitempty"`
	// Unlock are the ways to open it, each with a key slot of its own; at least one.
	Unlock []string `json:"unlock"`
	// Secret names the passphrase among the job's secrets; set with "passphrase" only.
	Secret string `json:"secret,omitempty"`
	// SectorSize of the encryption in bytes, 512 or 4096.
	SectorSize int   `json:"sector_size"`
	SizeBytes  int64 `json:"size_bytes"`
}

// GroupPlan is an LVM volume group.
type GroupPlan struct {
	Name string `json:"name"`
	// Devices are its physical volumes.
	Devices []Ref `json:"devices"`
	// ExtentBytes is a power of two; sizes of volumes are multiples of it.
	ExtentBytes int64        `json:"extent_bytes"`
	SizeBytes   int64        `json:"size_bytes"`
	Volumes     []VolumePlan `json:"volumes"`
}

// Kinds of logical volumes.
const (
	VolumeLinear   = "linear"
	VolumeStriped  = "striped"
	VolumeThinPool = "thin-pool"
	VolumeThin     = "thin"
)

// VolumePlan is a logical volume; Ref is lv/GROUP/Name.
type VolumePlan struct {
	Name string `json:"name"`
	Kind string `json:"kind"`
	// SizeBytes is virtual for a thin volume.
	SizeBytes int64 `json:"size_bytes"`
	// Stripes and StripeBytes are set for a striped one.
	Stripes     int   `json:"stripes,omitempty"`
	StripeBytes int64 `json:"stripe_bytes,omitempty"`
	// Pool is the name of a thin volume's pool in the same group. Pools stand before their volumes.
	Pool string `json:"pool,omitempty"`
	// MetadataBytes is the size of a thin pool's metadata, beside SizeBytes; the group keeps a spare as large as its largest pool's.
	MetadataBytes int64 `json:"metadata_bytes,omitempty"`
}

// Formats of filesystems; swap counts as one.
const (
	FormatExt4  = "ext4"
	FormatXFS   = "xfs"
	FormatBtrfs = "btrfs"
	FormatVFAT  = "vfat"
	FormatSwap  = "swap"
)

// FilesystemPlan is a filesystem, or swap space, and where it is mounted.
type FilesystemPlan struct {
	Device Ref    `json:"device"`
	Format string `json:"format"`
	// UUID is RFC 4122 text, for vfat the eight digits of its volume id as in "1A2B-3C4D".
	UUID  string `json:"uuid"`
	Label string `json:"label,omitempty"`
	// MountPoint is a clean absolute path; empty for swap and for a filesystem that is made only.
	MountPoint string `json:"mount_point,omitempty"`
	// Options are those of mount(8), one each.
	Options []string `json:"options,omitempty"`
	// MakeOptions are arguments of mkfs, from a list of allowed ones.
	MakeOptions []string `json:"make_options,omitempty"`
	// Subvolumes are btrfs's; with any, only they are mounted.
	Subvolumes []SubvolumePlan `json:"subvolumes,omitempty"`
	SizeBytes  int64           `json:"size_bytes"`
}

// SubvolumePlan is a btrfs subvolume.
type SubvolumePlan struct {
	// Name is its path in the filesystem without a leading slash, as in "@home".
	Name       string   `json:"name"`
	MountPoint string   `json:"mount_point,omitempty"`
	Options    []string `json:"options,omitempty"`
}

// Kinds of actions, in the order in which they are done.
const (
	ActionStop       = "stop"       // what uses the disk is stopped: mounts, swap, LVM, LUKS, md
	ActionErase      = "erase"      // signatures of what was there are removed
	ActionTable      = "table"      // a partition table is written
	ActionArray      = "array"      // an md array is made
	ActionEncrypt    = "encrypt"    // a LUKS2 volume is made and opened
	ActionGroup      = "group"      // physical volumes and a volume group are made
	ActionVolume     = "volume"     // a logical volume is made
	ActionFilesystem = "filesystem" // a filesystem or swap space is made
)

// Action is one step of a plan, in the order in which it is carried out.
type Action struct {
	// ID is unique in the plan and the same whenever the plan is read again, as in "array/md/root".
	ID   string `json:"id"`
	Kind string `json:"kind"`
	// Target is what is made or destroyed.
	Target Ref `json:"target"`
	// Destroys says that what is on the target now is lost.
	Destroys bool `json:"destroys,omitempty"`
	// Text says it to people, with sizes.
	Text string `json:"text"`
}
