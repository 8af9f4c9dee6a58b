// Package backup is the file format of a rack's backup: what is written and read, streamed, encrypted with a passphrase by age and checked
// to the last byte. It knows nothing of databases.
package backup

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protodelim"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/images"
)

// Format is the number of the format that this package writes and reads.
const Format = 1

const (
	// MinPassphrase and MaxPassphrase bound a passphrase, in bytes.
	MinPassphrase = 12
	MaxPassphrase = 1024

	// workFactor is scrypt's, as a power of two (RFC 7914): with age's r of 8 it takes 128 MiB and 0.3 s. A reader takes no larger one.
	workFactor = 17
	// maxRecord bounds a record, in bytes; an image's manifest is the largest thing in one.
	maxRecord = images.MaxManifestSize + 64<<10
	// maxRecords bounds a backup.
	maxRecords = 50_000_000
	// maxWindow is what zstd may make a reader keep, in bytes.
	maxWindow = 8 << 20
)

// Errors that callers tell apart.
var (
	ErrPassphrase = errors.New("the passphrase is wrong")
	ErrDamaged    = errors.New("the backup is damaged")
)

// CheckPassphrase says whether a passphrase may be used.
func CheckPassphrase(passphrase string) error {
	if len(passphrase) < MinPassphrase || len(passphrase) > MaxPassphrase {
		return fmt.Errorf("passphrase of %d bytes: want %d to %d", len(passphrase), MinPassphrase, MaxPassphrase)
	}
	return nil
}

// Writer writes a backup.
type Writer struct {
	sealed  io.WriteCloser
	packed  *zstd.Encoder
	digest  hash.Hash
	records int64
}

// Create begins a backup with its header; format is set.
func Create(w io.Writer, passphrase string, header *bloomeryv1.BackupHeader) (*Writer, error) {
	return create(w, passphrase, header, workFactor)
}

func create(w io.Writer, passphrase string, header *bloomeryv1.BackupHeader, workFactor int) (*Writer, error) {
	if err := CheckPassphrase(passphrase); err != nil {
		return nil, err
	}
	recipient, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, fmt.Errorf("use the passphrase: %w", err)
	}
	recipient.SetWorkFactor(workFactor)
	sealed, err := age.Encrypt(w, recipient)
	if err != nil {
		return nil, fmt.Errorf("encrypt the backup: %w", err)
	}
	packed, err := zstd.NewWriter(sealed, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(maxWindow/2))
	if err != nil {
		return nil, fmt.Errorf("compress the backup: %w", err)
	}
	b := &Writer{sealed: sealed, packed: packed, digest: sha256.New()}
	header.Format = Format
	return b, b.Write(&bloomeryv1.BackupRecord{Body: &bloomeryv1.BackupRecord_Header{Header: header}})
}

// Write adds a record.
func (w *Writer) Write(record *bloomeryv1.BackupRecord) error {
	if _, err := protodelim.MarshalTo(io.MultiWriter(w.packed, w.digest), record); err != nil {
		return fmt.Errorf("write record %d of the backup: %w", w.records+1, err)
	}
	w.records++
	return nil
}

// Close adds the trailer and ends the file. Without it there is no backup.
func (w *Writer) Close() error {
	trailer := &bloomeryv1.BackupTrailer{Sha256: w.digest.Sum(nil), Records: w.records}
	if err := w.Write(&bloomeryv1.BackupRecord{Body: &bloomeryv1.BackupRecord_Trailer{Trailer: trailer}}); err != nil {
		return err
	}
	if err := errors.Join(w.packed.Close(), w.sealed.Close()); err != nil {
		return fmt.Errorf("end the backup: %w", err)
	}
	return nil
}

// Reader reads a backup. Bytes that are not those that were written are an error at the latest at the end: whoever acts on records must be
// able to undo it until Next has returned io.EOF.
type Reader struct {
	unpacked *zstd.Decoder
	in       *bufio.Reader
	digest   hash.Hash
	header   *bloomeryv1.BackupHeader
	records  int64
	columns  int
	ended    bool
}

// Open reads a backup's header.
func Open(r io.Reader, passphrase string) (*Reader, error) {
	if err := CheckPassphrase(passphrase); err != nil {
		return nil, err
	}
	identity, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, fmt.Errorf("use the passphrase: %w", err)
	}
	identity.SetMaxWorkFactor(workFactor)
	plain, err := age.Decrypt(r, identity)
	var noMatch *age.NoIdentityMatchError
	switch {
	case errors.As(err, &noMatch):
		return nil, ErrPassphrase
	case err != nil:
		return nil, fmt.Errorf("%w: it is no age file, or its beginning is broken: %w", ErrDamaged, err)
	}
	unpacked, err := zstd.NewReader(plain, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, fmt.Errorf("unpack the backup: %w", err)
	}
	b, err := read(unpacked)
	if err != nil {
		unpacked.Close()
		return nil, err
	}
	b.unpacked = unpacked
	return b, nil
}

// read begins to read unpacked records.
func read(in io.Reader) (*Reader, error) {
	b := &Reader{in: bufio.NewReader(in), digest: sha256.New()}
	first, err := b.next()
	switch {
	case err != nil:
		return nil, err
	case first.GetHeader() == nil:
		return nil, b.damaged("not a header")
	case first.GetHeader().GetFormat() != Format:
		return nil, fmt.Errorf("the backup has format %d, this program knows %d: use another bloomery", first.GetHeader().GetFormat(), Format)
	}
	b.header = first.GetHeader()
	return b, nil
}

// Header is the backup's first record.
func (r *Reader) Header() *bloomeryv1.BackupHeader { return r.header }

// Close ends the reader.
func (r *Reader) Close() { r.unpacked.Close() }

// Next returns the next file, image, table or row; io.EOF when all was read and nothing was missing or changed.
func (r *Reader) Next() (*bloomeryv1.BackupRecord, error) {
	if r.ended {
		return nil, io.EOF
	}
	before, count := r.digest.Sum(nil), r.records
	record, err := r.next()
	if err != nil {
		return nil, err
	}
	switch body := record.GetBody().(type) {
	case *bloomeryv1.BackupRecord_File, *bloomeryv1.BackupRecord_Image:
		if r.columns > 0 {
			return nil, r.damaged("a file or an image after the first table")
		}
	case *bloomeryv1.BackupRecord_Table:
		if r.columns = len(body.Table.GetColumns()); r.columns == 0 {
			return nil, r.damaged("a table without columns")
		}
	case *bloomeryv1.BackupRecord_Row:
		if len(body.Row.GetValues()) != r.columns || r.columns == 0 {
			return nil, r.damaged("a row that does not fit its table")
		}
	case *bloomeryv1.BackupRecord_Trailer:
		if body.Trailer.GetRecords() != count || string(body.Trailer.GetSha256()) != string(before) {
			return nil, r.damaged("the trailer's SHA-256 or count is that of other records")
		}
		// age and zstd authenticate their last chunk when their end is read.
		if _, err := r.in.ReadByte(); !errors.Is(err, io.EOF) {
			return nil, r.damaged(fmt.Sprintf("more after the trailer (%v)", err))
		}
		r.ended = true
		return nil, io.EOF
	default:
		return nil, r.damaged("a record of no known kind")
	}
	return record, nil
}

func (r *Reader) damaged(what string) error {
	return fmt.Errorf("%w: record %d: %s", ErrDamaged, r.records, what)
}

func (r *Reader) next() (*bloomeryv1.BackupRecord, error) {
	if r.records++; r.records > maxRecords {
		return nil, fmt.Errorf("the backup has more than %d records", maxRecords)
	}
	record := &bloomeryv1.BackupRecord{}
	err := protodelim.UnmarshalOptions{MaxSize: maxRecord}.UnmarshalFrom(digesting{r.in, r.digest}, record)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("%w: record %d: %w", ErrDamaged, r.records, err)
	}
	return record, nil
}

// digesting adds what is read through it to a digest.
type digesting struct {
	in     *bufio.Reader
	digest hash.Hash
}

func (d digesting) Read(p []byte) (int, error) {
	n, err := d.in.Read(p)
	d.digest.Write(p[:n])
	return n, err
}

func (d digesting) ReadByte() (byte, error) {
	b, err := d.in.ReadByte()
	if err == nil {
		d.digest.Write([]byte{b})
	}
	return b, err
}

// Summary counts what is in a backup.
type Summary struct {
	Header *bloomeryv1.BackupHeader
	Images []string
	Tables int
	Rows   int64
}

// Verify reads a backup to its end and counts what is in it.
func Verify(r io.Reader, passphrase string) (Summary, error) {
	b, err := Open(r, passphrase)
	if err != nil {
		return Summary{}, err
	}
	defer b.Close()
	s := Summary{Header: b.Header()}
	for {
		record, err := b.Next()
		if errors.Is(err, io.EOF) {
			return s, nil
		}
		if err != nil {
			return Summary{}, err
		}
		switch body := record.GetBody().(type) {
		case *bloomeryv1.BackupRecord_Image:
			s.Images = append(s.Images, body.Image.GetName())
		case *bloomeryv1.BackupRecord_Table:
			s.Tables++
		case *bloomeryv1.BackupRecord_Row:
			s.Rows++
		}
	}
}
