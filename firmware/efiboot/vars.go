package efiboot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// globalVariable is EFI_GLOBAL_VARIABLE, the vendor of all variables here (section 3.3).
const globalVariable = "8be4df61-93ca-11d2-aa0d-00e098032b8c"

// varAttributes: non-volatile, boot service access, runtime access.
const varAttributes = 0x7

// fsImmutable is FS_IMMUTABLE_FL; efivarfs sets it on its files against accidents (Documentation/filesystems/efivarfs.rst).
const fsImmutable = 0x10

// Root is where efivarfs is mounted: "/sys/firmware/efi/efivars".
type Root string

// DefaultRoot is the running system's.
const DefaultRoot Root = "/sys/firmware/efi/efivars"

// ErrNoVariable is wrapped by the error for a variable that the firmware does not have.
var ErrNoVariable = errors.New("the firmware has no such variable")

func (r Root) file(name string) string {
	return filepath.Join(string(r), name+"-"+globalVariable)
}

// read gives a variable's content without the attributes.
func (r Root) read(name string) ([]byte, error) {
	f, err := os.Open(r.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read EFI variable %s: %w", name, ErrNoVariable)
	}
	if err != nil {
		return nil, fmt.Errorf("read EFI variable %s: %w", name, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxVariable+5))
	if err != nil {
		return nil, fmt.Errorf("read EFI variable %s: %w", name, err)
	}
	if len(data) < 4 || len(data) > maxVariable+4 {
		return nil, fmt.Errorf("read EFI variable %s: %d bytes are not between 4 and %d", name, len(data), maxVariable+4)
	}
	return data[4:], nil
}

// write sets a variable with one write(2), as efivarfs asks for, and reads it back: some firmware drops writes silently.
func (r Root) write(name string, content []byte) error {
	path := r.file(name)
	if err := clearImmutable(path); err != nil {
		return fmt.Errorf("write EFI variable %s: %w", name, err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("write EFI variable %s: %w", name, err)
	}
	data := append(binary.LittleEndian.AppendUint32(nil, varAttributes), content...)
	_, err = f.Write(data)
	// efivarfs replaces the whole variable and must not be opened with O_TRUNC, which may delete it; a plain directory
	// keeps the old tail.
	if st, statErr := f.Stat(); err == nil && statErr == nil && st.Size() > int64(len(data)) {
		err = f.Truncate(int64(len(data)))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write EFI variable %s: %w", name, err)
	}
	back, err := r.read(name)
	if err != nil {
		return err
	}
	if string(back) != string(content) {
		return fmt.Errorf("write EFI variable %s: it reads back differently", name)
	}
	return nil
}

func (r Root) remove(name string) error {
	path := r.file(name)
	if err := clearImmutable(path); err != nil {
		return fmt.Errorf("remove EFI variable %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove EFI variable %s: %w", name, err)
	}
	return nil
}

// clearImmutable does nothing for a file that is not there or lies on a file system without such flags.
func clearImmutable(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read its flags: %w", err)
	}
	if flags&fsImmutable == 0 {
		return nil
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^fsImmutable); err != nil {
		return fmt.Errorf("make it writable: %w", err)
	}
	return nil
}
