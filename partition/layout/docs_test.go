package layout

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestThePageIsTrue plans the examples of docs/layouts.md and looks for each field in it.
func TestThePageIsTrue(t *testing.T) {
	page, err := os.ReadFile("../../docs/layouts.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	if len(examples) < 3 {
		t.Errorf("%d examples", len(examples))
	}
	for _, example := range examples {
		plan(t, example[1], storageServer())
	}
	for name := range strings.FieldsSeq("disks raids volume_groups luks filesystems select partitions " + strings.Join(typeNames(), " ") + " " + strings.Join(attributeNames(), " ")) {
		if !strings.Contains(string(page), name) {
			t.Errorf("the page does not name %s", name)
		}
	}
	for _, format := range []string{FormatExt4, FormatXFS, FormatBtrfs, FormatVFAT} {
		var flags []string
		for _, o := range makeOptions(format) {
			flags = append(flags, o.flag)
		}
		if want := format + " `" + strings.Join(flags, " ") + "`"; !strings.Contains(string(page), want) {
			t.Errorf("the page does not say %s", want)
		}
	}
}
