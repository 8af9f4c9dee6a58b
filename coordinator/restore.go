package coordinator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"syscall"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/backup"
	"bloomery/coordinator/store"
	"bloomery/images"
)

// Names in the data folder.
const (
	databaseFolder = "dqlite"
	secretFile     = "secret.key"
	imagesFolder   = "images"
	// restoredFolder holds the manifests of the images that the rack had.
	restoredFolder = "restored-images"
	// restoreFolder is where a restore works; it is gone afterwards.
	restoreFolder = ".restore"
)

// RunningJobs says what becomes of jobs that were running when a backup was made.
type RunningJobs string

// ContinueJobs lets the coordinator drive them on from where they stood, which powers machines and may write their disks again;
// FailJobs ends them and makes their machines faulty, for somebody to look at.
const (
	ContinueJobs RunningJobs = "continue"
	FailJobs     RunningJobs = "fail"
)

// RestoreOptions says how a rack is restored.
type RestoreOptions struct {
	Passphrase string
	// RunningJobs is needed only when there are any.
	RunningJobs RunningJobs
	Logger      *slog.Logger
}

// Restored says what was restored.
type Restored struct {
	Header *bloomeryv1.BackupHeader
	// Images are names of images whose data is not here yet; their manifests are in Manifests.
	Images    []string
	Manifests string
	// Unnamed are addresses of this node that its certificate does not have, because the key of the rack's CA is not in the backup.
	Unnamed []string
	// EventsLost is the last event that was only in archive files that are not here; 0 when none is lost.
	EventsLost int64
	// Jobs are those that were running.
	Jobs []string
	Rows int64
}

// Restore makes an empty node the only coordinator of the rack that a backup was made of. Nothing is changed unless all of it succeeds.
func Restore(ctx context.Context, config Config, in io.Reader, o RestoreOptions) (Restored, error) {
	if err := config.mustBeEmpty(); err != nil {
		return Restored{}, err
	}
	archive, err := backup.Open(in, o.Passphrase)
	if err != nil {
		return Restored{}, err
	}
	defer archive.Close()
	r := &restore{config: config, o: o, archive: archive, dir: filepath.Join(config.Data, restoreFolder), keys: config.PKI + restoreFolder}
	r.done.Header, r.done.Manifests = archive.Header(), filepath.Join(config.Data, restoredFolder)
	if err := r.run(ctx); err != nil {
		return Restored{}, errors.Join(err, r.clear())
	}
	return r.done, r.clear()
}

// mustBeEmpty refuses a node on which a rack is, or what is left of one, and a data folder of another user, whose coordinator could not
// read what is restored.
func (c *Config) mustBeEmpty() error {
	if info, err := os.Stat(c.Data); err == nil {
		if s, ok := info.Sys().(*syscall.Stat_t); ok && int(s.Uid) != os.Geteuid() {
			return fmt.Errorf("%s belongs to user %d, this is user %d: restore as the user that bloomeryd runs as", c.Data, s.Uid, os.Geteuid())
		}
	}
	for _, path := range []string{filepath.Join(c.Data, databaseFolder), filepath.Join(c.Data, secretFile), filepath.Join(c.Data, rosterFile), filepath.Join(c.Data, restoredFolder)} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			return errors.Join(fmt.Errorf("%s is there: a rack is restored into an empty node only; stop bloomeryd and move %s away", path, c.Data), err)
		}
	}
	entries, err := os.ReadDir(c.PKI)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look for keys: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s holds %s: a rack is restored into an empty node only; move %s away", c.PKI, entries[0].Name(), c.PKI)
	}
	return nil
}

// restore is one restore under way.
type restore struct {
	config  Config
	o       RestoreOptions
	archive *backup.Reader
	// dir becomes the data folder's contents, keys the folder of keys.
	dir, keys string
	done      Restored
}

func (r *restore) clear() error {
	return errors.Join(os.RemoveAll(r.dir), os.RemoveAll(r.keys))
}

func (r *restore) run(ctx context.Context) error {
	if err := r.clear(); err != nil {
		return fmt.Errorf("remove what an interrupted restore left: %w", err)
	}
	for _, dir := range []string{r.dir, r.keys} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make room: %w", err)
		}
	}
	first, err := r.files()
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(r.dir, secretFile)); err != nil {
		return fmt.Errorf("%w: it has no %s", backup.ErrDamaged, secretFile)
	}
	db, err := store.Restore(ctx, store.Options{Dir: filepath.Join(r.dir, databaseFolder), SecretFile: filepath.Join(r.dir, secretFile), Now: r.config.Now, Logger: r.o.Logger},
		int(r.done.Header.GetSchemaVersion()), func(to *store.Restorer) error { return r.tables(first, to) })
	if err != nil {
		return fmt.Errorf("restore the database: %w", err)
	}
	var fresh bool
	if err = r.settle(ctx, db); err == nil {
		fresh, err = r.certificate(ctx, db)
	}
	if err == nil {
		err = db.Update(ctx, func(tx *store.Tx) error { return errors.Join(r.succeed(tx, fresh), r.forgetArchive(tx)) })
	}
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	return r.moveIn()
}

// files reads up to the first table, which it returns.
func (r *restore) files() (*bloomeryv1.BackupTable, error) {
	for {
		record, err := r.archive.Next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: it has no tables", backup.ErrDamaged)
		}
		if err != nil {
			return nil, err
		}
		switch body := record.GetBody().(type) {
		case *bloomeryv1.BackupRecord_Table:
			return body.Table, nil
		case *bloomeryv1.BackupRecord_File:
			err = r.file(body.File)
		case *bloomeryv1.BackupRecord_Image:
			err = r.image(body.Image)
		}
		if err != nil {
			return nil, err
		}
	}
}

var fileName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

func validFileName(name string) error {
	if !fileName.MatchString(name) {
		return fmt.Errorf("file name %.64q: want letters, digits, dots, hyphens and underscores", name)
	}
	return nil
}

func (r *restore) file(f *bloomeryv1.BackupFile) error {
	if err := validFileName(f.GetName()); err != nil {
		return fmt.Errorf("%w: %w", backup.ErrDamaged, err)
	}
	dir, mode := r.keys, os.FileMode(0o600)
	switch {
	case f.GetPlace() == bloomeryv1.BackupFile_PLACE_DATA && f.GetName() == secretFile:
		dir = r.dir
	case f.GetPlace() != bloomeryv1.BackupFile_PLACE_PKI:
		return fmt.Errorf("%w: file %s has no place", backup.ErrDamaged, f.GetName())
	case filepath.Ext(f.GetName()) != ".key":
		mode = 0o644
	}
	return writeSynced(filepath.Join(dir, f.GetName()), mode, f.GetContent())
}

func (r *restore) image(i *bloomeryv1.BackupImage) error {
	if err := images.ValidateName(i.GetName()); err != nil {
		return fmt.Errorf("%w: image: %w", backup.ErrDamaged, err)
	}
	if _, err := images.DecodeManifest(i.GetManifest()); err != nil {
		return fmt.Errorf("%w: image %s: %w", backup.ErrDamaged, i.GetName(), err)
	}
	dir := filepath.Join(r.dir, restoredFolder, i.GetName())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("image %s: %w", i.GetName(), err)
	}
	// An image store that was kept, or brought here before, has its data.
	here, err := os.ReadFile(filepath.Join(r.config.Data, imagesFolder, i.GetName(), images.ManifestFile))
	if err != nil || !bytes.Equal(here, i.GetManifest()) {
		r.done.Images = append(r.done.Images, i.GetName())
	}
	return errors.Join(
		writeSynced(filepath.Join(dir, images.ManifestFile), 0o600, i.GetManifest()),
		writeSynced(filepath.Join(dir, images.SignatureFile), 0o600, i.GetSignature()),
	)
}

// writeSynced makes a file that was not there.
func writeSynced(path string, mode os.FileMode, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("restore a file: %w", err)
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("restore %s: %w", path, err)
	}
	return nil
}

// tables reads the archive to its end.
func (r *restore) tables(table *bloomeryv1.BackupTable, to *store.Restorer) error {
	for {
		if table != nil {
			if err := to.Table(store.Table{Name: table.GetName(), Columns: table.GetColumns(), Sequence: table.Sequence}); err != nil {
				return err
			}
		}
		record, err := r.archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if table = record.GetTable(); table != nil {
			continue
		}
		values := make([]any, len(record.GetRow().GetValues()))
		for i, v := range record.GetRow().GetValues() {
			switch v := v.GetValue().(type) {
			case *bloomeryv1.BackupValue_Integer:
				values[i] = v.Integer
			case *bloomeryv1.BackupValue_Real:
				values[i] = v.Real
			case *bloomeryv1.BackupValue_Text:
				values[i] = v.Text
			case *bloomeryv1.BackupValue_Blob:
				values[i] = v.Blob
			}
		}
		r.done.Rows++
		if err := to.Row(values); err != nil {
			return err
		}
	}
}

// moveIn puts the finished folders in their places. The keys come last: without them bloomeryd does not start.
func (r *restore) moveIn() error {
	moves := [][2]string{{filepath.Join(r.dir, secretFile), filepath.Join(r.config.Data, secretFile)}, {filepath.Join(r.dir, databaseFolder), filepath.Join(r.config.Data, databaseFolder)}}
	if _, err := os.Stat(filepath.Join(r.dir, restoredFolder)); err == nil {
		moves = append(moves, [2]string{filepath.Join(r.dir, restoredFolder), r.done.Manifests})
	}
	moves = append(moves, [2]string{r.keys, r.config.PKI})
	for _, m := range moves {
		if err := os.Rename(m[0], m[1]); err != nil {
			return fmt.Errorf("put the restored files in place: %w", err)
		}
		if err := syncFolder(filepath.Dir(m[1])); err != nil {
			return fmt.Errorf("put the restored files in place: %w", err)
		}
	}
	return nil
}

func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
