package coordinator

import (
	"context"
	"net/http"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/images"
	"bloomery/internal/pki"
)

func (r *imageRack) client(n *imageNode) bloomeryv1connect.ImageServiceClient {
	r.t.Helper()
	cert, key := pki.OperatorFiles(r.keys, "anna")
	config, err := pki.ClientTLS(filepath.Join(r.keys, pki.CACert), cert, key)
	must(r.t, err)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}
	r.t.Cleanup(client.CloseIdleConnections)
	must(r.t, n.importOperators(r.t.Context()))
	return bloomeryv1connect.NewImageServiceClient(client, n.url)
}

// TestUploadGoesOn breaks an upload in the middle of a frame, restarts the coordinator, and sends the rest.
func TestUploadGoesOn(t *testing.T) {
	r := newImageRack(t, "c1")
	c1 := r.nodes["c1"]
	manifest, signature, data := r.image("debian-12", 12<<20)
	header := &bloomeryv1.AddImageHeader{Name: "debian-12", Manifest: manifest, Signature: signature}
	m, err := images.DecodeManifest(manifest)
	must(t, err)
	send := func(ctx context.Context, client bloomeryv1connect.ImageServiceClient, offset int64, data []byte) *connect.ClientStreamForClient[bloomeryv1.AddImageRequest, bloomeryv1.AddImageResponse] {
		header.Offset = offset
		stream := client.AddImage(ctx)
		_ = stream.Send(&bloomeryv1.AddImageRequest{Part: &bloomeryv1.AddImageRequest_Header{Header: header}}) // CloseAndReceive tells what is wrong
		_ = stream.Send(&bloomeryv1.AddImageRequest{Part: &bloomeryv1.AddImageRequest_Data{Data: data}})
		return stream
	}
	received := func(client bloomeryv1connect.ImageServiceClient) int64 {
		answer, err := client.GetImageUpload(t.Context(), connect.NewRequest(&bloomeryv1.GetImageUploadRequest{ManifestSha256: m.SHA256().String()}))
		must(t, err)
		return answer.Msg.GetReceivedBytes()
	}
	client := r.client(c1)
	if got := received(client); got != 0 {
		t.Errorf("%d bytes of an image that nobody sent", got)
	}
	if _, err := client.GetImageUpload(t.Context(), connect.NewRequest(&bloomeryv1.GetImageUploadRequest{ManifestSha256: "../../etc"})); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("a digest that is none: %v", err)
	}

	ctx, breakOff := context.WithCancel(t.Context())
	send(ctx, client, 0, data[:6<<20])
	frame := m.Frames[0].DataLength
	until(t, "the first frame arrives", func() bool { return received(client) == frame })
	breakOff()
	dir := c1.dir
	c1.stop()

	c1 = r.join("c1", dir)
	client = r.client(c1)
	if got := received(client); got != frame {
		t.Errorf("after a restart %d bytes are kept, want %d", got, frame)
	}
	if _, err := send(t.Context(), client, 2*frame, data[2*frame:]).CloseAndReceive(); connect.CodeOf(err) != connect.CodeAborted {
		t.Errorf("from elsewhere: %v, want ABORTED", err)
	}
	answer, err := send(t.Context(), client, frame, data[frame:]).CloseAndReceive()
	must(t, err)
	if answer.Msg.GetImage().GetManifestSha256() != m.SHA256().String() {
		t.Errorf("stored %v", answer.Msg.GetImage())
	}
	_, err = c1.Images.Verify(t.Context(), "debian-12")
	must(t, err)
}

// TestCopyGoesOn lets a coordinator fetch an image of which it has the first frame: the other's first frame, which is spoilt, is not asked for.
func TestCopyGoesOn(t *testing.T) {
	r := newImageRack(t, "c1")
	manifest, signature, data := r.image("debian-12", 12<<20)
	upload, err := r.nodes["c1"].Images.Begin(t.Context(), "debian-12", manifest, signature)
	must(t, err)
	_, err = upload.Write(data)
	must(t, err)
	_, err = r.nodes["c1"].commitImage(t.Context(), upload)
	must(t, err)

	dir := t.TempDir()
	before, err := images.OpenStore(dir, r.public)
	must(t, err)
	upload, err = before.Begin(t.Context(), "debian-12", manifest, signature)
	must(t, err)
	_, err = upload.Write(data[:upload.Manifest().Frames[0].DataLength+5])
	must(t, err)
	upload.Abort()
	must(t, before.Close())
	flipAt(t, filepath.Join(r.nodes["c1"].dir, "debian-12", images.DataFile), 1000)

	c2 := r.join("c2", dir)
	r.eventually(c2, map[string][]string{"debian-12": {"c1", "c2"}})
	_, err = c2.Images.Verify(t.Context(), "debian-12")
	must(t, err)
}
