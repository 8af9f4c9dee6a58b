package agent

import (
	"bytes"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	pb "bloomery/api/bloomery/v1"
	"bloomery/images"
)

func TestWriteImage(t *testing.T) {
	public, private, err := images.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := images.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	store := t.TempDir()
	manifest, err := images.Import(t.Context(), bytes.NewReader(make([]byte, 2<<20)), images.ImportOptions{Name: "debian-12", Out: filepath.Join(store, "debian-12"), Key: &private})
	if err != nil {
		t.Fatal(err)
	}
	digest := manifest.SHA256().String()
	for _, c := range []struct {
		name   string
		key    images.PublicKey
		spec   *pb.WriteImageStep
		resume int64
		size   uint64
		reason string
	}{
		{"good", public, &pb.WriteImageStep{Image: "debian-12", ManifestSha256: digest}, 0, 8 << 20, ""},
		{"resumed", public, &pb.WriteImageStep{Image: "debian-12", ManifestSha256: digest}, 1, 8 << 20, ""},
		{"other key", other, &pb.WriteImageStep{Image: "debian-12", ManifestSha256: digest}, 0, 8 << 20, "IMAGE_SIGNATURE"},
		{"other manifest", public, &pb.WriteImageStep{Image: "debian-12", ManifestSha256: strings.Repeat("0", 64)}, 0, 8 << 20, "IMAGE_MANIFEST_CHANGED"},
		{"key of the step", other, &pb.WriteImageStep{Image: "debian-12", ManifestSha256: digest, ImageKeys: []string{other.String(), public.String()}}, 0, 8 << 20, ""},
		{"own key is not the rack's any more", public, &pb.WriteImageStep{Image: "debian-12", ManifestSha256: digest, ImageKeys: []string{other.String()}}, 0, 8 << 20, "IMAGE_SIGNATURE"},
		{"key that is none", public, &pb.WriteImageStep{Image: "debian-12", ManifestSha256: digest, ImageKeys: []string{"RWQ"}}, 0, 8 << 20, "IMAGE_SIGNATURE"},
		{"no image", public, &pb.WriteImageStep{Image: "debian-13", ManifestSha256: digest}, 0, 8 << 20, "IMAGE_NOT_FOUND"},
		{"small disk", public, &pb.WriteImageStep{Image: "debian-12", ManifestSha256: digest}, 0, 1 << 20, "DISK_TOO_SMALL"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.spec.Disk = &pb.DiskRef{Serial: "S1"}
			coordinator := newFakeCoordinator(t, &pb.Step{Id: "a", Spec: &pb.Step_WriteImage{WriteImage: c.spec}, Progress: &pb.Progress{ResumeFrame: c.resume}})
			coordinator.mux.Handle("/images/", http.StripPrefix("/images/", http.FileServer(http.Dir(store))))
			m := newFakeMachine()
			m.disks[0].SizeBytes, m.key = c.size, c.key
			startAgent(t, coordinator, m)
			eventually(t, "step ended", func() bool { return len(coordinator.ends("a")) == 1 })
			end := coordinator.ends("a")[0]
			if end.Ok != (c.reason == "") || end.ErrorReason != c.reason {
				t.Errorf("ended as %v, want %q", end, c.reason)
			}
			if wrote := m.count("write /dev/vda") == 1; wrote != end.Ok {
				t.Errorf("wrote: %v", wrote)
			}
			if end.Ok && end.Result.AsMap()["resumed_at_frame"] != float64(c.resume) {
				t.Errorf("resumed at %v, want %d", end.Result.AsMap()["resumed_at_frame"], c.resume)
			}
		})
	}
}

func TestWritePercent(t *testing.T) {
	for _, c := range []struct {
		p    images.Progress
		want float64
	}{
		{images.Progress{DiskDone: 90, DiskTotal: 100, DataDone: 1, DataTotal: 4}, 25},
		{images.Progress{DiskDone: 10, DiskTotal: 100}, 0},
	} {
		if got := writePercent(c.p); got != c.want {
			t.Errorf("%+v is %v %%, want %v", c.p, got, c.want)
		}
	}
}
