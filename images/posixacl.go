package images

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// maxACLEntries is far above what any filesystem holds: ext4 has one block for all of a file's attributes.
const maxACLEntries = 1024

// Tags of an entry, and the id of those that have none (include/uapi/linux/posix_acl.h).
const (
	aclUserObject  = 0x01
	aclUser        = 0x02
	aclGroupObject = 0x04
	aclGroup       = 0x08
	aclMask        = 0x10
	aclOther       = 0x20
	aclNoID        = 0xffffffff
	// aclVersion begins an xattr (include/uapi/linux/posix_acl_xattr.h).
	aclVersion = 2
)

// posixACL turns the text of an access control list (POSIX.1e draft 17, section 23.3.1; star adds a numeric id as a fourth field) into the value
// of the xattr that Linux keeps it in.
func posixACL(text string) (string, error) {
	type entry struct {
		tag, permissions uint16
		id               uint32
	}
	var entries []entry
	for line := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' || r == '\n' }) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) < 3 || len(fields) > 4 {
			return "", fmt.Errorf("%.64q is no entry of an access control list", line)
		}
		e := entry{id: aclNoID}
		named := fields[1] != ""
		switch kind := fields[0]; {
		case (kind == "user" || kind == "u") && named:
			e.tag = aclUser
		case kind == "user" || kind == "u":
			e.tag = aclUserObject
		case (kind == "group" || kind == "g") && named:
			e.tag = aclGroup
		case kind == "group" || kind == "g":
			e.tag = aclGroupObject
		case (kind == "mask" || kind == "m") && !named:
			e.tag = aclMask
		case (kind == "other" || kind == "o") && !named:
			e.tag = aclOther
		default:
			return "", fmt.Errorf("%.64q is no entry of an access control list", line)
		}
		if named {
			id, err := strconv.ParseUint(fields[len(fields)-1], 10, 32)
			if len(fields) == 3 {
				id, err = strconv.ParseUint(fields[1], 10, 32)
			}
			if err != nil || id == aclNoID {
				return "", fmt.Errorf("%.64q names its owner by name only: make the archive with GNU tar's --xattrs --xattrs-include='*' instead of --acls", line)
			}
			e.id = uint32(id)
		}
		for i, c := range fields[2] {
			switch {
			case i < 3 && byte(c) == "rwx"[i]:
				e.permissions |= 4 >> i
			case c != '-' || i > 2:
				return "", fmt.Errorf("%.64q: %.16q are no permissions", line, fields[2])
			}
		}
		if entries = append(entries, e); len(entries) > maxACLEntries {
			return "", fmt.Errorf("it has more than %d entries", maxACLEntries)
		}
	}
	if len(entries) == 0 {
		return "", errors.New("it is empty")
	}
	// The kernel wants them by tag, then by id (fs/posix_acl.c, posix_acl_valid).
	slices.SortFunc(entries, func(a, b entry) int {
		if a.tag != b.tag {
			return int(a.tag) - int(b.tag)
		}
		return int(int64(a.id) - int64(b.id))
	})
	out := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range entries {
		out = binary.LittleEndian.AppendUint16(out, e.tag)
		out = binary.LittleEndian.AppendUint16(out, e.permissions)
		out = binary.LittleEndian.AppendUint32(out, e.id)
	}
	return string(out), nil
}
