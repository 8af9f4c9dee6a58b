package cloudinit

import (
	"errors"
	"strings"
	"testing"
	"time"
)

const mimeGood = "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"b\"\n\n--b\nContent-Type: text/cloud-config\n\npackages: [vim]\n--b\nContent-Type: text/x-shellscript\nContent-Transfer-Encoding: base64\n\nIyEvYmluL3NoCmVjaG8gaGkK\n--b--\n"

func TestValidateUserData(t *testing.T) {
	for _, c := range []struct {
		name, in string
		line     int
		part     string
		want     string // substring of the error, empty for none
	}{
		{"empty", "", 0, "", ""},
		{"config", "#cloud-config\npackages:\n  - vim\n", 0, "", ""},
		{"config without body", "#cloud-config\n", 0, "", ""},
		{"config of comments", "#cloud-config\n# nothing\n", 0, "", ""},
		{"carriage return", "#cloud-config\r\na: 1\r\n", 0, "", ""},
		{"script", "#!/bin/sh\necho hi\n", 0, "", ""},
		{"jinja", "## template: jinja\n#cloud-config\na: {{ v1.region }}\n", 0, "", ""},
		{"mime", mimeGood, 0, "", ""},
		{"mime in CRLF", strings.ReplaceAll(mimeGood, "\n", "\r\n"), 0, "", ""},
		{"no header", "packages: [vim]\n", 1, "", "want #cloud-config"},
		{"header with a space", "# cloud-config\n", 1, "", "want #cloud-config"},
		{"header with capitals", "#Cloud-Config\na: 1\n", 1, "", "want exactly #cloud-config"},
		{"bad YAML", "#cloud-config\nusers:\n  - name: a\n bad: [\n", 4, "", "not valid YAML"},
		{"list", "#cloud-config\n- a\n", 2, "", "found a list"},
		{"scalar", "#cloud-config\n\nhello\n", 3, "", "single value"},
		{"two documents", "#cloud-config\na: 1\n---\nb: 2\n", 3, "", "second YAML document"},
		{"unknown alias", "#cloud-config\na: *x\n", 0, "", "unknown anchor"},
		{"empty interpreter", "#!\n", 1, "", "names no interpreter"},
		{"gzip", "\x1f\x8b\x08\x00\xff", 1, "", "UTF-8"},
		{"NUL", "#!/bin/sh\n\x00\n", 2, "", "UTF-8"},
		{"jinja without more", "## template: jinja\nfoo\n", 2, "", "after the jinja header"},
		{"too long", "#!/bin/sh\n" + strings.Repeat("#", MaxUserData), 0, "", "65546 bytes"},
		{"mime cut off", mimeGood[:len(mimeGood)-8], 0, "2", "unexpected EOF"},
		{"mime bad YAML", strings.Replace(mimeGood, "[vim]", "[vim", 1), 1, "1", "not valid YAML"},
		{"mime bad script", strings.Replace(mimeGood, "IyEv", "AAAA", 1), 1, "2", "UTF-8"},
		{"mime bad base64", strings.Replace(mimeGood, "IyEv", "!!!!", 1), 0, "2", "cannot be decoded"},
		{"mime not multipart", "Content-Type: text/plain\n\n#!/bin/sh\n", 1, "", "want multipart"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := ValidateUserData([]byte(c.in))
			if c.want == "" {
				if err != nil {
					t.Fatalf("refused: %v", err)
				}
				return
			}
			var e *UserDataError
			if !errors.As(err, &e) {
				t.Fatalf("got %v, want a *UserDataError", err)
			}
			if !strings.Contains(e.Error(), c.want) || e.Part != c.part || (c.line != 0 && e.Line != c.line) {
				t.Errorf("got line %d part %q %q, want line %d part %q %q", e.Line, e.Part, e, c.line, c.part, c.want)
			}
		})
	}
}

func FuzzValidateUserData(f *testing.F) {
	for _, seed := range []string{"", "#cloud-config\na: &x [1]\nb: *x\n", "#!/bin/sh\n", mimeGood, "## template: jinja\n#cloud-config\n",
		"#cloud-config\n? [a]\n: b\n", "Content-Type: multipart/mixed; boundary=a\n\n--a\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\n#!/x\n--b--\n--a--"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		err := ValidateUserData(b)
		var e *UserDataError
		if err != nil && (!errors.As(err, &e) || e.Line < 0 || e.Line > len(b)+2) {
			t.Fatalf("error without a sane place: %v", err)
		}
		if err == nil && len(b) > MaxUserData {
			t.Fatal("accepted more than MaxUserData")
		}
	})
}

// Whoever sends the user-data must not be able to keep the coordinator busy.
func TestValidateUserDataIsQuick(t *testing.T) {
	for _, unit := range []string{"[", "{", "? ", "- ", "a: ", "&a ", "*a ", "\"", "!x ", "[a,", "{a: ", "#\n", "\n", "---\n", "a: [\n", "- - -\n", "k: &a [*a]\n"} {
		start := time.Now()
		in := "#cloud-config\n" + strings.Repeat(unit, (MaxUserData-14)/len(unit))
		err := ValidateUserData([]byte(in))
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("%q repeated took %v (%v)", unit, took, err)
		}
	}
}
