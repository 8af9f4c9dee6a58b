package kmod

import (
	"io"
	"path"
	"slices"
	"strings"
)

// index is depmod's knowledge. Module names are in normal form.
type index struct {
	path    map[string]string   // name -> file, relative to the modules directory
	deps    map[string][]string // name -> what must be there before, nearest first as depmod writes it
	pre     map[string][]string // name -> soft dependencies before
	post    map[string][]string
	builtin map[string]bool
	aliases map[string][]alias // bus ("pci", "virtio", …) -> patterns; "" for those without one
}

type alias struct {
	literal string // what stands before the first wildcard; cheap to compare first
	pattern string
	module  string
}

// normal is the kernel's form of a module's name: dashes are underscores.
func normal(name string) string { return strings.ReplaceAll(name, "-", "_") }

// nameOf gives the module's name for a file such as kernel/fs/xfs/xfs.ko.xz.
func nameOf(file string) string {
	base, _, _ := strings.Cut(path.Base(file), ".ko")
	return normal(base)
}

func (ix *index) known(name string) bool {
	_, ok := ix.path[name]
	return ok || ix.builtin[name]
}

func (ix *index) readDep(r io.Reader) error {
	ix.path, ix.deps = map[string]string{}, map[string][]string{}
	return eachLine(r, func(f []string) {
		file, ok := strings.CutSuffix(f[0], ":")
		if !ok || !path.IsAbs(file) && !localPath(file) {
			return
		}
		name := nameOf(file)
		ix.path[name] = file
		for _, dep := range f[1:] {
			ix.deps[name] = append(ix.deps[name], nameOf(dep))
		}
	})
}

// localPath refuses names that climb out of the modules directory.
func localPath(file string) bool {
	return !slices.Contains(strings.Split(file, "/"), "..")
}

func (ix *index) readSoftdep(r io.Reader) error {
	ix.pre, ix.post = map[string][]string{}, map[string][]string{}
	return eachLine(r, func(f []string) {
		if len(f) < 3 || f[0] != "softdep" {
			return
		}
		name := normal(f[1])
		var into map[string][]string
		for _, word := range f[2:] {
			switch {
			case word == "pre:":
				into = ix.pre
			case word == "post:":
				into = ix.post
			case into != nil:
				into[name] = append(into[name], normal(word))
			}
		}
	})
}

func (ix *index) readBuiltin(r io.Reader) error {
	ix.builtin = map[string]bool{}
	return eachLine(r, func(f []string) { ix.builtin[nameOf(f[0])] = true })
}

func (ix *index) readAlias(r io.Reader) error {
	ix.aliases = map[string][]alias{}
	return eachLine(r, func(f []string) {
		if len(f) != 3 || f[0] != "alias" {
			return
		}
		a := alias{literal: f[1], pattern: f[1], module: normal(f[2])}
		if i := strings.IndexAny(f[1], `*?[\`); i >= 0 {
			a.literal = f[1][:i]
		}
		bus := busOf(a.literal)
		ix.aliases[bus] = append(ix.aliases[bus], a)
	})
}

// busOf is the part of a modalias, or of a pattern's literal start, before the first colon. "acpi*:" and "of:N*T*" differ
// from the rest only in that some of their patterns have no literal colon; those go under "".
func busOf(s string) string {
	bus, _, ok := strings.Cut(s, ":")
	if !ok {
		return ""
	}
	return bus
}

// match gives the modules whose patterns fit a device's modalias, in depmod's order, each once.
func (ix *index) match(modalias string) []string {
	var found []string
	lists := [][]alias{ix.aliases[busOf(modalias)]}
	if busOf(modalias) != "" {
		lists = append(lists, ix.aliases[""])
	}
	for _, list := range lists {
		for _, a := range list {
			if strings.HasPrefix(modalias, a.literal) && glob(a.pattern, modalias) && !slices.Contains(found, a.module) {
				found = append(found, a.module)
			}
		}
	}
	return found
}

type step struct {
	name string
	soft bool // its failure is no reason to stop
}

// order lists what to insert for a module, itself included, each once. Soft dependencies may form circles: a module
// that is already on the way is left out.
func (ix *index) order(name string) []step {
	var steps []step
	seen := map[string]bool{}
	var visit func(name string, soft bool)
	visit = func(name string, soft bool) {
		if seen[name] {
			return
		}
		seen[name] = true
		for _, pre := range ix.pre[name] {
			visit(pre, true)
		}
		for _, dep := range ix.deps[name] {
			visit(dep, soft)
		}
		steps = append(steps, step{name: name, soft: soft})
		for _, post := range ix.post[name] {
			visit(post, true)
		}
	}
	visit(name, false)
	return steps
}
