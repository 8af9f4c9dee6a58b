package system

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// segmentName is the first entry of what Configure appends to an initial RAM filesystem, by which it finds that again.
const segmentName = "bloomery.segment.v1"

// earlyFile is a file of the initial RAM filesystem.
type earlyFile struct {
	name    string
	mode    fs.FileMode
	content []byte
}

// segment is a cpio archive in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst). The kernel unpacks one archive
// after the other, so that its files replace those of the archives before.
func segment(files []earlyFile) []byte {
	const (
		folder  = 0o040000
		regular = 0o100000
	)
	var out bytes.Buffer
	number := 0
	add := func(name string, mode uint32, content []byte) {
		number++
		links := 1
		if mode&folder != 0 {
			links = 2
		}
		// inode, mode, uid, gid, links, mtime, size, device (4 numbers in all), length of the name with its zero byte, checksum
		fmt.Fprintf(&out, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
			number, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
		out.WriteString(name + "\x00")
		pad(&out)
		out.Write(content)
		pad(&out)
	}
	add(segmentName, regular|0o444, nil)
	made := map[string]bool{".": true}
	for _, f := range files {
		var folders []string
		for dir := path.Dir(f.name); !made[dir]; dir = path.Dir(dir) {
			made[dir] = true
			folders = append(folders, dir)
		}
		for _, dir := range slices.Backward(folders) {
			mode := uint32(0o755)
			if strings.HasPrefix(dir, "cryptroot") {
				mode = 0o700
			}
			add(dir, folder|mode, nil)
		}
		add(f.name, regular|uint32(f.mode.Perm()), f.content)
	}
	add("TRAILER!!!", 0, nil)
	return out.Bytes()
}

// pad fills up to the next multiple of 4 bytes.
func pad(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}

// withSegment gives an initial RAM filesystem with a segment at its end, in place of one that was appended before.
func withSegment(initrd, segment []byte) []byte {
	const header = 110 // "070701" and 13 numbers of 8 digits
	if at := bytes.LastIndex(initrd, []byte(segmentName+"\x00")); at >= header && bytes.HasPrefix(initrd[at-header:], []byte("070701")) {
		initrd = initrd[:at-header]
	}
	var out bytes.Buffer
	out.Grow(len(initrd) + 4 + len(segment))
	out.Write(initrd)
	pad(&out) // the kernel skips zeros, and takes an archive that is not compressed at multiples of 4 only (init/initramfs.c)
	out.Write(segment)
	return out.Bytes()
}

// appendSegment rewrites a file of the system's /boot.
func appendSegment(root *os.Root, initrd string, files []earlyFile) error {
	had, err := readCapped(root, initrd, maxInitrd)
	if err != nil {
		return err
	}
	return writeFile(root, initrd, withSegment(had, segment(files)), 0o600)
}
