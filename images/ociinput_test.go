package images

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// TestImportOCI makes a rootfs image of two layers.
func TestImportOCI(t *testing.T) {
	lower := tarOf(t, folder("etc/"), file("etc/hosts", 3), file("etc/motd", 4), &tar.Header{Typeflag: tar.TypeReg, Name: "bin/ping", Mode: 0o755, Size: 9,
		PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20"}})
	upper := tarOf(t, file("etc/.wh.motd", 0), &tar.Header{Typeflag: tar.TypeLink, Name: "etc/hosts.old", Linkname: "etc/hosts"}, file("etc/hosts", 700))
	var layers []v1.Layer
	for _, l := range [][]byte{lower, upper} {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(l)), nil })
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, layer)
	}
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64"})
	if err == nil {
		img, err = mutate.AppendLayers(img, layers...)
	}
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(t.TempDir(), "layout")
	l, err := layout.Write(source, empty.Index)
	if err == nil {
		err = l.AppendImage(img)
	}
	if err != nil {
		t.Fatal(err)
	}

	out := filepath.Join(t.TempDir(), "image")
	m, err := ImportOCI(t.Context(), source, "", ImportOptions{Name: "d", Out: out, Boot: Boot{Kernel: "/bin/ping"}})
	if err != nil {
		t.Fatal(err)
	}
	if m.Kind != KindRootfs || len(m.Frames) != 1 {
		t.Fatalf("%+v", m)
	}
	stored, err := os.ReadFile(filepath.Join(out, DataFile))
	if err != nil {
		t.Fatal(err)
	}
	decoder, err := newFrameDecoder(m)
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.close()
	raw, err := decoder.decode(0, stored, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for reader := tar.NewReader(bytes.NewReader(raw)); ; {
		h, err := reader.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.TrimSpace(string(h.Typeflag)+" "+h.Name+" "+string(content[:min(len(content), 4)])))
		if h.Name == "bin/ping" && h.PAXRecords["SCHILY.xattr.security.capability"] == "" {
			t.Error("the capability is lost")
		}
	}
	// The file that was replaced lives on under its other name.
	if diff := cmp.Diff([]string{"5 etc/", "0 etc/hosts.old xxx", "5 bin/", "0 bin/ping xxxx", "0 etc/hosts xxxx"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}

	for name, tc := range map[string]struct {
		platform string
		limit    int64
		want     string
	}{
		"another platform": {"linux/arm64", 0, "is for platform linux/amd64"},
		"too large":        {"", 1024, "the layers are larger together than the limit"},
	} {
		if _, err := ImportOCI(t.Context(), source, tc.platform, ImportOptions{Name: "d", Out: filepath.Join(t.TempDir(), "i"), MaxSize: tc.limit}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q in it", name, err, tc.want)
		}
	}
	if _, err := ImportOCI(t.Context(), t.TempDir(), "", ImportOptions{Name: "d", Out: out}); err == nil || !strings.Contains(err.Error(), "oci-layout") {
		t.Errorf("an empty folder: %v", err)
	}
}
