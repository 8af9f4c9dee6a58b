package coordinator

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

const (
	// DefaultKeepEvents is how many of the newest events stay in the database, which is in memory: about 400 bytes each.
	DefaultKeepEvents = 50_000
	// DefaultArchiveKeep is how long archived events are kept.
	DefaultArchiveKeep = 400 * 24 * time.Hour
	// segmentEvents is how many events a file of the archive holds.
	segmentEvents = 5000
	archiveDuty   = "event archive"
	archiveFolder = "archive"
	archivePath   = "/archive/"
	// fetchTimeout bounds one segment's way from another coordinator.
	fetchTimeout = time.Minute
	// cachedSegments are kept decoded, for whoever reads page after page.
	cachedSegments = 2
)

// Events says how many events are kept and where.
type Events struct {
	// Keep is how many stay in the database; what is older goes to the archive.
	Keep int64
	// ArchiveKeep is how long the archive keeps them.
	ArchiveKeep time.Duration
	// Segment is how many events a file holds; 0 means 5,000. No configuration file sets it, and it may differ from what earlier files hold.
	Segment int64
}

// FetchSegment opens a file of another coordinator's archive.
type FetchSegment func(ctx context.Context, node, file string) (io.ReadCloser, error)

// archive is this coordinator's copy of the older events.
type archive struct {
	dir string
	// members reads which coordinators the rack has.
	members func(*store.Reader) ([]string, error)
	mu      sync.Mutex
	// decoded are the segments that were read last, newest last.
	decoded []decodedSegment
}

type decodedSegment struct {
	first  int64
	events []*bloomeryv1.Event
}

func (a *archive) cached(first int64) ([]*bloomeryv1.Event, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, d := range a.decoded {
		if d.first == first {
			return d.events, true
		}
	}
	return nil, false
}

func (a *archive) remember(first int64, events []*bloomeryv1.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.decoded = append(a.decoded, decodedSegment{first, events})
	if len(a.decoded) > cachedSegments {
		a.decoded = slices.Delete(a.decoded, 0, 1)
	}
}

// Archive keeps this coordinator's copy of the older events complete, and the database small, until the context ends.
func (c *Coordinator) Archive(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { c.hold(ctx, archiveDuty, c.forgetEvents) })
	for {
		if err := c.archivePass(ctx); err != nil && ctx.Err() == nil {
			c.Logger.Error("archive events", "error", err)
		}
		sleep(ctx, jitter(c.config.Timing.Archive))
		if ctx.Err() != nil {
			return nil
		}
	}
}

// archivePass gets what this coordinator lacks and exports what has become old.
func (c *Coordinator) archivePass(ctx context.Context) error {
	segments, err := c.segments(ctx, 0)
	if err != nil {
		return err
	}
	var failed []error
	for _, s := range segments {
		if s.Dropped || slices.Contains(s.Copies, c.config.Node) {
			continue
		}
		if _, err := c.segmentLines(ctx, s); err != nil {
			failed = append(failed, err)
		}
	}
	for {
		more, err := c.exportSegment(ctx)
		if err != nil {
			failed = append(failed, err)
		}
		if err != nil || !more {
			break
		}
	}
	return errors.Join(append(failed, c.sweepArchive(segments))...)
}

func (c *Coordinator) segments(ctx context.Context, after int64) (all []*store.Segment, err error) {
	err = c.Store.View(ctx, func(r *store.Reader) (err error) {
		all, err = r.Segments(after)
		return err
	})
	return all, err
}

// exportSegment writes the next segment, when its last event is old enough, and then puts it on record. All coordinators do; the first
// one's record counts, and the others' must be the same.
func (c *Coordinator) exportSegment(ctx context.Context) (more bool, err error) {
	var s *store.Segment
	var events []*bloomeryv1.Event
	err = c.Store.View(ctx, func(r *store.Reader) error {
		s = nil
		last, err := r.LastSegment()
		if err != nil {
			return err
		}
		newest, err := r.NewestEvent()
		if err != nil {
			return err
		}
		first, before := int64(0), make([]byte, sha256.Size)
		if last != nil {
			first, before = last.Last+1, last.Chain
		} else if first, err = r.OldestEvent(); err != nil {
			return err
		}
		end := first + c.config.Events.Segment - 1
		if first == 0 || end > newest-c.config.Events.Keep {
			return nil
		}
		s = &store.Segment{First: first, Last: end, Chain: before}
		events, err = r.Events(store.EventFilter{After: first - 1, UpTo: end, Limit: int(c.config.Events.Segment)})
		return err
	})
	if err != nil || s == nil {
		return false, err
	}
	lines, err := encodeSegment(events)
	if err != nil {
		return false, err
	}
	sum := sha256.Sum256(lines)
	s.SHA256, s.Chain, s.Events = sum[:], chainValue(s.Chain, sum[:]), len(events)
	for _, e := range events {
		if at := e.GetTime().AsTime(); at.After(s.Newest) {
			s.Newest = at
		}
	}
	if err := writeSegmentFile(c.archive.dir, s, lines); err != nil {
		return false, err
	}
	return true, c.Store.Update(ctx, func(tx *store.Tx) error { return tx.AddSegment(s, c.config.Node) })
}

// segmentLines returns a segment's lines: from the file, else from the database, else from another coordinator. What was not on the disk
// is put there and noted.
func (c *Coordinator) segmentLines(ctx context.Context, s *store.Segment) ([]byte, error) {
	lines, err := readSegmentFile(c.archive.dir, s)
	if err == nil {
		if slices.Contains(s.Copies, c.config.Node) {
			return lines, nil
		}
		return lines, c.Store.Update(ctx, func(tx *store.Tx) error { return tx.AddCopy(s.First, c.config.Node) })
	}
	if !errors.Is(err, fs.ErrNotExist) {
		// Until it was replaced it is no copy that others may count on.
		c.Logger.Error("a file of the event archive cannot be read and is fetched again", "error", err)
		c.noteSpoiltSegment(ctx, s, err)
	}
	if slices.Contains(s.Copies, c.config.Node) {
		if err := c.Store.Update(ctx, func(tx *store.Tx) error { return tx.DropCopy(s.First, c.config.Node) }); err != nil {
			return nil, err
		}
	}
	lines, fetchErr := c.segmentFromDatabase(ctx, s)
	if lines == nil && fetchErr == nil {
		lines, fetchErr = c.segmentFromOthers(ctx, s)
	}
	if fetchErr != nil {
		return nil, errors.Join(err, fetchErr)
	}
	if err := writeSegmentFile(c.archive.dir, s, lines); err != nil {
		return nil, err
	}
	return lines, c.Store.Update(ctx, func(tx *store.Tx) error { return tx.AddCopy(s.First, c.config.Node) })
}

func (c *Coordinator) noteSpoiltSegment(ctx context.Context, s *store.Segment, why error) {
	err := c.update(ctx, func(ch *change) error {
		return ch.noteKeyed(&bloomeryv1.Event{Type: "archive.corrupt", Severity: bloomeryv1.Severity_SEVERITY_ERROR,
			Message: clipTo(fmt.Sprintf("on coordinator %s: %v", c.config.Node, why), maxText)},
			map[string]any{"node": c.config.Node, "file": segmentName(s), "first": s.First, "last": s.Last}, "")
	})
	if err != nil && ctx.Err() == nil {
		c.Logger.Error("store an event about the archive", "error", err)
	}
}

// segmentFromDatabase makes a segment's lines again while its events are still there; nil when they are not.
func (c *Coordinator) segmentFromDatabase(ctx context.Context, s *store.Segment) (lines []byte, err error) {
	var events []*bloomeryv1.Event
	err = c.Store.View(ctx, func(r *store.Reader) (err error) {
		events, err = r.Events(store.EventFilter{After: s.First - 1, UpTo: s.Last, Limit: s.Events + 1})
		return err
	})
	if err != nil || len(events) != s.Events {
		return nil, err
	}
	if lines, err = encodeSegment(events); err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(lines); !slices.Equal(sum[:], s.SHA256) {
		return nil, nil
	}
	return lines, nil
}

// segmentFromOthers fetches a segment from a coordinator that holds it.
func (c *Coordinator) segmentFromOthers(ctx context.Context, s *store.Segment) ([]byte, error) {
	failed := []error{fmt.Errorf("no other coordinator has the events %d to %d", s.First, s.Last)}
	for _, node := range s.Copies {
		if node == c.config.Node {
			continue
		}
		lines, err := c.fetchSegment(ctx, node, s)
		if err == nil {
			return lines, nil
		}
		failed = append(failed, fmt.Errorf("fetch %s from coordinator %s: %w", segmentName(s), node, err))
	}
	return nil, errors.Join(failed...)
}

func (c *Coordinator) fetchSegment(ctx context.Context, node string, s *store.Segment) (lines []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	body, err := c.FetchSegment(ctx, node, segmentName(s))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	return unpackSegment(io.LimitReader(body, maxSegmentBytes), s)
}

// fetchFromPeer is FetchSegment over the other coordinator's API.
func (c *Coordinator) fetchFromPeer(ctx context.Context, node, file string) (io.ReadCloser, error) {
	others := c.others()
	i := slices.IndexFunc(others, func(n store.Node) bool { return n.Name == node })
	if i < 0 {
		return nil, errors.New("it is not in the rack")
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+node+archivePath+file, nil)
	if err != nil {
		return nil, err
	}
	client := c.peerClient(others[i])
	response, err := client.Do(request)
	if err != nil {
		client.CloseIdleConnections()
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("it answered %s", response.Status), response.Body.Close())
	}
	return peerBody{response.Body, client}, nil
}

// peerBody gives the connection up when it was read.
type peerBody struct {
	io.ReadCloser
	client *http.Client
}

func (b peerBody) Close() error {
	err := b.ReadCloser.Close()
	b.client.CloseIdleConnections()
	return err
}

// serveArchive gives other coordinators the files of this one's archive.
func (c *Coordinator) serveArchive(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Path[len(archivePath):]
	switch {
	case callerOf(r.Context()).Role != pki.RoleNode:
		c.security(r.Context(), "security.archive_refused", "", callerOf(r.Context()), "a request for "+clip(r.URL.Path)+" was refused")
		http.Error(w, "not allowed", http.StatusForbidden)
	case !segmentFile.MatchString(name):
		http.NotFound(w, r)
	default:
		http.ServeFile(w, r, filepath.Join(c.archive.dir, name))
	}
}

// forgetEvents deletes events that a majority of the coordinators have in their archives, for as long as this coordinator has the duty to.
func (c *Coordinator) forgetEvents(ctx context.Context, f store.Fence) error {
	for ctx.Err() == nil {
		if err := c.forgetPass(ctx, f); err != nil {
			return err
		}
		sleep(ctx, jitter(c.config.Timing.Archive))
	}
	return nil
}

// presentNodes are the names of the coordinators that are in the rack.
func presentNodes(r *store.Reader) (names []string, err error) {
	all, err := r.Nodes()
	for _, n := range all {
		if n.Present() {
			names = append(names, n.Name)
		}
	}
	return names, err
}

func (c *Coordinator) forgetPass(ctx context.Context, f store.Fence) error {
	var segments []*store.Segment
	var nodes []string
	err := c.Store.View(ctx, func(r *store.Reader) (err error) {
		if nodes, err = c.archive.members(r); err != nil {
			return err
		}
		segments, err = r.Segments(0)
		return err
	})
	if err != nil {
		return err
	}
	if len(nodes) == 0 {
		nodes = []string{c.config.Node}
	}
	for more, upTo := true, archivedUpTo(segments, nodes); more && upTo > 0; {
		err := c.Store.Update(ctx, func(tx *store.Tx) (err error) {
			if err := tx.Check(f); err != nil {
				return err
			}
			more, err = tx.DeleteEvents(upTo)
			return err
		})
		if err != nil {
			return fmt.Errorf("delete archived events: %w", err)
		}
	}
	upTo := outdatedUpTo(segments, c.config.Now().Add(-c.config.Events.ArchiveKeep))
	if upTo == 0 {
		return nil
	}
	return c.update(ctx, func(ch *change) error {
		if err := ch.Check(f); err != nil {
			return err
		}
		if err := ch.DropSegments(upTo); err != nil {
			return err
		}
		return ch.note(&bloomeryv1.Event{Type: "archive.dropped", Message: fmt.Sprintf("events up to number %d are older than %s and were dropped from the archive", upTo, c.config.Events.ArchiveKeep)},
			map[string]any{"last": upTo})
	})
}

// archivedUpTo is the last event before which all are in the archives of a majority of the coordinators.
func archivedUpTo(segments []*store.Segment, nodes []string) (last int64) {
	for _, s := range segments {
		held := 0
		for _, n := range nodes {
			if slices.Contains(s.Copies, n) {
				held++
			}
		}
		if !s.Dropped && 2*held <= len(nodes) {
			return last
		}
		last = s.Last
	}
	return last
}

// outdatedUpTo is the last event of the leading segments whose events are all older than a time; 0 when there is none.
func outdatedUpTo(segments []*store.Segment, before time.Time) (last int64) {
	for _, s := range segments {
		if s.Dropped {
			continue
		}
		if !s.Newest.Before(before) {
			break
		}
		last = s.Last
	}
	return last
}

// sweepArchive removes the files of dropped segments and what a crash left half-written.
func (c *Coordinator) sweepArchive(segments []*store.Segment) error {
	entries, err := os.ReadDir(c.archive.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep the event archive: %w", err)
	}
	var anchor string
	for _, s := range segments {
		if s.Dropped {
			anchor = segmentName(s)
		}
	}
	var failed []error
	for _, e := range entries {
		info, err := e.Info()
		old := err == nil && time.Since(info.ModTime()) > 10*fetchTimeout
		if name := e.Name(); (segmentFile.MatchString(name) && name <= anchor) || (!segmentFile.MatchString(name) && old) {
			failed = append(failed, os.Remove(filepath.Join(c.archive.dir, name)))
		}
	}
	return errors.Join(failed...)
}
