package images

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

const (
	// partPrefix and the name of the folder to make name the folder that an import works in.
	partPrefix = ".import-"
	// journalFile lists the frames of a data file that is not complete, one a line as in a manifest.
	journalFile = "frames"
)

// part is an import's work so far. Another import of the same folder finds it when this one is interrupted: it reads its input from the beginning
// and takes a frame from here in place of compressing it when the bytes of the disk are the same, which is most of the time that an import takes.
type part struct {
	dir string
	// lock is the folder itself, locked: two imports at once would spoil each other's data.
	lock    *os.File
	data    *os.File
	journal *os.File
	// before are the frames of an interrupted import by their offsets on the disk.
	before map[int64]Frame
	// useful says that there is something that the next import can use.
	useful bool
}

func openPart(dir string) (*part, error) {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := lockFolder(lock, dir); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &part{dir: dir, lock: lock}, nil
}

func lockFolder(lock *os.File, dir string) error {
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("%s: another import works in it: %w", dir, err)
	}
	locked, err := lock.Stat()
	if err != nil {
		return err
	}
	if now, err := os.Lstat(dir); err != nil || !os.SameFile(locked, now) {
		return fmt.Errorf("%s: another import has just ended in it; try again", dir)
	}
	return nil
}

// open reads what an interrupted import left and removes anything else of it.
func (p *part) open() error {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if name := entry.Name(); name != DataFile && name != journalFile {
			if err := os.RemoveAll(filepath.Join(p.dir, name)); err != nil {
				return err
			}
		}
	}
	if p.before, err = readJournal(filepath.Join(p.dir, journalFile)); err != nil {
		return err
	}
	p.useful = len(p.before) > 0
	if p.data, err = os.OpenFile(filepath.Join(p.dir, DataFile), os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return err
	}
	if p.journal, err = os.OpenFile(filepath.Join(p.dir, journalFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644); err != nil {
		return errors.Join(err, p.data.Close())
	}
	// Ends a line that was cut off.
	if _, err := p.journal.WriteString("\n"); err != nil {
		return errors.Join(err, p.closeFiles())
	}
	return nil
}

// readJournal reads the frames, the last one of each offset. Lines that are not whole are passed over.
func readJournal(path string) (map[int64]Frame, error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close() // read only
	frames := map[int64]Frame{}
	lines := bufio.NewScanner(io.LimitReader(file, MaxManifestSize))
	for lines.Scan() {
		var f Frame
		if err := json.Unmarshal(lines.Bytes(), &f); err != nil || f.Length <= 0 || f.Length > FrameSize ||
			f.DataOffset < 0 || f.DataLength <= 0 || f.DataLength > FrameSize+maxFrameOverhead {
			continue
		}
		frames[f.Offset] = f
	}
	if err := lines.Err(); err != nil && !errors.Is(err, bufio.ErrTooLong) {
		return nil, fmt.Errorf("reading what an interrupted import left: %w", err)
	}
	return frames, nil
}

// kept is a frame of the disk as an interrupted import stored it, or without its stored bytes when there is none. It may be called concurrently,
// also while others are stored: bytes that were written over do not have the sum.
func (p *part) kept(offset int64, raw []byte) (frame Frame, stored []byte, ok bool) {
	frame = Frame{Offset: offset, Length: int64(len(raw)), RawSHA256: sha256.Sum256(raw)}
	before, ok := p.before[offset]
	if !ok || before.Length != frame.Length || before.RawSHA256 != frame.RawSHA256 {
		return frame, nil, false
	}
	stored = make([]byte, before.DataLength)
	if _, err := p.data.ReadAt(stored, before.DataOffset); err != nil || sha256.Sum256(stored) != before.SHA256 {
		return frame, nil, false
	}
	return before, stored, true
}

// store writes the next frame, whose bytes may be in their place already.
func (p *part) store(f Frame, stored []byte, isThere bool) error {
	if isThere {
		return nil
	}
	if _, err := p.data.WriteAt(stored, f.DataOffset); err != nil {
		return fmt.Errorf("writing data: %w", err)
	}
	line, err := json.Marshal(&f)
	if err != nil {
		return err
	}
	if _, err := p.journal.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("writing data: %w", err)
	}
	p.useful = true
	return nil
}

// finish makes the data file complete, with length bytes.
func (p *part) finish(length int64) error {
	if err := p.data.Truncate(length); err != nil {
		return err
	}
	return errors.Join(p.data.Sync(), os.Remove(filepath.Join(p.dir, journalFile)))
}

func (p *part) closeFiles() error { return errors.Join(p.data.Close(), p.journal.Close()) }

// close gives the folder up after an import that came to an end, or was interrupted: then it is kept.
func (p *part) close(failed, interrupted bool) error {
	var err error
	if failed && !(interrupted && p.useful) {
		err = os.RemoveAll(p.dir)
	}
	return errors.Join(err, p.lock.Close())
}
