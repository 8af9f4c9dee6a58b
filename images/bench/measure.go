package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"bloomery/images"
	"bloomery/internal/figures"
)

// Commands for bash with FILE, OUT and URL in its environment.
const (
	shellPeer  = `curl -sSf "$URL" | zstd -dc | dd of="$OUT" bs=4M iflag=fullblock oflag=direct conv=fsync`
	qemuPeer   = `qemu-img convert -n -t none -W -m 4 -O raw "$FILE" "$OUT"`
	importPeer = `zstd -3 -T2 -q -f "$FILE" -o "$OUT"`
	makeQcow2  = `qemu-img convert -O qcow2 -c -o compression_type=zstd "$FILE" "$OUT"`
	same       = `cmp -n "$(stat -c %s "$FILE")" "$FILE" "$OUT"`
	forget     = `blkdiscard -f "$OUT"`
)

// ssdRate is what a SATA SSD takes, in bytes a second. A disk in memory is limited by the CPU, as all else is on one host; this one is a limit of its own.
const ssdRate = 500e6

// slack is by how much the disk is larger than the image.
const slack = 16 << 20

// bench is one run of all measurements.
type bench struct {
	dir, memory, image, raw string
	runs                    int
	log                     io.Writer
}

// subject is an image in the forms that the sides read.
type subject struct {
	name, raw, zst, qemu string
	manifest             *images.Manifest
}

func (b *bench) measure(ctx context.Context, only string) (rows []figures.Row, err error) {
	public, private, err := images.GenerateKey() // of this run only, never stored
	if err != nil {
		return nil, err
	}
	key := filepath.Join(b.dir, "image.pub")
	if err := os.WriteFile(key, []byte(public.String()+"\n"), 0o600); err != nil {
		return nil, err
	}
	url, stop, err := serve(b.dir, public)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for _, part := range []struct {
		name    string
		measure func() ([]figures.Row, error)
	}{
		{"debian-12", func() ([]figures.Row, error) { return b.writes(ctx, b.debian, url, key, private, 0) }},
		{"incompressible", func() ([]figures.Row, error) { return b.writes(ctx, b.incompressible, url, key, private, ssdRate) }},
		{"import", func() ([]figures.Row, error) { return b.imports(ctx) }},
	} {
		if only != "" && only != part.name {
			continue
		}
		more, err := part.measure()
		if err != nil {
			return nil, fmt.Errorf("measuring %s: %w", part.name, err)
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

// side is one of those that take turns.
type side struct {
	name string
	task task
}

// writes measures the writing of a subject by all sides, and the limits of ours; and once more with a disk of so many bytes a second, unless that is 0.
func (b *bench) writes(ctx context.Context, prepare func(context.Context, images.PrivateKey) (subject, error), url, key string, private images.PrivateKey, perSecond int64) (rows []figures.Row, err error) {
	s, err := prepare(ctx, private)
	if err != nil {
		return nil, err
	}
	disk, stop, err := ramDisk(ctx, b.memory, s.manifest.Size+slack)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	stored := filepath.Join(b.dir, "store", s.manifest.Name)
	compressed := url + "/files/" + filepath.Base(s.zst)
	sides := []side{
		{"ours", task{Do: "write", URL: url, Name: s.manifest.Name, Key: key, Out: disk}},
		{"shell", task{Do: "shell", Command: shellPeer, URL: compressed, Out: disk}},
		{"qemu-img", task{Do: "shell", Command: qemuPeer, File: s.qemu, Out: disk}},
		{"go", task{Do: "go", URL: compressed, Out: disk}},
		{"network", task{Do: "network", URL: url, Name: s.manifest.Name, File: stored}},
		{"decompress", task{Do: "decompress", File: stored}},
		{"disk", task{Do: "disk", File: stored, Out: disk}},
	}
	used, err := b.takeTurns(ctx, s, disk, sides)
	if err != nil {
		return nil, err
	}
	rows = b.judge(s, used)
	if perSecond == 0 {
		return rows, nil
	}
	can, err := throttle(disk, perSecond)
	if err != nil || !can {
		fmt.Fprintf(b.log, "no row for a disk of %d MB/s: this host cannot throttle one (cgroup v1, blkio)\n", perSecond/1e6)
		return rows, err
	}
	defer func() {
		_, failed := throttle(disk, 0)
		err = errors.Join(err, failed)
	}()
	slow, err := b.takeTurns(ctx, s, disk, []side{sides[0], sides[1], sides[6]})
	if err != nil {
		return nil, err
	}
	slow["network"], slow["decompress"] = used["network"], used["decompress"]
	s.name += fmt.Sprintf(" to a disk of %d MB/s", perSecond/1e6)
	return append(rows, b.rate(s, slow, peers(s)[0]), b.limit(s, slow)), nil
}

// takeTurns lets the sides work on an empty disk one after another, as often as asked for.
func (b *bench) takeTurns(ctx context.Context, s subject, disk string, sides []side) (map[string][]usage, error) {
	used := map[string][]usage{}
	for run := range b.runs {
		for _, side := range sides {
			for _, before := range []string{forget, "sync"} { // nobody pays for what others have left
				if _, err := (task{Do: "shell", Command: before, Out: disk}).start(ctx); err != nil {
					return nil, err
				}
			}
			took, err := side.task.start(ctx)
			if err != nil {
				return nil, err
			}
			used[side.name] = append(used[side.name], took)
			fmt.Fprintf(b.log, "%s run %d: %-10s %6.2f s, %5.2f s of CPU, %5.1f MiB\n", s.name, run+1, side.name, took.Seconds, took.CPU, took.Peak)
			if slices.Contains(parts(), side.name) {
				continue
			}
			if _, err := (task{Do: "shell", Command: same, File: s.raw, Out: disk}).start(ctx); err != nil { // a figure counts only when the work was done
				return nil, fmt.Errorf("%s did not write the image: %w", side.name, err)
			}
		}
	}
	return used, nil
}

// peer is another way to write a disk.
type peer struct {
	name, command string
	goal          float64
	note          string
}

func peers(s subject) []peer {
	return []peer{
		{"shell", shown(shellPeer), 1.5, "Both from one server by plain loopback HTTP onto an empty loop device in memory. Ours verifies signature and sums and reads a sample back. The peer reads zstd -3."},
		{"qemu-img", shown(qemuPeer), 1, "The peer reads a local file, " + filepath.Ext(s.qemu)[1:] + ", since its HTTP driver is a package of its own, and verifies nothing."},
		{"go", "http.Get, zstd.NewReader, O_DIRECT writes of 4 MiB, fsync", 1, "The peer reads zstd -3 from the same server as ours, in one stream, and verifies nothing."},
	}
}

// parts are the limits: the parts of ours, each alone.
func parts() []string { return []string{"network", "decompress", "disk"} }

func shown(command string) string { return strings.NewReplacer(`"`, "", "$", "").Replace(command) }

// judge makes rows of what the sides used.
func (b *bench) judge(s subject, used map[string][]usage) []figures.Row {
	var rows []figures.Row
	for _, p := range peers(s) {
		cpu := func(name string) float64 { return median(used[name], func(u usage) float64 { return u.CPU }) }
		peak := func(name string) float64 { return median(used[name], func(u usage) float64 { return u.Peak }) }
		rows = append(rows, b.rate(s, used, p),
			figures.Row{
				Name: "CPU to write " + s.name + " / " + p.name, Unit: "CPU seconds", Ours: round(cpu("ours")), Peer: round(cpu(p.name)),
				Ratio: round(cpu(p.name) / cpu("ours")), Runs: b.runs, PeerCommand: p.command,
				Note: "User and system time of the processes; the server's and the loop device's are nobody's. Ours includes SHA-256 of all compressed bytes.",
			},
			figures.Row{
				Name: "memory to write " + s.name + " / " + p.name, Unit: "MiB", Ours: round(peak("ours")), Peer: round(peak(p.name)),
				Ratio: round(peak(p.name) / peak("ours")), Runs: b.runs, PeerCommand: p.command,
				Note: "Peak resident memory; of a pipeline its largest process's. Wanted of ours: 64 MiB at most.",
			})
	}
	return append(rows, b.limit(s, used))
}

func (b *bench) rate(s subject, used map[string][]usage, p peer) figures.Row {
	ours, theirs := s.rate(used["ours"]), s.rate(used[p.name])
	return figures.Row{
		Name: "write " + s.name + " / " + p.name, Unit: "MB/s of disk", Ours: round(ours), Peer: round(theirs), Ratio: round(ours / theirs), Goal: p.goal, Runs: b.runs,
		PeerCommand: p.command, Note: p.note,
	}
}

// limit compares ours with the slowest of its parts alone.
func (b *bench) limit(s subject, used map[string][]usage) figures.Row {
	slowest, said := parts()[0], ""
	for _, name := range append(parts(), "ours") {
		if name != "ours" && s.rate(used[name]) < s.rate(used[slowest]) {
			slowest = name
		}
		said += fmt.Sprintf("%s %.2f s (%.2f s of CPU), ", name, median(used[name], func(u usage) float64 { return u.Seconds }), median(used[name], func(u usage) float64 { return u.CPU }))
	}
	ours, limit := s.rate(used["ours"]), s.rate(used[slowest])
	return figures.Row{
		Name: "write " + s.name + " / limit", Unit: "MB/s of disk", Ours: round(ours), Peer: round(limit), Ratio: round(ours / limit), Goal: 0.95, Runs: b.runs,
		PeerCommand: "the slowest part alone: " + slowest,
		Note:        said + "with the server and the loop device's worker on the same cores.",
	}
}

// rate is in MB of disk a second.
func (s subject) rate(used []usage) float64 {
	return float64(s.manifest.Size) / 1e6 / median(used, func(u usage) float64 { return u.Seconds })
}

func median(used []usage, of func(usage) float64) float64 {
	times := make([]time.Duration, 0, len(used))
	for _, u := range used {
		times = append(times, time.Duration(of(u)*float64(time.Second)))
	}
	return figures.Median(times).Seconds()
}

// round keeps three figures or the whole number.
func round(v float64) float64 {
	if v >= 100 {
		return math.Round(v)
	}
	return math.Round(100*v) / 100
}

// imports compares an import with plain compression.
func (b *bench) imports(ctx context.Context) ([]figures.Row, error) {
	ours, peer := filepath.Join(b.dir, "ours"), filepath.Join(b.dir, "peer")
	var a, c []usage
	for range b.runs {
		syscall.Sync()
		took, err := (task{Do: "import", File: b.raw, Out: ours}).start(ctx)
		if err != nil {
			return nil, err
		}
		a = append(a, took)
		syscall.Sync()
		if took, err = (task{Do: "shell", Command: importPeer, File: b.raw, Out: peer}).start(ctx); err != nil {
			return nil, err
		}
		c = append(c, took)
		if err := errors.Join(os.RemoveAll(ours), os.Remove(peer)); err != nil {
			return nil, err
		}
	}
	info, err := os.Stat(b.raw)
	if err != nil {
		return nil, err
	}
	rate := func(used []usage) float64 {
		return float64(info.Size()) / 1e6 / median(used, func(u usage) float64 { return u.Seconds })
	}
	return []figures.Row{{
		Name: "import", Unit: "MB/s of disk", Ours: round(rate(a)), Peer: round(rate(c)), Ratio: round(rate(a) / rate(c)), Goal: 1, Runs: b.runs,
		PeerCommand: shown(importPeer),
		Note:        "From warm caches, two threads each. Ours compresses harder, in frames of 4 MiB with SHA-256 sums, skips zeros and syncs; the peer does not sync.",
	}}, nil
}

// serve serves the store and the files of dir on loopback until stop is called.
func serve(dir string, key images.PublicKey) (url string, stop func() error, err error) {
	store, err := images.OpenStore(filepath.Join(dir, "store"), key)
	if err != nil {
		return "", nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("serving the image: %w", err), store.Close())
	}
	mux := http.NewServeMux()
	mux.Handle("/images/", images.Handler(store, slog.New(slog.DiscardHandler)))
	mux.Handle("/files/", http.StripPrefix("/files/", http.FileServer(http.Dir(dir))))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
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
	return "http://" + listener.Addr().String(), stop, nil
}
