package coordinator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/backup"
	"bloomery/coordinator/store"
)

const (
	// backupChunk is how much of a backup one message carries.
	backupChunk = 256 << 10
	// maxBackupFile bounds a key or certificate, maxBackupFiles how many there are.
	maxBackupFile  = 1 << 20
	maxBackupFiles = 500
)

// BackupRack implements bloomery.v1.RackService. The snapshot is encrypted into a nameless file first, so that a slow client holds nothing
// of the database back.
func (c *Coordinator) BackupRack(ctx context.Context, r *connect.Request[bloomeryv1.BackupRackRequest], stream *connect.ServerStream[bloomeryv1.BackupRackResponse]) (err error) {
	if err := backup.CheckPassphrase(r.Msg.GetPassphrase()); err != nil {
		return invalid("passphrase", "PASSPHRASE_LENGTH", "%v", err)
	}
	if !c.backingUp.TryLock() {
		return notNow("rack", "BACKUP_RUNNING", "this coordinator makes a backup already: wait for its end, or ask another coordinator")
	}
	defer c.backingUp.Unlock()
	spool, err := os.CreateTemp(c.config.Data, ".backup-")
	if err != nil {
		return fmt.Errorf("make room for the backup: %w", err)
	}
	defer func() { err = errors.Join(err, spool.Close()) }()
	if err := os.Remove(spool.Name()); err != nil {
		return fmt.Errorf("make room for the backup: %w", err)
	}
	who := callerOf(ctx)
	err = c.update(ctx, func(ch *change) error {
		return ch.note(&bloomeryv1.Event{Type: "rack.backup", Severity: bloomeryv1.Severity_SEVERITY_SECURITY,
			Message: fmt.Sprintf("%s at %s takes a backup of the rack, with its keys", who.Name, addrText(who.from))}, nil)
	})
	if err != nil {
		return err
	}
	if err := c.writeBackup(ctx, spool, r.Msg.GetPassphrase()); err != nil {
		return err
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read the backup: %w", err)
	}
	chunk := make([]byte, backupChunk)
	for {
		n, err := spool.Read(chunk)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the backup: %w", err)
		}
		if err := stream.Send(&bloomeryv1.BackupRackResponse{Data: chunk[:n]}); err != nil {
			return err
		}
	}
}

// writeBackup writes what a new node needs to be this rack.
func (c *Coordinator) writeBackup(ctx context.Context, spool *os.File, passphrase string) error {
	return c.Store.Snapshot(ctx, func(snapshot *store.Snapshot) error {
		if err := errors.Join(spool.Truncate(0), seekStart(spool)); err != nil {
			return fmt.Errorf("make room for the backup: %w", err)
		}
		out, err := backup.Create(spool, passphrase, &bloomeryv1.BackupHeader{
			Rack: c.rackName(), Node: c.config.Node, Version: Version(), SchemaVersion: int32(snapshot.Schema), CreatedAt: timestamppb.New(c.config.Now()),
		})
		if err != nil {
			return err
		}
		if err := c.backupFiles(out); err != nil {
			return err
		}
		if err := c.backupImages(out); err != nil {
			return err
		}
		for _, table := range snapshot.Tables {
			if err := backupTable(out, snapshot, table); err != nil {
				return err
			}
		}
		return out.Close()
	})
}

func seekStart(f *os.File) error {
	_, err := f.Seek(0, io.SeekStart)
	return err
}

// personal says that a file of the folder of keys is an operator's own, which no coordinator needs.
func personal(name string) bool {
	return name == "image.key" || name == "config.yaml" || strings.HasPrefix(name, "operator-") && strings.HasSuffix(name, ".key")
}

func (c *Coordinator) backupFiles(out *backup.Writer) error {
	entries, err := os.ReadDir(c.config.PKI)
	if err != nil {
		return fmt.Errorf("read the rack's keys: %w", err)
	}
	if len(entries) > maxBackupFiles {
		return fmt.Errorf("%s holds more than %d files", c.config.PKI, maxBackupFiles)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || personal(e.Name()) || validFileName(e.Name()) != nil {
			continue
		}
		if err := backupFile(out, bloomeryv1.BackupFile_PLACE_PKI, filepath.Join(c.config.PKI, e.Name())); err != nil {
			return err
		}
	}
	return backupFile(out, bloomeryv1.BackupFile_PLACE_DATA, filepath.Join(c.config.Data, secretFile))
}

func backupFile(out *backup.Writer, place bloomeryv1.BackupFile_Place, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("back up a file: %w", err)
	}
	content, err := io.ReadAll(io.LimitReader(f, maxBackupFile+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("back up %s: %w", path, err)
	}
	if len(content) > maxBackupFile {
		return fmt.Errorf("back up %s: it has more than %d bytes", path, maxBackupFile)
	}
	return out.Write(&bloomeryv1.BackupRecord{Body: &bloomeryv1.BackupRecord_File{File: &bloomeryv1.BackupFile{Place: place, Name: filepath.Base(path), Content: content}}})
}

func (c *Coordinator) backupImages(out *backup.Writer) error {
	entries, err := c.Images.List()
	if err != nil {
		c.Logger.Error("an image in the store is unsound and not in the backup", "error", err)
	}
	for _, e := range entries {
		image := &bloomeryv1.BackupImage{Name: e.Manifest.Name, Manifest: e.ManifestBytes, Signature: e.Signature}
		if err := out.Write(&bloomeryv1.BackupRecord{Body: &bloomeryv1.BackupRecord_Image{Image: image}}); err != nil {
			return err
		}
	}
	return nil
}

func backupTable(out *backup.Writer, snapshot *store.Snapshot, table store.Table) error {
	head := &bloomeryv1.BackupTable{Name: table.Name, Columns: table.Columns, Sequence: table.Sequence}
	if err := out.Write(&bloomeryv1.BackupRecord{Body: &bloomeryv1.BackupRecord_Table{Table: head}}); err != nil {
		return err
	}
	return snapshot.Rows(table, func(values []any) error {
		row := &bloomeryv1.BackupRow{Values: make([]*bloomeryv1.BackupValue, len(values))}
		for i, v := range values {
			value := &bloomeryv1.BackupValue{}
			switch v := v.(type) {
			case nil:
			case int64:
				value.Value = &bloomeryv1.BackupValue_Integer{Integer: v}
			case float64:
				value.Value = &bloomeryv1.BackupValue_Real{Real: v}
			case string:
				value.Value = &bloomeryv1.BackupValue_Text{Text: v}
			case []byte:
				value.Value = &bloomeryv1.BackupValue_Blob{Blob: v}
			default:
				return fmt.Errorf("table %s, column %s: a value of type %T cannot be backed up", table.Name, table.Columns[i], v)
			}
			row.Values[i] = value
		}
		return out.Write(&bloomeryv1.BackupRecord{Body: &bloomeryv1.BackupRecord_Row{Row: row}})
	})
}
