package download

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxRedirects = 10
	// tries in a row that bring nothing end a download.
	tries      = 5
	firstPause = 500 * time.Millisecond
	longPause  = 10 * time.Second
	// defaultIdle is for how long a server may send nothing before it is taken for dead.
	defaultIdle = 30 * time.Second
)

// ErrChecksum says that what was fetched is not what was asked for.
var ErrChecksum = errors.New("the checksum is another one")

// Options say what to fetch. URL, Folder, Checksum and MaxSize must be set.
type Options struct {
	URL string
	// Folder takes the file while it is fetched; what an interruption leaves there is gone on with.
	Folder   string
	Checksum Checksum
	// MaxSize is the most bytes to take.
	MaxSize int64
	// Client sends the requests; http.DefaultClient when nil.
	Client *http.Client
	// Idle is for how long the server may send nothing; 30 s when 0.
	Idle time.Duration
	// Pause is the first one between tries, of which each next one is twice as long; 500 ms when 0.
	Pause time.Duration
	// Progress is called with the bytes that are there and those of the whole file, -1 when the server does not say.
	Progress func(done, total int64)
}

// Get fetches a file and returns its path in the folder once its checksum is right; removing it is the caller's. A part of it that another
// call left is gone on with, under a lock, so that two calls do not write one file.
func Get(ctx context.Context, o Options) (string, error) {
	source, err := parseURL(o.URL)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(o.Folder, 0o700); err != nil {
		return "", err
	}
	name := sha256.Sum256([]byte(o.URL + "\n" + o.Checksum.String()))
	file, err := os.OpenFile(filepath.Join(o.Folder, hex.EncodeToString(name[:16])), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", err
	}
	defer file.Close()
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return "", fmt.Errorf("%s is being fetched by another process", shown(source))
	}
	d := &fetch{Options: o, source: source, file: file, client: careful(o.Client)}
	if d.Idle == 0 {
		d.Idle = defaultIdle
	}
	if d.Pause == 0 {
		d.Pause = firstPause
	}
	if err := d.run(ctx); err != nil {
		return "", fmt.Errorf("fetch %s: %w", shown(source), err)
	}
	return file.Name(), nil
}

// careful is a client that follows no redirect from HTTPS to HTTP.
func careful(client *http.Client) *http.Client {
	if client == nil {
		client = http.DefaultClient
	}
	guarded := *client
	guarded.CheckRedirect = func(next *http.Request, via []*http.Request) error {
		if len(via) >= maxRedirects {
			return permanent{fmt.Errorf("more than %d redirects", maxRedirects)}
		}
		if next.URL.Scheme != "https" && via[0].URL.Scheme == "https" {
			return permanent{fmt.Errorf("redirected from https to %s", shown(next.URL))}
		}
		return nil
	}
	return &guarded
}

// fetch is one download.
type fetch struct {
	Options
	source *url.URL
	file   *os.File
	client *http.Client

	hash hash.Hash
	done int64
}

// permanent wraps what trying again does not mend.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

func (d *fetch) run(ctx context.Context) error {
	if err := d.recall(ctx); err != nil {
		return err
	}
	resumed := d.done > 0
	pause, failures := d.Pause, 0
	for {
		before := d.done
		err := d.attempt(ctx)
		if err == nil {
			if got := d.hash.Sum(nil); bytes.Equal(got, d.Checksum.Sum) {
				return d.file.Sync()
			}
			if !resumed {
				return errors.Join(fmt.Errorf("%w: want %s, got %s %x in %d bytes", ErrChecksum, d.Checksum, d.Checksum.Algorithm, d.hash.Sum(nil), d.done), d.restart())
			}
			// The beginning may be of a file that was replaced meanwhile.
			resumed = false
			if err := d.restart(); err != nil {
				return err
			}
			continue
		}
		var final permanent
		if ctx.Err() != nil || errors.As(err, &final) {
			return err
		}
		if d.done > before {
			pause, failures = d.Pause, 0
		}
		if failures++; failures >= tries {
			return fmt.Errorf("given up after %d tries: %w", tries, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause/2 + rand.N(pause)):
		}
		pause = min(2*pause, longPause)
		resumed = resumed || d.done > 0
	}
}

// recall hashes what an earlier call left.
func (d *fetch) recall(ctx context.Context) error {
	d.hash = d.Checksum.hash()
	if _, err := d.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	n, err := io.Copy(d.hash, &contextReader{ctx, d.file})
	d.done = n
	return err
}

func (d *fetch) restart() error {
	if err := d.file.Truncate(0); err != nil {
		return err
	}
	return d.recall(context.Background())
}

// attempt fetches what is missing.
func (d *fetch) attempt(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(d.Idle, func() { cancel(fmt.Errorf("the server sent nothing for %v", d.Idle)) })
	defer stalled.Stop()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, d.source.String(), nil)
	if err != nil {
		return permanent{bare(err)}
	}
	// A transport that unpacks by itself would fetch other bytes than those that the checksum is of.
	request.Header.Set("Accept-Encoding", "identity")
	if d.done > 0 {
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-", d.done))
	}
	response, err := d.client.Do(request)
	if err != nil {
		return cause(ctx, bare(err))
	}
	defer response.Body.Close()
	total := response.ContentLength
	switch response.StatusCode {
	case http.StatusOK:
		if d.done > 0 {
			if err := d.restart(); err != nil {
				return permanent{err}
			}
		}
	case http.StatusPartialContent:
		var from int64
		if _, err := fmt.Sscanf(response.Header.Get("Content-Range"), "bytes %d-", &from); err != nil || from != d.done {
			return permanent{fmt.Errorf("the server was asked for bytes from %d on and answers with %.64q", d.done, response.Header.Get("Content-Range"))}
		}
		if total >= 0 {
			total += d.done
		}
	case http.StatusRequestedRangeNotSatisfiable:
		// All of it is there, or more: the checksum tells.
		return nil
	default:
		err := fmt.Errorf("the server answers %s", response.Status)
		if response.StatusCode >= 500 || response.StatusCode == http.StatusTooManyRequests || response.StatusCode == http.StatusRequestTimeout {
			return err
		}
		return permanent{err}
	}
	if total > d.MaxSize {
		return permanent{fmt.Errorf("it has %d bytes, more than the limit of %d", total, d.MaxSize)}
	}
	buffer := make([]byte, 256<<10)
	for {
		n, err := response.Body.Read(buffer)
		stalled.Reset(d.Idle)
		if n > 0 {
			if d.done+int64(n) > d.MaxSize {
				return permanent{fmt.Errorf("it goes on at byte %d, the limit", d.MaxSize)}
			}
			if _, err := d.file.Write(buffer[:n]); err != nil {
				return permanent{err}
			}
			d.hash.Write(buffer[:n])
			d.done += int64(n)
			if d.Progress != nil {
				d.Progress(d.done, total)
			}
		}
		switch {
		case errors.Is(err, io.EOF) && total >= 0 && d.done < total:
			return io.ErrUnexpectedEOF
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return cause(ctx, err)
		}
	}
}

// cause is why a context ended, where that is why a call failed.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
