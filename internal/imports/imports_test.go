package imports

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"strings"
	"testing"
)

const module = "bloomery/"

// allowed says what the packages of a folder may import of this module, by folder. The longest matching folder counts;
// a folder may always import itself, below and above. Test files are free: they compose what they test.
var allowed = map[string][]string{
	"cmd": {"agent", "coordinator", "netboot", "initramfs", "lab", "images", "partition", "firmware", "checks", "network",
		"cloudinit", "rescue", "inventory", "internal", "api"},
	"agent": {"images", "partition", "firmware", "checks", "network", "cloudinit", "rescue", "inventory", "internal", "api"},
	// The coordinator wires the netboot servers, which know nothing of it.
	"coordinator": {"netboot", "images", "partition", "firmware", "checks", "network", "cloudinit", "rescue", "inventory", "internal", "api"},
	"netboot":     {"images", "network", "internal"},
	"initramfs":   {"internal"},
	"lab":         {"internal"},
	"images":      {"internal"},
	"partition":   {"internal"},
	"firmware":    {"internal"},
	"checks":      {"firmware", "partition", "internal"},
	"network":     {"internal"},
	"cloudinit":   {"internal"},
	"rescue":      {"internal"},
	"inventory":   {"internal"},
	"internal":    {},
	"api":         {},
}

type listed struct {
	ImportPath string
	Imports    []string
}

func TestImportsGoOneWay(t *testing.T) {
	for _, pkg := range list(t) {
		from, ok := folder(pkg.ImportPath)
		if !ok {
			t.Errorf("%s stands in no folder of the design", pkg.ImportPath)
			continue
		}
		for _, imported := range pkg.Imports {
			if !strings.HasPrefix(imported, module) {
				continue
			}
			to, _ := folder(imported)
			if to != from && !contains(allowed[from], to) {
				t.Errorf("%s imports %s: %s may import %v only", pkg.ImportPath, imported, from, allowed[from])
			}
		}
	}
}

func TestOnlyTheStoreKnowsDqlite(t *testing.T) {
	for _, pkg := range list(t) {
		for _, imported := range pkg.Imports {
			if strings.HasPrefix(imported, "github.com/canonical/go-dqlite") && pkg.ImportPath != module+"coordinator/store" {
				t.Errorf("%s imports %s: only coordinator/store may, so that all else builds without cgo", pkg.ImportPath, imported)
			}
		}
	}
}

// TestFolderRejectsStrangers shows that the rule can fail.
func TestFolderRejectsStrangers(t *testing.T) {
	if _, ok := folder(module + "utils/strings"); ok {
		t.Error("a folder that is not in the design was accepted")
	}
	if contains(allowed["images"], "coordinator") {
		t.Error("images may import coordinator")
	}
}

// folder is the top-level folder of a package of this module.
func folder(importPath string) (string, bool) {
	name, _, _ := strings.Cut(strings.TrimPrefix(importPath, module), "/")
	_, ok := allowed[name]
	return name, ok
}

func contains(list []string, word string) bool {
	for _, have := range list {
		if have == word {
			return true
		}
	}
	return false
}

func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-tags", "libsqlite3", "-json=ImportPath,Imports", "./...")
	cmd.Dir = path.Join("..", "..")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var packages []listed
	decoder := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var pkg listed
		if err := decoder.Decode(&pkg); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("decode go list: %v", err)
		}
		packages = append(packages, pkg)
	}
	if len(packages) < 2 {
		t.Fatalf("go list found %d packages", len(packages))
	}
	return packages
}
