package inventory

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// system collects from the given files of sysfs; a name that ends with a slash is a directory.
func system(t *testing.T, files map[string]string) *Inventory {
	t.Helper()
	sys := t.TempDir()
	for name, content := range files {
		put(t, filepath.Join(sys, name), func(path string) error {
			if strings.HasSuffix(name, "/") {
				return os.Mkdir(path, 0o755)
			}
			return os.WriteFile(path, []byte(content), 0o644)
		})
	}
	c := &collector{root: Root{Sys: sys}, inv: &Inventory{}}
	c.problem("system", c.system())
	for i, p := range c.inv.Problems {
		c.inv.Problems[i].Message = strings.ReplaceAll(p.Message, sys, "SYS")
	}
	return c.inv
}

func TestSystem(t *testing.T) {
	on := true
	const efi = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  Inventory
	}{
		{"no firmware tables", nil, Inventory{}},
		{"all fields", map[string]string{
			"class/dmi/id/sys_vendor": "Example\n", "class/dmi/id/product_name": "RS-100\n", "class/dmi/id/product_version": "2\n",
			"class/dmi/id/product_serial": "P1\n", "class/dmi/id/product_uuid": "AB\n", "class/dmi/id/product_sku": "SKU1\n", "class/dmi/id/product_family": "RS\n",
			"class/dmi/id/bios_vendor": "Maker\n", "class/dmi/id/bios_version": "1.2\n", "class/dmi/id/bios_date": "02/03/2026\n",
			"class/dmi/id/board_vendor": "Boards\n", "class/dmi/id/board_name": "X1\n", "class/dmi/id/board_version": "A\n",
			"class/dmi/id/board_serial": "B1\n", "class/dmi/id/board_asset_tag": "tag-b\n",
			"class/dmi/id/chassis_vendor": "Cases\n", "class/dmi/id/chassis_type": "23\n", "class/dmi/id/chassis_serial": "C1\n", "class/dmi/id/chassis_asset_tag": "tag-c\n",
			efi: "\x06\x00\x00\x00\x01",
		}, Inventory{
			Product:   Product{Manufacturer: "Example", Name: "RS-100", Version: "2", Serial: "P1", UUID: "ab", SKU: "SKU1", Family: "RS"},
			BIOS:      BIOS{Vendor: "Maker", Version: "1.2", Date: "02/03/2026", UEFI: true, SecureBoot: &on},
			Baseboard: Baseboard{Manufacturer: "Boards", Name: "X1", Version: "A", Serial: "B1", AssetTag: "tag-b"},
			Chassis:   Chassis{Manufacturer: "Cases", Type: 23, Serial: "C1", AssetTag: "tag-c"},
		}},
		{"placeholders and terminal escapes", map[string]string{
			"class/dmi/id/sys_vendor": "To Be Filled By O.E.M.\n", "class/dmi/id/product_name": "A\x1b[31m\nB\n", "class/dmi/id/product_uuid": "00000000-0000-0000-0000-000000000000\n",
			"class/dmi/id/board_serial": strings.Repeat("9", 1000), "class/dmi/id/chassis_type": "case\n",
		}, Inventory{Product: Product{Name: "A[31m B"}, Baseboard: Baseboard{Serial: strings.Repeat("9", maxText)}}},
		{"unreadable serial", map[string]string{"class/dmi/id/product_name": "RS-100\n", "class/dmi/id/product_serial/": ""}, Inventory{
			Product:  Product{Name: "RS-100"},
			Problems: []Problem{{"system", "Unable to read product_serial: read SYS/class/dmi/id/product_serial: is a directory"}},
		}},
		{"device tree", map[string]string{
			"firmware/devicetree/base/model": "Example Board\x00", "firmware/devicetree/base/compatible": "example,board\x00example,soc\x00",
			"firmware/devicetree/base/serial-number": "1000\x00",
		}, Inventory{
			Product:   Product{Manufacturer: "example", Name: "Example Board", Serial: "1000"},
			Baseboard: Baseboard{Manufacturer: "example", Name: "Example Board", Serial: "1000"},
			Chassis:   Chassis{Manufacturer: "example", Serial: "1000"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(&tt.want, system(t, tt.files)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// GHW_CHROOT and its like must not show another machine.
func TestSystemIgnoresTheEnvironment(t *testing.T) {
	t.Setenv("GHW_CHROOT", t.TempDir())
	inv := system(t, map[string]string{"class/dmi/id/product_name": "RS-100\n"})
	if inv.Product.Name != "RS-100" || inv.Problems != nil {
		t.Errorf("got %+v", inv)
	}
}
