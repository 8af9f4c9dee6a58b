package initramfs

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/module"
)

const (
	unknownLicence = "unknown"
	develVersion   = "devel"
)

// goModules lists the modules compiled into the binaries, and the version of the first binary's main module.
func goModules(ctx context.Context, moduleDir string, binaries ...string) ([]Module, string, error) {
	cache, err := goEnv(ctx, "GOMODCACHE")
	if err != nil {
		cache = "" // without a Go tool chain the licence files are not at hand either
	}
	found := map[string]Module{}
	version := ""
	for i, binary := range binaries {
		info, err := buildinfo.ReadFile(binary)
		if err != nil {
			return nil, "", fmt.Errorf("read build information of %s: %w", filepath.Base(binary), err)
		}
		main := info.Main.Version
		if main == "" || main == "(devel)" {
			main = develVersion
		}
		if i == 0 {
			version = main
		}
		if info.Main.Path != "" {
			found[info.Main.Path] = Module{Path: info.Main.Path, Version: main, Licence: ownLicence(info.Main.Path)}
		}
		for _, dep := range info.Deps {
			if dep.Replace != nil {
				dep = dep.Replace
			}
			found[dep.Path] = Module{Path: dep.Path, Version: dep.Version, Licence: moduleLicence(cache, dep.Path, dep.Version)}
		}
		found["std"] = Module{Path: "std", Version: info.GoVersion, Licence: "BSD-3-Clause"}
	}
	list := make([]Module, 0, len(found))
	for _, m := range found {
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b Module) int { return strings.Compare(a.Path, b.Path) })
	return list, version, nil
}

func ownLicence(path string) string {
	if path == "bloomery" {
		return "Apache-2.0"
	}
	return unknownLicence
}

func moduleLicence(cache, path, version string) string {
	if cache == "" {
		return unknownLicence
	}
	escapedPath, err := module.EscapePath(path)
	if err != nil {
		return unknownLicence
	}
	escapedVersion, err := module.EscapeVersion(version)
	if err != nil {
		return unknownLicence
	}
	dir := filepath.Join(cache, escapedPath+"@"+escapedVersion)
	for _, name := range []string{"LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "COPYING", "LICENSE-APACHE-2.0.txt"} {
		if text, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			return licenceID(string(text))
		}
	}
	return unknownLicence
}

// licenceMarks are phrases that tell the usual licences apart, the more demanding first (texts of spdx.org/licenses).
var licenceMarks = []struct {
	id    string
	marks []string
}{
	{"GPL-3.0", []string{"gnu general public license", "version 3"}},
	{"LGPL-3.0", []string{"gnu lesser general public license", "version 3"}},
	{"GPL-2.0", []string{"gnu general public license", "version 2"}},
	{"MPL-2.0", []string{"mozilla public license", "2.0"}},
	{"Apache-2.0", []string{"apache license", "version 2.0"}},
	{"BSD-3-Clause", []string{"redistribution and use in source and binary forms", "neither the name"}},
	{"BSD-2-Clause", []string{"redistribution and use in source and binary forms"}},
	{"ISC", []string{"permission to use, copy, modify, and/or distribute this software"}},
	{"ISC", []string{"permission to use, copy, modify, and distribute this software"}},
	{"MIT", []string{"permission is hereby granted, free of charge"}},
}

func licenceID(text string) string {
	text = strings.Join(strings.Fields(strings.ToLower(text)), " ")
	for _, l := range licenceMarks {
		if !slices.ContainsFunc(l.marks, func(mark string) bool { return !strings.Contains(text, mark) }) {
			return l.id
		}
	}
	return unknownLicence
}
