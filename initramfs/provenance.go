package initramfs

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// readPackages reads the list that recordPackages left in the sysroot: which package and version every path is from.
func readPackages(sysroot string) (packages map[string]Package, origins map[string]string, err error) {
	f, err := os.Open(filepath.Join(sysroot, packagesFile))
	if err != nil {
		return nil, nil, fmt.Errorf("read package list of sysroot: %w", err)
	}
	defer f.Close()
	packages, origins = map[string]Package{}, map[string]string{}
	current := ""
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		kind, rest, _ := strings.Cut(lines.Text(), " ")
		switch kind {
		case "package":
			fields := strings.Fields(rest)
			if len(fields) != 3 {
				return nil, nil, fmt.Errorf("read package list of sysroot: line %d has %d fields, want name, version, source", n, len(fields))
			}
			current = fields[0]
			packages[current] = Package{Name: fields[0], Version: fields[1], Source: fields[2]}
		case "path":
			if current == "" {
				return nil, nil, fmt.Errorf("read package list of sysroot: line %d is a path before any package", n)
			}
			origins[rest] = current
		default:
			return nil, nil, fmt.Errorf("read package list of sysroot: line %d is neither package nor path", n)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, nil, fmt.Errorf("read package list of sysroot: %w", err)
	}
	return packages, origins, nil
}

// usedPackages describes the packages that names (with repetitions and foreign names) speak of, sorted.
func usedPackages(sysroot string, packages map[string]Package, names []string) ([]Package, error) {
	names = slices.Clone(names)
	slices.Sort(names)
	var used []Package
	for _, name := range slices.Compact(names) {
		p, ok := packages[name]
		if !ok {
			continue
		}
		licences, err := debianLicences(filepath.Join(sysroot, "usr/share/doc", name, "copyright"))
		if err != nil {
			return nil, fmt.Errorf("read licences of %s: %w", name, err)
		}
		p.Licences = licences
		used = append(used, p)
	}
	return used, nil
}

// debianLicences lists the licence names of a machine-readable copyright file (DEP-5).
func debianLicences(file string) ([]string, error) {
	const notMachineReadable = "see copyright"
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return []string{notMachineReadable}, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(data)) {
		field, value, ok := strings.Cut(line, ":")
		if ok && strings.EqualFold(field, "license") {
			if name := strings.TrimSpace(value); name != "" {
				names = append(names, name)
			}
		}
	}
	if len(names) == 0 {
		return []string{notMachineReadable}, nil
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}
