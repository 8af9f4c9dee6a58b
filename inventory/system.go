package inventory

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/jaypipes/ghw"
)

// Product is the system as its maker names it (SMBIOS type 1).
type Product struct {
	Manufacturer string `json:"manufacturer,omitempty"`
	Name         string `json:"name,omitempty"`
	Version      string `json:"version,omitempty"`
	Serial       string `json:"serial,omitempty"`
	UUID         string `json:"uuid,omitempty"` // lower case
	SKU          string `json:"sku,omitempty"`
	Family       string `json:"family,omitempty"`
}

// BIOS is the firmware (SMBIOS type 0) and how it started this system. SecureBoot is nil where there is no such thing.
type BIOS struct {
	Vendor     string `json:"vendor,omitempty"`
	Version    string `json:"version,omitempty"`
	Date       string `json:"date,omitempty"` // MM/DD/YYYY
	UEFI       bool   `json:"uefi"`
	SecureBoot *bool  `json:"secure_boot,omitempty"`
}

// Baseboard is the main board (SMBIOS type 2).
type Baseboard struct {
	Manufacturer string `json:"manufacturer,omitempty"`
	Name         string `json:"name,omitempty"`
	Version      string `json:"version,omitempty"`
	Serial       string `json:"serial,omitempty"`
	AssetTag     string `json:"asset_tag,omitempty"`
}

// Chassis is the case (SMBIOS type 3); Type is the specification's number (23 is a rack mount chassis).
type Chassis struct {
	Manufacturer string `json:"manufacturer,omitempty"`
	Type         int    `json:"type,omitempty"`
	Serial       string `json:"serial,omitempty"`
	AssetTag     string `json:"asset_tag,omitempty"`
}

// system asks ghw, which reads /sys/class/dmi/id (SMBIOS types 0 to 3, Documentation/ABI/testing/sysfs-class-dmi) or, on a
// machine without, the device tree. An empty chroot keeps GHW_CHROOT of the environment from choosing another machine.
func (c *collector) system() error {
	unread := &unreadable{}
	options := []any{ghw.WithChroot(""), ghw.WithPathOverrides(map[string]string{"/sys": c.root.Sys}), ghw.WithLogger(slog.New(unread))}
	product, productErr := ghw.Product(options...)
	bios, biosErr := ghw.BIOS(options...)
	board, boardErr := ghw.Baseboard(options...)
	chassis, chassisErr := ghw.Chassis(options...)
	if err := errors.Join(productErr, biosErr, boardErr, chassisErr); err != nil {
		return err
	}
	inv := c.inv
	inv.Product = Product{
		Manufacturer: told(product.Vendor), Name: told(product.Name), Version: told(product.Version), Serial: told(product.SerialNumber),
		UUID: strings.ToLower(told(product.UUID)), SKU: told(product.SKU), Family: told(product.Family),
	}
	inv.BIOS = BIOS{Vendor: told(bios.Vendor), Version: told(bios.Version), Date: told(bios.Date)}
	inv.Baseboard = Baseboard{
		Manufacturer: told(board.Vendor), Name: told(board.Product), Version: told(board.Version), Serial: told(board.SerialNumber), AssetTag: told(board.AssetTag),
	}
	inv.Chassis = Chassis{Manufacturer: told(chassis.Vendor), Serial: told(chassis.SerialNumber), AssetTag: told(chassis.AssetTag)}
	inv.Chassis.Type, _ = strconv.Atoi(told(chassis.Type))
	c.secureBoot()
	return errors.Join(unread.errs...)
}

// told is what ghw read, made fit to show; ghw writes "unknown" for a file that is not there.
func told(s string) string { return known(clean(s)) }

// unreadable is the handler of ghw's log, the only place where ghw tells of a file that exists and cannot be read.
type unreadable struct{ errs []error }

// Enabled implements slog.Handler.
func (*unreadable) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

// Handle implements slog.Handler.
func (u *unreadable) Handle(_ context.Context, r slog.Record) error {
	if !strings.HasSuffix(r.Message, syscall.ENOENT.Error()) {
		u.errs = append(u.errs, errors.New(r.Message))
	}
	return nil
}

// WithAttrs implements slog.Handler; ghw adds no attributes.
func (u *unreadable) WithAttrs([]slog.Attr) slog.Handler { return u }

// WithGroup implements slog.Handler; ghw opens no groups.
func (u *unreadable) WithGroup(string) slog.Handler { return u }

func (c *collector) secureBoot() {
	efi := filepath.Join(c.root.Sys, "firmware/efi")
	_, err := os.Stat(efi)
	c.inv.BIOS.UEFI = err == nil
	// EFI_GLOBAL_VARIABLE's SecureBoot: four bytes of attributes, then 1 for on (UEFI specification, section 3.3).
	data, err := readLimited(filepath.Join(efi, "efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"))
	if err == nil && len(data) == 5 {
		on := data[4] == 1
		c.inv.BIOS.SecureBoot = &on
	}
}
