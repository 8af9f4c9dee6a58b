package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

// Source is where a machine gets images from. Its methods may be called concurrently.
type Source interface {
	// FetchManifest returns a manifest and its signature, neither of them verified.
	FetchManifest(ctx context.Context, name string) (manifest, signature []byte, err error)
	// ReadRange fills p with the bytes of the image's data from offset on, or fails. The bytes are not verified; a repeated
	// call after wrong bytes asks another server where there is one.
	ReadRange(ctx context.Context, name string, p []byte, offset int64) error
}

const (
	defaultPatience    = 3 * time.Minute
	defaultIdleTimeout = 5 * time.Second
	firstBackoff       = 200 * time.Millisecond
	maxBackoff         = 5 * time.Second
)

// HTTPSource reads images from servers that Handler serves. Requests are spread over all of them; one that fails is spared for a while. When
// all have failed they are asked again in turn, with backoff, until Patience has passed without a success.
type HTTPSource struct {
	// BaseURLs are the servers, as in https://10.0.0.1:8443; /images/… is added.
	BaseURLs []string
	// Client sends the requests; http.DefaultClient when nil. It needs no timeout of its own.
	Client *http.Client
	// Patience is for how long one call goes on trying; 3 minutes when 0, which outlasts a coordinator's restart.
	Patience time.Duration
	// IdleTimeout is for how long a server may send nothing before it is taken for dead; 5 s when 0.
	IdleTimeout time.Duration

	servers servers
}

// FetchManifest implements Source. When no server has the image the error is ErrNotFound.
func (s *HTTPSource) FetchManifest(ctx context.Context, name string) (manifest, signature []byte, err error) {
	err = s.retry(ctx, name, func(ctx context.Context, base string) error {
		if manifest, err = s.getAll(ctx, base, name, ManifestFile, MaxManifestSize); err != nil {
			return err
		}
		signature, err = s.getAll(ctx, base, name, SignatureFile, MaxSignatureSize)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("fetching manifest of image %.64s: %w", name, err)
	}
	return manifest, signature, nil
}

// ReadRange implements Source.
func (s *HTTPSource) ReadRange(ctx context.Context, name string, p []byte, offset int64) error {
	if len(p) == 0 {
		return nil
	}
	err := s.retry(ctx, name, func(ctx context.Context, base string) error { return s.getRange(ctx, base, name, p, offset) })
	if err != nil {
		return fmt.Errorf("fetching %d bytes at %d of image %.64s: %w", len(p), offset, name, err)
	}
	return nil
}

// permanentError is an answer that asking the same server again will not change.
type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// retry calls get for one server after another until one succeeds, all have refused for good, or the patience is over.
func (s *HTTPSource) retry(ctx context.Context, name string, get func(context.Context, string) error) error {
	if len(s.BaseURLs) == 0 {
		return errors.New("no server is known")
	}
	if err := ValidateName(name); err != nil {
		return err
	}
	patience := s.Patience
	if patience == 0 {
		patience = defaultPatience
	}
	deadline := time.Now().Add(patience)
	backoff := firstBackoff
	for {
		refused := 0
		var last error
		for _, base := range s.servers.order(s.BaseURLs, time.Now()) {
			err := get(ctx, strings.TrimSuffix(base, "/"))
			if err != nil && ctx.Err() != nil {
				return err
			}
			s.servers.outcome(base, err, time.Now())
			if err == nil {
				return nil
			}
			var permanent *permanentError
			if errors.As(err, &permanent) {
				refused++
			}
			// What went wrong says more than that another server does not have the image.
			if last == nil || !errors.Is(err, ErrNotFound) {
				last = err
			}
		}
		if refused == len(s.BaseURLs) {
			return last
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("giving up after %s: %w", patience, last)
		}
		timer := time.NewTimer(backoff/2 + rand.N(backoff))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(ctx.Err(), last)
		}
		backoff = min(backoff*2, maxBackoff)
	}
}

func (s *HTTPSource) getAll(ctx context.Context, base, name, file string, limit int64) ([]byte, error) {
	var data []byte
	err := s.get(ctx, base, name, file, "", func(response *http.Response, body io.Reader) error {
		if response.StatusCode != http.StatusOK {
			return statusError(response)
		}
		var err error
		data, err = io.ReadAll(io.LimitReader(body, limit+1))
		if err != nil {
			return fmt.Errorf("reading answer: %w", err)
		}
		if int64(len(data)) > limit {
			return &permanentError{fmt.Errorf("answer has more than %d bytes", limit)}
		}
		return nil
	})
	return data, err
}

func (s *HTTPSource) getRange(ctx context.Context, base, name string, p []byte, offset int64) error {
	end := offset + int64(len(p)) - 1
	return s.get(ctx, base, name, DataFile, fmt.Sprintf("bytes=%d-%d", offset, end), func(response *http.Response, body io.Reader) error {
		if response.StatusCode == http.StatusRequestedRangeNotSatisfiable {
			return &permanentError{fmt.Errorf("server's image ends before byte %d: %w", offset, ErrCorrupt)}
		}
		if response.StatusCode != http.StatusPartialContent {
			return statusError(response)
		}
		want := fmt.Sprintf("bytes %d-%d/", offset, end)
		if got := response.Header.Get("Content-Range"); !strings.HasPrefix(got, want) {
			// Also what a server with a truncated file answers: asking it again brings nothing.
			return &permanentError{fmt.Errorf("server answered with Content-Range %.64q, want %q: %w", got, want+"…", ErrCorrupt)}
		}
		n, err := io.ReadFull(body, p)
		if err != nil {
			return fmt.Errorf("answer ended after %d of %d bytes: %w", n, len(p), err)
		}
		return nil
	})
}

// get sends one request. It is cut off when the server sends nothing for the idle timeout, neither headers nor body.
func (s *HTTPSource) get(ctx context.Context, base, name, file, byteRange string, use func(*http.Response, io.Reader) error) error {
	idle := s.IdleTimeout
	if idle == 0 {
		idle = defaultIdleTimeout
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := fmt.Errorf("server sent nothing for %s", idle)
	timer := time.AfterFunc(idle, func() { cancel(stalled) })
	defer timer.Stop()

	url := base + "/images/" + name + "/" + file
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return &permanentError{fmt.Errorf("server %q: %w", base, err)}
	}
	// Frames are compressed already, and a transparently decompressed answer has no ranges.
	request.Header.Set("Accept-Encoding", "identity")
	if byteRange != "" {
		request.Header.Set("Range", byteRange)
	}
	client := s.Client
	if client == nil {
		client = http.DefaultClient
	}
	response, err := client.Do(request)
	if err != nil {
		if context.Cause(ctx) == stalled {
			return fmt.Errorf("server %s: %w", base, stalled)
		}
		return err
	}
	defer response.Body.Close() // the bytes that matter were read or the error says so
	err = use(response, &idleReader{r: response.Body, timer: timer, idle: idle})
	if err != nil && context.Cause(ctx) == stalled {
		err = errors.Join(stalled, err)
	}
	if err != nil {
		return fmt.Errorf("server %s: %w", base, err)
	}
	return nil
}

// statusError turns an unexpected status into an error: 4xx stays so, but for 408, 425 and 429 (RFC 9110, section 15.5; RFC 6585, section 4).
func statusError(response *http.Response) error {
	switch code := response.StatusCode; {
	case code == http.StatusNotFound:
		return &permanentError{ErrNotFound}
	case code == http.StatusRequestTimeout || code == http.StatusTooEarly || code == http.StatusTooManyRequests:
		return fmt.Errorf("server answered %s", response.Status)
	case code >= 400 && code < 500, code >= 200 && code < 300:
		return &permanentError{fmt.Errorf("server answered %s", response.Status)}
	default:
		return fmt.Errorf("server answered %s", response.Status)
	}
}

// idleReader pushes the idle timer back with every read that brings something.
type idleReader struct {
	r     io.Reader
	timer *time.Timer
	idle  time.Duration
}

func (r *idleReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if n > 0 {
		r.timer.Reset(r.idle)
	}
	return n, err
}
