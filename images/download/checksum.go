package download

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
)

const (
	// maxSumsSize bounds a file of checksums; Debian's largest has about 100 KiB.
	maxSumsSize = 4 << 20
	maxSumsLine = 4096
)

// Checksum is what a file must hash to.
type Checksum struct {
	// Algorithm is "sha256" or "sha512".
	Algorithm string
	Sum       []byte
}

// ParseChecksum reads 64 or 128 hexadecimal digits.
func ParseChecksum(text string) (Checksum, error) {
	sum, err := hex.DecodeString(text)
	if err != nil {
		return Checksum{}, errors.New("a checksum is 64 (SHA-256) or 128 (SHA-512) hexadecimal digits")
	}
	switch len(sum) {
	case sha256.Size:
		return Checksum{"sha256", sum}, nil
	case sha512.Size:
		return Checksum{"sha512", sum}, nil
	}
	return Checksum{}, fmt.Errorf("a checksum has 64 (SHA-256) or 128 (SHA-512) hexadecimal digits, this one has %d", len(text))
}

func (c Checksum) String() string { return c.Algorithm + " " + hex.EncodeToString(c.Sum) }

func (c Checksum) hash() hash.Hash {
	if c.Algorithm == "sha512" {
		return sha512.New()
	}
	return sha256.New()
}

// ParseSums finds a file's checksum in what sha256sum(1) and sha512sum(1) print ("SUM  name", "SUM *name"), or their --tag form and BSD's
// ("SHA256 (name) = SUM"). Lines of any other form, such as those of an OpenPGP signature around the list, are passed over. Two different
// checksums for the name are an error.
func ParseSums(r io.Reader, name string) (Checksum, error) {
	lines := bufio.NewScanner(io.LimitReader(r, maxSumsSize+1))
	lines.Buffer(make([]byte, maxSumsLine), maxSumsLine)
	var found Checksum
	read := 0
	for lines.Scan() {
		if read += len(lines.Bytes()) + 1; read > maxSumsSize {
			return Checksum{}, fmt.Errorf("the list of checksums has more than %d bytes", maxSumsSize)
		}
		digits, file, ok := splitSum(strings.TrimRight(lines.Text(), "\r"))
		if !ok || file != name {
			continue
		}
		sum, err := ParseChecksum(digits)
		if err != nil {
			continue
		}
		if found.Sum != nil && found.String() != sum.String() && found.Algorithm == sum.Algorithm {
			return Checksum{}, fmt.Errorf("the list of checksums has two for %s", name)
		}
		if found.Sum == nil || len(sum.Sum) > len(found.Sum) {
			found = sum
		}
	}
	if err := lines.Err(); err != nil {
		return Checksum{}, fmt.Errorf("read the list of checksums: %w", err)
	}
	if found.Sum == nil {
		return Checksum{}, fmt.Errorf("the list of checksums has none for %s", name)
	}
	return found, nil
}

// splitSum takes one line apart; ok is false for any other line.
func splitSum(line string) (digits, name string, ok bool) {
	if before, after, tagged := strings.Cut(line, ") = "); tagged {
		algorithm, name, ok := strings.Cut(before, " (")
		if !ok || algorithm != "SHA256" && algorithm != "SHA512" {
			return "", "", false
		}
		return after, strings.TrimPrefix(name, "./"), true
	}
	digits, name, ok = strings.Cut(line, " ")
	if !ok || len(name) < 2 || name[0] != ' ' && name[0] != '*' {
		return "", "", false
	}
	return digits, strings.TrimPrefix(name[1:], "./"), true
}

// FetchSums reads a list of checksums over HTTPS and finds the one of the file at a URL. Over plain HTTP it would prove nothing, and is refused.
func FetchSums(ctx context.Context, client *http.Client, sumsURL, fileURL string) (Checksum, error) {
	sums, err := parseURL(sumsURL)
	if err != nil {
		return Checksum{}, err
	}
	if sums.Scheme != "https" {
		return Checksum{}, fmt.Errorf("%s: a list of checksums is believed over https only; give the checksum itself instead", shown(sums))
	}
	file, err := parseURL(fileURL)
	if err != nil {
		return Checksum{}, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, sums.String(), nil)
	if err != nil {
		return Checksum{}, fmt.Errorf("fetch %s: %w", shown(sums), err)
	}
	response, err := careful(client).Do(request)
	if err != nil {
		return Checksum{}, fmt.Errorf("fetch %s: %w", shown(sums), bare(err))
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return Checksum{}, fmt.Errorf("fetch %s: the server answers %s", shown(sums), response.Status)
	}
	sum, err := ParseSums(response.Body, path.Base(file.Path))
	if err != nil {
		return Checksum{}, fmt.Errorf("%s: %w", shown(sums), err)
	}
	return sum, nil
}

func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("not a URL: %w", bare(err))
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || path.Base(u.Path) == "/" || path.Base(u.Path) == "." {
		return nil, fmt.Errorf("%s: want http://host/file or https://host/file", shown(u))
	}
	return u, nil
}

// shown is a URL as it may be printed: without a password and a query, which may be a token.
func shown(u *url.URL) string {
	plain := *u
	plain.User, plain.RawQuery, plain.Fragment = nil, "", ""
	return plain.String()
}

// bare is an error of net/http without the URL in it.
func bare(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}
