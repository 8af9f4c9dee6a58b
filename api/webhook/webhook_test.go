package webhook

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

var signedAt = time.Unix(1_790_000_000, 0)

func TestVerify(t *testing.T) {
	secret, body := []byte("secret"), []byte(`{"id":"rack1/1"}`)
	header := Sign(secret, body, signedAt)
	// The HMAC was computed by: printf '1790000000.{"id":"rack1/1"}' | openssl dgst -sha256 -hmac secret
	const known = "t=1790000000,v1=d1363128c5361f630ef857581e024b09371f4e625191326a52ab2a6536c50540"
	if header != known {
		t.Errorf("signature %s, want %s", header, known)
	}
	other := Sign([]byte("older"), body, signedAt)
	for _, c := range []struct {
		name, header string
		secret, body []byte
		now          time.Time
		ok           bool
	}{
		{"sound", header, secret, body, signedAt, true},
		{"within the tolerance", header, secret, body, signedAt.Add(59 * time.Second), true},
		{"a second signature", header + other[strings.Index(other, ",v1"):], []byte("older"), body, signedAt, true},
		{"a later version beside it", header + ",v2=xyz", secret, body, signedAt, true},
		{"another secret", header, []byte("secreT"), body, signedAt, false},
		{"another body", header, secret, []byte(`{"id":"rack1/2"}`), signedAt, false},
		{"too old", header, secret, body, signedAt.Add(61 * time.Second), false},
		{"from the future", header, secret, body, signedAt.Add(-61 * time.Second), false},
		{"another time", strings.Replace(header, "t=1790000000", "t=1790000001", 1), secret, body, signedAt, false},
		{"two times", "t=1790000000," + header, secret, body, signedAt, false},
		{"no time", header[strings.Index(header, "v1"):], secret, body, signedAt, false},
		{"no signature", "t=1790000000", secret, body, signedAt, false},
		{"cut", header[:len(header)-2], secret, body, signedAt, false},
		{"empty", "", secret, body, signedAt, false},
		{"huge", header + strings.Repeat(",v1=00", 1000), secret, body, signedAt, false},
	} {
		err := Verify(c.secret, c.header, c.body, c.now, time.Minute)
		if (err == nil) != c.ok || (err != nil && !errors.Is(err, ErrSignature)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(Sign([]byte("secret"), []byte("body"), signedAt), []byte("body"))
	f.Add("t=1,v1=00", []byte{})
	f.Add("t=,t=,v1=,v1", []byte("x"))
	f.Fuzz(func(t *testing.T, header string, body []byte) {
		if Verify([]byte("secret"), header, body, signedAt, time.Minute) == nil && !strings.Contains(header, Sign([]byte("secret"), body, signedAt)[len("t=1790000000,"):]) {
			// Times up to a minute off are accepted with a signature of their own.
			ok := false
			for s := -60; s <= 60; s++ {
				signature := Sign([]byte("secret"), body, signedAt.Add(time.Duration(s)*time.Second))
				ok = ok || bytes.Contains([]byte(strings.ToLower(header)), []byte(signature[strings.Index(signature, "v1="):]))
			}
			if !ok {
				t.Errorf("%q was accepted for %q", header, body)
			}
		}
	})
}
