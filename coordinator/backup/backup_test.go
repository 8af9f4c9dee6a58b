package backup

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

const passphrase = "correct horse battery"

// quick is a work factor for tests.
const quick = 4

func file(name string) *bloomeryv1.BackupRecord {
	return &bloomeryv1.BackupRecord{Body: &bloomeryv1.BackupRecord_File{File: &bloomeryv1.BackupFile{Place: bloomeryv1.BackupFile_PLACE_PKI, Name: name, Content: []byte("content of " + name)}}}
}

func image(name string) *bloomeryv1.BackupRecord {
	return &bloomeryv1.BackupRecord{Body: &bloomeryv1.BackupRecord_Image{Image: &bloomeryv1.BackupImage{Name: name, Manifest: []byte("{}")}}}
}

func table(name string, columns ...string) *bloomeryv1.BackupRecord {
	return &bloomeryv1.BackupRecord{Body: &bloomeryv1.BackupRecord_Table{Table: &bloomeryv1.BackupTable{Name: name, Columns: columns, Sequence: proto.Int64(7)}}}
}

func row(values ...*bloomeryv1.BackupValue) *bloomeryv1.BackupRecord {
	return &bloomeryv1.BackupRecord{Body: &bloomeryv1.BackupRecord_Row{Row: &bloomeryv1.BackupRow{Values: values}}}
}

func records() []*bloomeryv1.BackupRecord {
	return []*bloomeryv1.BackupRecord{
		file("ca.crt"), image("debian-12"), table("machines", "name", "body", "weight", "job"),
		row(&bloomeryv1.BackupValue{Value: &bloomeryv1.BackupValue_Text{Text: "m1"}}, &bloomeryv1.BackupValue{Value: &bloomeryv1.BackupValue_Blob{Blob: []byte{0, 1}}},
			&bloomeryv1.BackupValue{Value: &bloomeryv1.BackupValue_Real{Real: 1.5}}, &bloomeryv1.BackupValue{}),
		table("events", "sequence"), row(&bloomeryv1.BackupValue{Value: &bloomeryv1.BackupValue_Integer{Integer: 1<<62 + 1}}),
	}
}

func write(t testing.TB, records []*bloomeryv1.BackupRecord) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := create(&out, passphrase, &bloomeryv1.BackupHeader{Rack: "r1", SchemaVersion: 6}, quick)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	data := write(t, records())
	if bytes.Contains(data, []byte("ca.crt")) {
		t.Error("it is not encrypted")
	}
	r, err := Open(bytes.NewReader(data), passphrase)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var got []*bloomeryv1.BackupRecord
	for {
		record, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, record)
	}
	if diff := cmp.Diff(records(), got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	s, err := Verify(bytes.NewReader(data), passphrase)
	if err != nil || s.Tables != 2 || s.Rows != 2 || len(s.Images) != 1 || s.Header.GetRack() != "r1" {
		t.Errorf("summary %+v %v", s, err)
	}
}

// TestEveryByteCounts cuts and changes a backup everywhere.
func TestEveryByteCounts(t *testing.T) {
	data := write(t, records())
	for n := range data {
		if _, err := Verify(bytes.NewReader(data[:n]), passphrase); !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut after %d of %d bytes: %v", n, len(data), err)
		}
		changed := bytes.Clone(data)
		changed[n] ^= 1
		// In age's header a changed byte may look like another passphrase's, or like a dearer work factor.
		if _, err := Verify(bytes.NewReader(changed), passphrase); err == nil {
			t.Fatalf("byte %d of %d was changed and nobody saw it", n, len(data))
		}
	}
}

func TestRefusals(t *testing.T) {
	data := write(t, records())
	if _, err := Open(bytes.NewReader(data), "another passphrase"); !errors.Is(err, ErrPassphrase) {
		t.Errorf("wrong passphrase: %v", err)
	}
	for _, p := range []string{"", "short", strings.Repeat("x", MaxPassphrase+1)} {
		if _, err := Open(bytes.NewReader(data), p); err == nil || errors.Is(err, ErrPassphrase) {
			t.Errorf("passphrase of %d bytes: %v", len(p), err)
		}
		if _, err := Create(io.Discard, p, &bloomeryv1.BackupHeader{}); err == nil {
			t.Errorf("passphrase of %d bytes was taken", len(p))
		}
	}
	// A stranger's file must not make the reader spend gigabytes on its scrypt.
	recipient, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		t.Fatal(err)
	}
	recipient.SetWorkFactor(workFactor + 1)
	var dear bytes.Buffer
	w, err := age.Encrypt(&dear, recipient)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(&dear, passphrase); !errors.Is(err, ErrDamaged) {
		t.Errorf("a work factor above the limit: %v", err)
	}
	for name, tc := range map[string]struct {
		records []*bloomeryv1.BackupRecord
		says    string
	}{
		"file after a table": {[]*bloomeryv1.BackupRecord{table("a", "b"), file("c")}, "after the first table"},
		"row first":          {[]*bloomeryv1.BackupRecord{row()}, "does not fit"},
		"short row":          {[]*bloomeryv1.BackupRecord{table("a", "b"), row()}, "does not fit"},
		"no columns":         {[]*bloomeryv1.BackupRecord{table("a")}, "without columns"},
		"empty record":       {[]*bloomeryv1.BackupRecord{{}}, "no known kind"},
	} {
		if _, err := Verify(bytes.NewReader(write(t, tc.records)), passphrase); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// plain is an unpacked stream of records with a good trailer.
func plain(t testing.TB, format int32) []byte {
	t.Helper()
	var out bytes.Buffer
	all := append([]*bloomeryv1.BackupRecord{{Body: &bloomeryv1.BackupRecord_Header{Header: &bloomeryv1.BackupHeader{Format: format}}}}, records()...)
	for _, r := range all {
		if _, err := protodelim.MarshalTo(&out, r); err != nil {
			t.Fatal(err)
		}
	}
	sum := sha256.Sum256(out.Bytes())
	trailer := &bloomeryv1.BackupRecord{Body: &bloomeryv1.BackupRecord_Trailer{Trailer: &bloomeryv1.BackupTrailer{Sha256: sum[:], Records: int64(len(all))}}}
	if _, err := protodelim.MarshalTo(&out, trailer); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestAnotherFormat(t *testing.T) {
	if _, err := read(bytes.NewReader(plain(t, Format+1))); err == nil || !strings.Contains(err.Error(), "format 2") {
		t.Errorf("a later format: %v", err)
	}
}

// FuzzRecords reads streams as they are after decryption: whoever knows the passphrase may have written anything.
func FuzzRecords(f *testing.F) {
	good := plain(f, Format)
	f.Add(good)
	f.Add(good[:len(good)-3])
	f.Add(good[:20])
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := read(bytes.NewReader(data))
		if err != nil {
			return
		}
		columns := 0
		for {
			record, err := r.Next()
			if err != nil {
				return
			}
			if b := record.GetTable(); b != nil {
				columns = len(b.GetColumns())
			}
			if b := record.GetRow(); b != nil && (columns == 0 || len(b.GetValues()) != columns) {
				t.Fatal("a row that does not fit its table was returned")
			}
		}
	})
}
