package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"bloomery/images"
	"bloomery/internal/figures"
)

// Commands for sh with FILE and OUT in its environment.
const (
	writePeer  = `zstd -dc "$FILE" | dd of="$OUT" bs=4M oflag=direct conv=fsync`
	compare    = `cmp "$FILE" "$OUT"`
	importPeer = `zstd -3 -T2 -q -f "$FILE" -o "$OUT"`
)

// measure makes what both sides read, none of which is timed, and then lets them take turns. dir is empty, for all that is made.
func measure(ctx context.Context, image, raw, dir string, runs int) (rows []figures.Row, err error) {
	public, private, err := images.GenerateKey() // of this run only, never stored
	if err != nil {
		return nil, err
	}
	m, err := fill(filepath.Join(dir, "store"), image, private)
	if err != nil {
		return nil, fmt.Errorf("preparing the image %s: %w", image, err)
	}
	compressed, ours, peer := filepath.Join(dir, "raw.zst"), filepath.Join(dir, "ours"), filepath.Join(dir, "peer")
	if err := shell(ctx, importPeer, raw, compressed); err != nil {
		return nil, err
	}
	source, stop, err := serve(filepath.Join(dir, "store"), public)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()

	shown := strings.NewReplacer(`"`, "", "$", "")
	a, b, err := alternate(ctx, runs,
		func() error { return writeOurs(ctx, source, m, ours, public) },
		func() error { return shell(ctx, writePeer, compressed, peer) },
		func() error { // a figure counts only when the work was done
			return errors.Join(shell(ctx, compare, raw, ours), shell(ctx, compare, raw, peer), os.Remove(ours), os.Remove(peer))
		})
	if err != nil {
		return nil, fmt.Errorf("measuring the write: %w", err)
	}
	rows = append(rows, withFigures(figures.Row{
		Name: "write", PeerCommand: shown.Replace(writePeer), Goal: 1,
		Note: "To a new file from warm caches. Ours fetches by loopback HTTP, verifies signature and sums, leaves zeros as holes, syncs, reads a sample " +
			"back. The peer reads a local file of zstd -3 and writes zeros too; dd without iflag=fullblock leaves O_DIRECT at the pipe's first short read.",
	}, m.Size, a, b))

	a, b, err = alternate(ctx, runs,
		func() error { return importOurs(ctx, raw, ours) },
		func() error { return shell(ctx, importPeer, raw, peer) },
		func() error { return errors.Join(os.RemoveAll(ours), os.Remove(peer)) })
	if err != nil {
		return nil, fmt.Errorf("measuring the import: %w", err)
	}
	return append(rows, withFigures(figures.Row{
		Name: "import", PeerCommand: shown.Replace(importPeer), Goal: 1,
		Note: "From warm caches, two threads each. Ours compresses harder, in frames of 4 MiB with SHA-256 sums, skips zeros and syncs; the peer does not sync.",
	}, m.Size, a, b)), nil
}

// alternate times ours and peer in turn and calls finish after each round.
func alternate(ctx context.Context, runs int, ours, peer, finish func() error) (a, b []time.Duration, err error) {
	for range runs {
		times := make([]time.Duration, 3)
		for i, step := range []func() error{ours, peer, finish} {
			syscall.Sync() // nobody pays for what others have left to be written
			start := time.Now()
			if err := errors.Join(ctx.Err(), step()); err != nil {
				return nil, nil, err
			}
			times[i] = time.Since(start)
		}
		a, b = append(a, times[0]), append(b, times[1])
	}
	return a, b, nil
}

// fill puts a copy of the image into a new store, signed by key whether it was signed or not.
func fill(store, image string, key images.PrivateKey) (*images.Manifest, error) {
	manifest, err := os.ReadFile(filepath.Join(image, images.ManifestFile))
	if err != nil {
		return nil, err
	}
	m, err := images.DecodeManifest(manifest)
	if err != nil {
		return nil, err
	}
	signature, err := images.Sign(manifest, key)
	if err != nil {
		return nil, err
	}
	folder := filepath.Join(store, m.Name)
	err = os.CopyFS(folder, os.DirFS(image))
	return m, errors.Join(err, os.WriteFile(filepath.Join(folder, images.SignatureFile), signature, 0o600))
}

// serve serves the store on loopback until stop is called.
func serve(dir string, key images.PublicKey) (source *images.HTTPSource, stop func() error, err error) {
	store, err := images.OpenStore(dir, key)
	if err != nil {
		return nil, nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("serving the image: %w", err), store.Close())
	}
	server := &http.Server{Handler: images.Handler(store, slog.New(slog.DiscardHandler)), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // ends by stop; a failure before it shows as one of the write
	}()
	stop = func() error {
		err := server.Close()
		<-done
		return errors.Join(err, store.Close())
	}
	return &images.HTTPSource{BaseURLs: []string{"http://" + listener.Addr().String()}}, stop, nil
}

// writeOurs does all that an installing machine does with an image, to a new file of the image's size.
func writeOurs(ctx context.Context, source images.Source, image *images.Manifest, path string, key images.PublicKey) error {
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, image.Size)); err != nil {
		return err
	}
	manifest, signature, err := source.FetchManifest(ctx, image.Name)
	if err != nil {
		return err
	}
	m, err := images.VerifyManifest(manifest, signature, key)
	if err != nil {
		return err
	}
	disk, err := images.OpenDisk(path)
	if err != nil {
		return err
	}
	_, err = images.Write(ctx, images.WriteOptions{Manifest: m, Source: source, Device: disk})
	return errors.Join(err, disk.Close())
}

func importOurs(ctx context.Context, raw, out string) error {
	file, err := os.Open(raw)
	if err == nil {
		_, err = images.Import(ctx, file, images.ImportOptions{Name: "bench", Out: out})
		err = errors.Join(err, file.Close())
	}
	return err
}

// shell runs a command in a process group of its own, so that a cancelled pipeline ends as a whole.
func shell(ctx context.Context, command, file, out string) error {
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Env = append(os.Environ(), "FILE="+file, "OUT="+out)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("running %s: %w: %s", command, err, bytes.TrimSpace(said))
	}
	return nil
}
