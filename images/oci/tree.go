package oci

import (
	"archive/tar"
	"errors"
	"fmt"
	"path"
	"strings"
)

const (
	whiteout       = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"

	// maxEntries bounds what is remembered of the layers' names: about 300 MB.
	maxEntries = 1 << 20
	maxName    = 4095
	maxDepth   = 1024
	maxLinks   = 40 // as Linux follows in one name
)

// place is an entry of a layer.
type place struct{ layer, index int }

// node is something in the file system that the layers make.
type node struct {
	kind byte // tar.TypeDir, TypeReg, TypeSymlink, or another that has no content
	// from is the entry that made it, or last described it if it is a folder.
	from     place
	children map[string]*node
	target   string // of a symbolic link
	file     *file  // of a regular file
}

// file is the content of one or more names.
type file struct {
	from place
	// name is the one that the content is written under: the one that it came with, when that is still there.
	name string
	own  bool
}

// tree is the file system so far.
type tree struct {
	root *node
	// entries counts those of all layers, and folders that were missing.
	entries int
}

func newTree() *tree {
	return &tree{root: &node{kind: tar.TypeDir, from: place{-1, -1}, children: map[string]*node{}}}
}

func (t *tree) count() error {
	if t.entries++; t.entries > maxEntries {
		return fmt.Errorf("the layers have more than %d entries", maxEntries)
	}
	return nil
}

// clean is a name relative to the root. Some builders begin names with a slash.
func clean(name string) (string, error) {
	if len(name) > maxName {
		return "", fmt.Errorf("the name has %d bytes", len(name))
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", errors.New(`the name has the part ".."`)
		}
	}
	return path.Clean("/" + name)[1:], nil
}

// folder is the one that a name's parent is, through symbolic links, as a container's runtime unpacks a layer. Missing ones are made.
func (t *tree) folder(name string, at place) (*node, error) {
	todo := strings.Split(name, "/")
	var stack []*node
	here := t.root
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(stack) > 0 {
				here, stack = stack[len(stack)-1], stack[:len(stack)-1]
			}
			continue
		}
		child := here.children[part]
		if child == nil {
			if err := t.count(); err != nil {
				return nil, err
			}
			child = &node{kind: tar.TypeDir, from: place{at.layer, -1}, children: map[string]*node{}}
			here.children[part] = child
		}
		switch child.kind {
		case tar.TypeDir:
			if len(stack) == maxDepth {
				return nil, fmt.Errorf("it lies in more than %d folders", maxDepth)
			}
			stack = append(stack, here)
			here = child
		case tar.TypeSymlink:
			if links++; links > maxLinks {
				return nil, fmt.Errorf("more than %d symbolic links lie on the way", maxLinks)
			}
			if strings.HasPrefix(child.target, "/") {
				here, stack = t.root, nil
			}
			todo = append(strings.Split(child.target, "/"), todo...)
		default:
			return nil, fmt.Errorf("it lies below %.256q, which is no folder", part)
		}
	}
	return here, nil
}

// add takes the next entry of a layer.
func (t *tree) add(h *tar.Header, at place) error {
	if err := t.count(); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	dir, base := path.Split(name)
	parent, err := t.folder(dir, at)
	if err != nil {
		return err
	}
	if base == whiteoutOpaque {
		parent.hide(at.layer)
		return nil
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil // what aufs kept for itself
	}
	if hidden, ok := strings.CutPrefix(base, whiteout); ok {
		if hidden == "" || hidden == "." {
			return errors.New("the whiteout names nothing")
		}
		if child := parent.children[hidden]; child != nil && child.hide(at.layer) {
			delete(parent.children, hidden)
		}
		return nil
	}
	if base == "" {
		if h.Typeflag != tar.TypeDir {
			return errors.New("the root is no folder")
		}
		t.root.from = at
		return nil
	}
	made, err := t.make(h, at)
	if err != nil {
		return err
	}
	if old := parent.children[base]; old != nil && old.kind == tar.TypeDir && made.kind == tar.TypeDir {
		old.from = at
		return nil
	}
	parent.children[base] = made
	return nil
}

func (t *tree) make(h *tar.Header, at place) (*node, error) {
	n := &node{kind: h.Typeflag, from: at}
	switch h.Typeflag {
	case tar.TypeDir:
		n.children = map[string]*node{}
	case tar.TypeReg, tar.TypeGNUSparse:
		n.kind, n.file = tar.TypeReg, &file{from: at}
	case tar.TypeSymlink:
		if len(h.Linkname) > maxName {
			return nil, fmt.Errorf("the symbolic link's target has %d bytes", len(h.Linkname))
		}
		n.target = h.Linkname
	case tar.TypeLink:
		target, err := clean(h.Linkname)
		if err != nil {
			return nil, fmt.Errorf("hard link to %.256q: %w", h.Linkname, err)
		}
		dir, base := path.Split(target)
		parent, err := t.folder(dir, at)
		if err != nil {
			return nil, fmt.Errorf("hard link to %.256q: %w", h.Linkname, err)
		}
		to := parent.children[base]
		if to == nil || to.kind != tar.TypeReg {
			return nil, fmt.Errorf("hard link to %.256q, which is no regular file that stands before", h.Linkname)
		}
		n.kind, n.file = tar.TypeReg, to.file
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	default:
		return nil, fmt.Errorf("entries of type %q are not known", h.Typeflag)
	}
	return n, nil
}

// hide removes what lower layers made at or below a node, and tells whether nothing is left of it.
func (n *node) hide(layer int) bool {
	for name, child := range n.children {
		if child.hide(layer) {
			delete(n.children, name)
		}
	}
	return n.from.layer < layer && len(n.children) == 0
}

// kept is what is left of an entry.
type kept struct {
	name string
	file *file
}

// settle gives what is in the tree, and the contents that are, by the entries that they came from.
func (t *tree) settle() (names map[place]kept, contents map[place]*file) {
	names, contents = map[place]kept{}, map[place]*file{}
	var walk func(n *node, name string)
	walk = func(n *node, name string) {
		names[n.from] = kept{name, n.file}
		if f := n.file; f != nil {
			contents[f.from] = f
			switch {
			case n.from == f.from:
				f.name, f.own = name, true
			case !f.own && (f.name == "" || name < f.name):
				f.name = name
			}
		}
		for base, child := range n.children {
			walk(child, path.Join(name, base))
		}
	}
	walk(t.root, "")
	return names, contents
}
