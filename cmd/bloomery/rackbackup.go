package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/backup"
)

// backupTimeout bounds taking a backup: a rack's database has some hundred megabytes at most.
const backupTimeout = 30 * time.Minute

func newRackBackup(set *settings) *cobra.Command {
	var out, secret string
	cmd := &cobra.Command{
		Use:   "backup --out FILE --passphrase-file FILE|-",
		Short: "Save the rack's database, keys and image manifests in one encrypted file",
		Long: `Backup asks a coordinator for a consistent snapshot of everything that the rack knows, encrypted with a
passphrase by age (scrypt): all tables of the database, the rack's CA with its keys, the key that seals passwords,
and the images' signed manifests. Not in it are the images' data and archived events.

Whoever has the file and the passphrase has the rack. The file is read and checked to its last byte before it gets its name.`,
		Example: `  bloomery rack backup --out rack12.bloomery-backup --passphrase-file backup.secret`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needed(cmd, "out", "passphrase-file"); err != nil {
				return err
			}
			passphrase, err := readSecret(secret, cmd.InOrStdin())
			if err != nil {
				return err
			}
			if err := backup.CheckPassphrase(passphrase); err != nil {
				return usageError{err}
			}
			c, err := set.connect()
			if err != nil {
				return err
			}
			summary, size, err := takeBackup(cmd.Context(), c, out, passphrase, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return set.printBackup(cmd.OutOrStdout(), out, size, summary)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file to write, mode 0600; must not be there")
	cmd.Flags().StringVar(&secret, "passphrase-file", "", "file with the passphrase, at least 12 characters; - reads standard input")
	return cmd
}

func (s *settings) printBackup(w io.Writer, path string, size int64, b backup.Summary) error {
	created := b.Header.GetCreatedAt().AsTime().Format(time.RFC3339)
	value := map[string]any{"file": path, "bytes": size, "rack": b.Header.GetRack(), "node": b.Header.GetNode(), "version": b.Header.GetVersion(),
		"schema_version": b.Header.GetSchemaVersion(), "created_at": created, "tables": b.Tables, "rows": b.Rows, "images": b.Images}
	return s.printValue(w, value, func(w io.Writer) {
		row(w, "File", path)
		row(w, "Size", bytesText(size))
		row(w, "Rack", b.Header.GetRack())
		row(w, "Made by", fmt.Sprintf("%s at %s", b.Header.GetNode(), created))
		row(w, "Rows", fmt.Sprintf("%d in %d tables, schema version %d", b.Rows, b.Tables, b.Header.GetSchemaVersion()))
		row(w, "Images", strings.Join(b.Images, ", "))
	})
}

// takeBackup writes the backup under another name first, and reads it before it gets its own.
func takeBackup(ctx context.Context, c *client, out, passphrase string, progress io.Writer) (_ backup.Summary, size int64, err error) {
	if _, err := os.Lstat(out); !errors.Is(err, os.ErrNotExist) {
		return backup.Summary{}, 0, fmt.Errorf("--out %s: is there already; name another file", out)
	}
	f, err := os.CreateTemp(filepath.Dir(out), "."+filepath.Base(out)+"-") // mode 0600
	if err != nil {
		return backup.Summary{}, 0, err
	}
	defer func() {
		_ = f.Close() // closed before, unless something failed
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, backupTimeout)
	defer cancel()
	stream, err := c.rack.BackupRack(ctx, connect.NewRequest(&bloomeryv1.BackupRackRequest{Passphrase: passphrase}))
	if err != nil {
		return backup.Summary{}, 0, err
	}
	defer func() { err = errors.Join(err, stream.Close()) }()
	lines := throttled{w: progress, every: 2 * time.Second}
	for stream.Receive() {
		n, err := f.Write(stream.Msg().GetData())
		if err != nil {
			return backup.Summary{}, 0, err
		}
		size += int64(n)
		lines.printf("receiving the backup: %s\n", bytesText(size))
	}
	if err := stream.Err(); err != nil {
		return backup.Summary{}, 0, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return backup.Summary{}, 0, err
	}
	summary, err := backup.Verify(f, passphrase)
	if err != nil {
		return backup.Summary{}, 0, fmt.Errorf("what came is no whole backup; try again: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return backup.Summary{}, 0, err
	}
	// Link refuses where rename would replace a file that has come meanwhile.
	if err := os.Link(f.Name(), out); err != nil {
		return backup.Summary{}, 0, err
	}
	return summary, size, os.Remove(f.Name())
}

func newRackRestore(*settings) *cobra.Command {
	var secret, jobs string
	var daemon daemon
	cmd := &cobra.Command{
		Use:   "restore BACKUP --passphrase-file FILE|-",
		Short: "Make this empty node the only coordinator of the rack that a backup was made of",
		Long: `Restore runs "bloomeryd restore" on this host, as the user that bloomeryd runs as. It refuses a node that holds
anything of a rack, checks the backup to its last byte, and changes nothing if anything is wrong.

The rack forgets what happened since the backup. If jobs were running then, say what becomes of them: "continue" goes on
where they stood, which powers their machines and may write their disks again; "fail" makes their machines faulty until
somebody has looked at them. Never start a coordinator of the old rack afterwards.`,
		Example: `  sudo -u bloomery bloomery rack restore rack12.bloomery-backup --passphrase-file backup.secret`,
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needed(cmd, "passphrase-file"); err != nil {
				return err
			}
			switch jobs {
			case "", "continue", "fail":
			default:
				return usagef("--running-jobs %q: want continue or fail", jobs)
			}
			words := []string{"restore", "--passphrase-file", secret}
			if jobs != "" {
				words = append(words, "--running-jobs", jobs)
			}
			return daemon.run(cmd, cmd.InOrStdin(), append(words, args[0])...)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&secret, "passphrase-file", "", "file with the passphrase; - reads standard input")
	flags.StringVar(&jobs, "running-jobs", "", "continue or fail; needed when jobs ran when the backup was made")
	daemon.flags(cmd)
	return cmd
}
