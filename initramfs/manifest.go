package initramfs

import "time"

// Manifest says what an agent image is made of. It is written as manifest.json beside the image.
type Manifest struct {
	Version      string    `json:"version"`      // of the agent, as its binary's build information says, or "devel"
	BuildDate    time.Time `json:"build_date"`   // the fixed time stamp of everything in the image, not the time of building
	Architecture string    `json:"architecture"` // as in GOARCH
	Debug        bool      `json:"debug"`        // true: a root shell follows on the console when the agent ends
	Kernel       Kernel    `json:"kernel"`
	Segments     []Segment `json:"segments"`
	Modules      []string  `json:"modules"`  // kernel modules by name, sorted
	Packages     []Package `json:"packages"` // Debian packages that files come from, sorted by name
	GoModules    []Module  `json:"go_modules"`
	Files        []File    `json:"files"` // every regular file of the base, sorted by path
}

// Kernel is the Linux image that is booted.
type Kernel struct {
	Release string `json:"release"` // uname -r
	Package string `json:"package"`
	Bytes   int64  `json:"bytes"`
	SHA256  string `json:"sha256"`
}

// Segment is one compressed archive within base.cpio.zst, in the order of the file.
type Segment struct {
	Name     string `json:"name"`
	Bytes    int64  `json:"bytes"`     // compressed, with padding
	RawBytes int64  `json:"raw_bytes"` // as unpacked by the kernel
	SHA256   string `json:"sha256"`    // of the compressed bytes
}

// Package is a Debian package that files were taken from.
type Package struct {
	Name     string   `json:"name"`
	Version  string   `json:"version"`
	Source   string   `json:"source"`
	Licences []string `json:"licences"` // License fields of its machine-readable copyright file; "see copyright" when it has none
}

// Module is a Go module compiled into one of the image's programs.
type Module struct {
	Path    string `json:"path"`
	Version string `json:"version"`
	Licence string `json:"licence"` // SPDX identifier, "unknown" when the licence file is not at hand or not recognised
}

// File is a regular file of the image.
type File struct {
	Path    string `json:"path"` // absolute, as in the image
	Bytes   int64  `json:"bytes"`
	SHA256  string `json:"sha256"`
	Package string `json:"package,omitempty"` // Debian package or Go module path; empty for files made by the builder
}
