package initramfs

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// moduleIndex is what depmod(8) knows about the modules of one kernel.
type moduleIndex struct {
	files   map[string]string   // module -> path relative to the index, such as kernel/fs/ext4/ext4.ko
	deps    map[string][]string // module -> modules it needs, as modules.dep orders them
	soft    map[string][]string // module -> names or aliases it would like, of pre: and post: alike
	aliases map[string][]string // alias without wildcards -> modules
	builtin map[string]bool
	text    map[string]string // index file -> content
}

func readModuleIndex(dir string) (*moduleIndex, error) {
	x := &moduleIndex{
		files: map[string]string{}, deps: map[string][]string{}, soft: map[string][]string{},
		aliases: map[string][]string{}, builtin: map[string]bool{}, text: map[string]string{},
	}
	for _, name := range append([]string{"modules.dep", "modules.builtin"}, moduleIndexes...) {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		x.text[name] = string(data)
	}
	for line := range strings.Lines(x.text["modules.dep"]) {
		file, needs, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			return nil, fmt.Errorf("modules.dep: line %q has no colon", strings.TrimSpace(line))
		}
		name := moduleName(file)
		x.files[name] = file
		for _, need := range strings.Fields(needs) {
			x.deps[name] = append(x.deps[name], moduleName(need))
		}
	}
	for line := range strings.Lines(x.text["modules.builtin"]) {
		x.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	for line := range strings.Lines(x.text["modules.softdep"]) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[0] != "softdep" {
			continue
		}
		for _, word := range fields[2:] {
			if word != "pre:" && word != "post:" {
				x.soft[moduleName(fields[1])] = append(x.soft[moduleName(fields[1])], word)
			}
		}
	}
	for line := range strings.Lines(x.text["modules.alias"]) {
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[0] == "alias" && !strings.ContainsAny(fields[1], "*?[") {
			x.aliases[fields[1]] = append(x.aliases[fields[1]], moduleName(fields[2]))
		}
	}
	return x, nil
}

func (x *moduleIndex) known(name string) bool { return x.builtin[name] || x.files[name] != "" }

// closure returns the loadable modules among wanted, their dependencies and the soft dependencies of all of them, sorted
// by file. A soft dependency that this kernel does not have is no error: modprobe(8) ignores it too.
func (x *moduleIndex) closure(wanted []string) ([]string, error) {
	seen := map[string]bool{}
	queue := slices.Clone(wanted)
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		if seen[name] || x.builtin[name] {
			continue
		}
		if x.files[name] == "" {
			return nil, fmt.Errorf("module %s is needed but not in modules.dep", name)
		}
		seen[name] = true
		queue = append(queue, x.deps[name]...)
		for _, want := range x.soft[name] {
			if x.files[moduleName(want)] != "" {
				queue = append(queue, moduleName(want))
				continue
			}
			for _, provider := range x.aliases[want] {
				if x.files[provider] != "" {
					queue = append(queue, provider)
				}
			}
		}
	}
	names := make([]string, 0, len(seen))
	for name := range seen {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return strings.Compare(x.files[a], x.files[b]) })
	return names, nil
}

// depFile is modules.dep for the given modules.
func (x *moduleIndex) depFile(names []string) []byte {
	var out strings.Builder
	for _, name := range names {
		out.WriteString(x.files[name] + ":")
		for _, need := range x.deps[name] {
			if !x.builtin[need] {
				out.WriteString(" " + x.files[need])
			}
		}
		out.WriteString("\n")
	}
	return []byte(out.String())
}

// moduleName is the name of a module file or of a name with dashes: modprobe treats - and _ alike.
func moduleName(file string) string {
	base := path.Base(file)
	for _, suffix := range []string{".xz", ".zst", ".gz", ".ko"} {
		base = strings.TrimSuffix(base, suffix)
	}
	return strings.ReplaceAll(base, "-", "_")
}
