package certificate

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bloomery/internal/pki"
	"bloomery/partition/wipe"
)

type rack struct {
	roots []*x509.Certificate
	node  tls.Certificate
	other tls.Certificate // an operator's
}

func newRack(t *testing.T) rack {
	t.Helper()
	dir := t.TempDir()
	if err := pki.InitRack(dir, pki.InitOptions{Name: "rack12", ServerAddresses: []string{"127.0.0.1"}, OperatorName: "anna"}); err != nil {
		t.Fatal(err)
	}
	authority, err := pki.LoadAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := pki.OperatorFiles(dir, "anna")
	other, err := pki.LoadPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	node, err := pki.LoadPair(filepath.Join(dir, pki.ServerCert), filepath.Join(dir, pki.ServerKey))
	if err != nil {
		t.Fatal(err)
	}
	return rack{roots: []*x509.Certificate{authority.Root()}, node: node, other: other}
}

func example() Certificate {
	at := time.Now().UTC()
	return Certificate{
		Format: Format, ID: "1f3c-2", Rack: "rack12", Machine: Machine{Name: "node1"}, Job: "1f3c", Disk: Disk{Serial: "S1 <&>", Model: "Übung"}, Successful: true,
		Wipe:        wipe.Result{Level: wipe.Erase, Method: wipe.MethodOverwrite, Sanitization: wipe.Clear, Bytes: 1 << 40, Started: at, Ended: at},
		Coordinator: "coordinator-1", Issued: at,
	}
}

func TestSignAndVerify(t *testing.T) {
	r := newRack(t)
	want := example()
	data, err := Sign(want, &r.node)
	if err != nil {
		t.Fatal(err)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, data, "", "\t"); err != nil {
		t.Fatal(err)
	}
	for _, file := range [][]byte{data, indented.Bytes()} {
		got, err := Verify(file, r.roots)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&want, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	r, stranger := newRack(t), newRack(t)
	sign := func(c Certificate, by tls.Certificate) []byte {
		data, err := Sign(c, &by)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	good := string(sign(example(), r.node))
	late, renamed := example(), example()
	late.Issued = time.Now().Add(5 * 365 * 24 * time.Hour)
	renamed.Coordinator = "coordinator-2"
	for name, c := range map[string]struct{ file, want string }{
		"changed":                    {strings.Replace(good, `"successful":true`, `"successful":false`, 1), "does not fit"},
		"another disk":               {strings.Replace(good, `"S1`, `"S2`, 1), "does not fit"},
		"another field":              {strings.Replace(good, `{"format"`, `{"x":1,"format"`, 1), "unknown field"},
		"no signature":               {`{"certificate":{"format":"bloomery.wipe-certificate/v1"},"signature":""}`, "field signature"},
		"another format":             {strings.Replace(good, "certificate/v1", "certificate/v2", 1), "certificate.format"},
		"another rack's coordinator": {string(sign(example(), stranger.node)), "who signed it"},
		"an operator":                {string(sign(example(), r.other)), "not one of a coordinator"},
		"after the signer's time":    {string(sign(late, r.node)), "who signed it"},
		"in another's name":          {string(sign(renamed, r.node)), "coordinator-2"},
		"nothing":                    {"", "EOF"},
		"more behind it":             {good + "{}", "follows"},
		"too large":                  {strings.Repeat(" ", 3*MaxBytes), "more than"},
	} {
		if _, err := Verify([]byte(c.file), r.roots); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte(`{"certificate":{"format":"bloomery.wipe-certificate/v1"},"signature":"eyJhbGciOiJFUzI1NiJ9..AAAA"}`))
	f.Add([]byte(`{"certificate":{},"signature":""}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := Verify(data, nil); err == nil {
			t.Fatal("a certificate that nobody signed was believed")
		}
	})
}
