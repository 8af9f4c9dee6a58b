package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// An entry is "d NAME", "f NAME CONTENT", "s NAME TARGET", "l NAME TARGET" or "p NAME".
func layerOf(t testing.TB, entries ...string) v1.Layer {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		f := append(strings.SplitN(e, " ", 3), "", "")
		h := &tar.Header{Name: f[1], Mode: 0o644, Uid: 7}
		switch f[0] {
		case "d":
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		case "f":
			h.Typeflag, h.Size = tar.TypeReg, int64(len(f[2]))
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.from": f[1]}
		case "s":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f[2]
		case "l":
			h.Typeflag, h.Linkname = tar.TypeLink, f[2]
		case "p":
			h.Typeflag = tar.TypeFifo
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, f[2]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(out.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

func imageOf(t testing.TB, architecture string, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: architecture})
	if err == nil {
		img, err = mutate.AppendLayers(img, layers...)
	}
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// written writes images as a layout with the reference library.
func written(t testing.TB, images ...v1.Image) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range images {
		config, err := img.ConfigFile()
		if err == nil {
			err = l.AppendImage(img, layout.WithPlatform(v1.Platform{OS: config.OS, Architecture: config.Architecture}))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func options() Options {
	return Options{Platform: "linux/amd64", MaxSize: 1 << 20, Decompress: func(_ context.Context, r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }}
}

func flatten(t testing.TB, source string) (string, error) {
	t.Helper()
	l, err := Open(source)
	if err != nil {
		return "", err
	}
	defer l.Close()
	var out bytes.Buffer
	if err := l.Flatten(t.Context(), &out, options()); err != nil {
		return "", err
	}
	return listing(t, &out), nil
}

// listing shows an archive, a line for each entry, sorted by names.
func listing(t testing.TB, r io.Reader) string {
	t.Helper()
	var lines []string
	reader := tar.NewReader(r)
	for {
		h, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %c %d %s%s %s", h.Name, h.Typeflag, h.Uid, h.Linkname, content, h.PAXRecords["SCHILY.xattr.user.from"])))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestFlatten(t *testing.T) {
	for name, tc := range map[string]struct {
		layers [][]string
		want   []string
	}{
		"one layer":        {[][]string{{"d ./", "d etc/", "f etc/hosts 1", "s etc/link hosts", "l etc/hard etc/hosts", "p run"}}, []string{"./ 5 7", "etc/ 5 7", "etc/hard 1 7 etc/hosts", "etc/hosts 0 7 1 etc/hosts", "etc/link 2 7 hosts", "run 6 7"}},
		"replaced":         {[][]string{{"f a old"}, {"f a new"}}, []string{"a 0 7 new a"}},
		"removed":          {[][]string{{"f a 1", "f b 2"}, {"f .wh.a"}}, []string{"b 0 7 2 b"}},
		"removed folder":   {[][]string{{"d d/", "f d/a 1", "f b 2"}, {"f .wh.d"}}, []string{"b 0 7 2 b"}},
		"removed and back": {[][]string{{"f a 1"}, {"f .wh.a"}, {"f a 3"}}, []string{"a 0 7 3 a"}},
		"removed in its own layer": {[][]string{{"f a 1"}, {"f a 2", "f .wh.a"}},
			[]string{"a 0 7 2 a"}},
		"opaque":                    {[][]string{{"d d/", "f d/a 1"}, {"d d/", "f d/.wh..wh..opq", "f d/b 2"}}, []string{"d/ 5 7", "d/b 0 7 2 d/b"}},
		"opaque comes last":         {[][]string{{"d d/", "f d/a 1"}, {"d d/", "f d/b 2", "f d/.wh..wh..opq"}}, []string{"d/ 5 7", "d/b 0 7 2 d/b"}},
		"aufs":                      {[][]string{{"f a 1", "f .wh..wh.plnk"}}, []string{"a 0 7 1 a"}},
		"file becomes folder":       {[][]string{{"f a 1"}, {"d a/", "f a/b 2"}}, []string{"a/ 5 7", "a/b 0 7 2 a/b"}},
		"folder becomes file":       {[][]string{{"d a/", "f a/b 2"}, {"f a 1"}}, []string{"a 0 7 1 a"}},
		"folder again":              {[][]string{{"d a/", "f a/b 2"}, {"d a/"}}, []string{"a/ 5 7", "a/b 0 7 2 a/b"}},
		"link to a replaced file":   {[][]string{{"f a old", "l b a"}, {"f a new"}}, []string{"a 0 7 new a", "b 0 7 old a"}},
		"link to a removed file":    {[][]string{{"f a old", "l c a", "l b a"}, {"f .wh.a"}}, []string{"b 0 7 old a", "c 1 7 b"}},
		"link to a lower layer":     {[][]string{{"f a old"}, {"l b a"}}, []string{"a 0 7 old a", "b 1 7 a"}},
		"link to a link":            {[][]string{{"f a 1", "l b a", "l c b"}}, []string{"a 0 7 1 a", "b 1 7 a", "c 1 7 a"}},
		"through a symbolic link":   {[][]string{{"d usr/", "d usr/bin/", "s bin usr/bin"}, {"f bin/sh 1", "l bin/bash bin/sh"}}, []string{"bin 2 7 usr/bin", "usr/ 5 7", "usr/bin/ 5 7", "usr/bin/bash 1 7 usr/bin/sh", "usr/bin/sh 0 7 1 bin/sh"}},
		"through an absolute one":   {[][]string{{"s lib64 /usr/lib"}, {"f lib64/a 1"}}, []string{"lib64 2 7 /usr/lib", "usr/lib/a 0 7 1 lib64/a"}},
		"a link out of the root":    {[][]string{{"s up ../../../x"}, {"f up/a 1"}}, []string{"up 2 7 ../../../x", "x/a 0 7 1 up/a"}},
		"a slash at the beginning":  {[][]string{{"f /a 1", "f ./b 2"}}, []string{"a 0 7 1 /a", "b 0 7 2 ./b"}},
		"whiteout of what is not":   {[][]string{{"f a 1"}, {"f .wh.nothing", "f x/.wh.y"}}, []string{"a 0 7 1 a"}},
		"whiteout through a folder": {[][]string{{"d d/", "d d/e/", "f d/e/a 1", "f d/e/b 1"}, {"f d/e/.wh.a"}}, []string{"d/ 5 7", "d/e/ 5 7", "d/e/b 0 7 1 d/e/b"}},
	} {
		t.Run(name, func(t *testing.T) {
			var layers []v1.Layer
			for _, entries := range tc.layers {
				layers = append(layers, layerOf(t, entries...))
			}
			source := written(t, imageOf(t, "amd64", layers...))
			got, err := flatten(t, source)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Join(tc.want, "\n"), got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			again, err := flatten(t, packed(t, source))
			if err != nil || again != got {
				t.Errorf("from an archive of the layout: %v\n%s", err, again)
			}
		})
	}
}

// packed makes a tar archive of a layout.
func packed(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "layout.tar")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(file)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close(), file.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestLikeTheLibrary flattens random layers without links, which the library's own way treats alike.
func TestLikeTheLibrary(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for round := range 100 {
		var layers []v1.Layer
		for n := range 1 + random.IntN(4) {
			var entries []string
			seen := map[string]bool{}
			for range random.IntN(12) {
				dir := []string{"", "a/", "b/"}[random.IntN(3)]
				name := dir + []string{"x", "y", "z"}[random.IntN(3)]
				if seen[name] {
					continue
				}
				seen[name] = true
				if n > 0 && random.IntN(3) == 0 {
					entries = append(entries, "f "+dir+".wh."+filepath.Base(name))
				} else {
					entries = append(entries, fmt.Sprintf("f %s %d", name, random.IntN(100)))
				}
			}
			layers = append(layers, layerOf(t, entries...))
		}
		img := imageOf(t, "amd64", layers...)
		extracted := mutate.Extract(img)
		want := listing(t, extracted)
		if err := extracted.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := flatten(t, written(t, img))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("round %d (-library +ours):\n%s", round, diff)
		}
	}
}

func TestPlatforms(t *testing.T) {
	amd, arm := imageOf(t, "amd64", layerOf(t, "f a amd")), imageOf(t, "arm64", layerOf(t, "f a arm"))
	if got, err := flatten(t, written(t, arm, amd)); err != nil || got != "a 0 7 amd a" {
		t.Errorf("of two platforms: %q, %v", got, err)
	}
	if _, err := flatten(t, written(t, arm)); err == nil || !strings.Contains(err.Error(), "there are: linux/arm64") {
		t.Errorf("only arm64: %v", err)
	}
	if _, err := flatten(t, written(t, amd, imageOf(t, "amd64", layerOf(t, "f b 2")))); err == nil || !strings.Contains(err.Error(), "2 images are for platform linux/amd64") {
		t.Errorf("two for one platform: %v", err)
	}
	// An index in the index, as multi-platform images have.
	inner := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: arm}, mutate.IndexAddendum{Add: amd, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	dir := filepath.Join(t.TempDir(), "layout")
	l, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = l.AppendIndex(inner)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := flatten(t, dir); err == nil || !strings.Contains(err.Error(), "2 images") {
		// The arm one does not say in the index what it is for.
		t.Errorf("an index in the index: %v", err)
	}
	l2, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l2.Close()
	if err := l2.Flatten(t.Context(), io.Discard, Options{Platform: "a/b/c/d", MaxSize: 1}); err == nil {
		t.Error("a platform of four parts was accepted")
	}
}

func TestRefusals(t *testing.T) {
	spoil := func(t *testing.T, dir string, change func(name string, data []byte) []byte) {
		t.Helper()
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			name, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			if data = change(name, data); data == nil {
				return os.Remove(path)
			}
			return os.WriteFile(path, data, 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	isGzip := func(data []byte) bool { return bytes.HasPrefix(data, []byte("\x1f\x8b")) }
	isManifest := func(data []byte) bool { return bytes.Contains(data, []byte(`"layers"`)) }
	for name, tc := range map[string]struct {
		entries []string
		change  func(name string, data []byte) []byte
		want    string
	}{
		"dot-dot":        {[]string{"f ../a 1"}, nil, `has the part ".."`},
		"link nowhere":   {[]string{"l a b"}, nil, "no regular file"},
		"link to link":   {[]string{"s a b", "l c a"}, nil, "no regular file"},
		"below a file":   {[]string{"f a 1", "f a/b 2"}, nil, "is no folder"},
		"a loop":         {[]string{"s a b", "s b a", "f a/x 1"}, nil, "symbolic links"},
		"empty whiteout": {[]string{"f .wh."}, nil, "names nothing"},
		"root is a file": {[]string{"f . 1"}, nil, "root is no folder"},
		"deep":           {[]string{"f " + strings.Repeat("a/", 1025) + "b 1"}, nil, "folders"},
		"too large":      {[]string{"f a " + strings.Repeat("x", 1<<20)}, nil, "limit"},
		"no layout":      {nil, func(n string, d []byte) []byte { return omit(n == "oci-layout", d) }, "oci-layout"},
		"no index":       {nil, func(n string, d []byte) []byte { return omit(n == "index.json", d) }, "index.json"},
		"large index": {nil, func(n string, d []byte) []byte {
			if n == "index.json" {
				return append(d, bytes.Repeat([]byte(" "), maxDocument)...)
			}
			return d
		}, "more than 4194304"},
		"no layer": {nil, func(_ string, d []byte) []byte { return omit(isGzip(d), d) }, "no such file"},
		"a longer layer": {nil, func(_ string, d []byte) []byte {
			if isGzip(d) {
				return append(d, 0)
			}
			return d
		}, "want"},
		"a flipped layer": {nil, func(_ string, d []byte) []byte {
			if isGzip(d) {
				d[9] ^= 1 // the system that made it: gzip does not care
			}
			return d
		}, "the blob has sha256"},
		"a changed manifest": {nil, func(_ string, d []byte) []byte {
			if isManifest(d) {
				d[0] = ' '
			}
			return d
		}, "has sha256"},
		"a bad digest": {nil, func(n string, d []byte) []byte {
			if n == "index.json" {
				return bytes.ReplaceAll(d, []byte("sha256:"), []byte("sha512:"))
			}
			return d
		}, "sha512"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := written(t, imageOf(t, "amd64", layerOf(t, append([]string{"f first 1"}, tc.entries...)...)))
			if tc.change != nil {
				spoil(t, dir, tc.change)
			}
			if _, err := flatten(t, dir); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want %q in it", err, tc.want)
			}
		})
	}
}

func omit(yes bool, data []byte) []byte {
	if yes {
		return nil
	}
	return data
}

// TestDiffIDs refuses a layer that decompresses to something else than its image says.
func TestDiffIDs(t *testing.T) {
	img := imageOf(t, "amd64", layerOf(t, "f a 1"))
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.RootFS.DiffIDs[0].Hex = strings.Repeat("0", 64)
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	if _, err := flatten(t, written(t, img)); err == nil || !strings.Contains(err.Error(), "the decompressed layer has sha256") {
		t.Errorf("error = %v", err)
	}
}

// FuzzLayers gives the tree any layers, as text. Whatever comes out is an archive whose links have their targets.
func FuzzLayers(f *testing.F) {
	f.Add("f a 1\nl b a\n\nf .wh.a\ns c b\nf c/d 1\nf d/.wh..wh..opq")
	f.Add("d a/\nf a/b 1\n\nf a 2\n\nd a/\nl a/x a/b")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 4096 {
			return
		}
		tree := newTree()
		for layer, entries := range strings.Split(text, "\n\n") {
			for index, e := range strings.Split(entries, "\n") {
				part := append(strings.SplitN(e, " ", 3), "", "")
				kinds := map[string]byte{"f": tar.TypeReg, "d": tar.TypeDir, "s": tar.TypeSymlink, "l": tar.TypeLink, "p": tar.TypeFifo}
				if err := tree.add(&tar.Header{Typeflag: kinds[part[0]], Name: part[1], Linkname: part[2]}, place{layer, index}); err != nil {
					return
				}
			}
		}
		names, contents := tree.settle()
		for at, entry := range names {
			if entry.file == nil {
				continue
			}
			if content := contents[entry.file.from]; content != entry.file || content.name == "" || entry.file.from.layer > at.layer {
				t.Fatalf("%+v has no content before it: %+v", entry, content)
			}
		}
	})
}

// FuzzIndex gives any index and manifest.
func FuzzIndex(f *testing.F) {
	text, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, Manifests: []v1.Descriptor{{MediaType: "application/vnd.oci.image.manifest.v1+json", Size: 3, Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("a", 64)}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, index []byte) {
		l := &Layout{close: func() error { return nil }, open: func(string) (io.ReadCloser, int64, error) {
			return io.NopCloser(bytes.NewReader(index)), int64(len(index)), nil
		}}
		if _, err := l.choose(v1.Platform{OS: "linux", Architecture: "amd64"}); err == nil {
			t.Error("an index that is its own manifest with its own digest")
		}
	})
}
