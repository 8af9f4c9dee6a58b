// Package webhook signs Bloomery's event deliveries and verifies them: receivers in Go may import it, others find in docs/events.md
// how it is done. It needs nothing but the standard library.
package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Headers of a delivery; the body is a CloudEvent 1.0 in structured JSON.
const (
	SignatureHeader = "Bloomery-Signature"
	ContentType     = "application/cloudevents+json"
)

// maxHeader bounds a signature header, in bytes; ours have 80.
const maxHeader = 1024

// ErrSignature says that a delivery is not from who holds the secret, was changed on the way, or is too old.
var ErrSignature = errors.New("wrong signature")

// Sign returns a delivery's signature header: the time and the HMAC-SHA-256 of "time.body".
func Sign(secret, body []byte, at time.Time) string {
	seconds := strconv.FormatInt(at.Unix(), 10)
	return "t=" + seconds + ",v1=" + hex.EncodeToString(sum(secret, seconds, body))
}

// Verify checks a delivery's signature header. A delivery that was signed longer than tolerance ago, or later than that from now, is refused:
// who has recorded it could send it again. One of several v1 signatures is enough.
func Verify(secret []byte, header string, body []byte, now time.Time, tolerance time.Duration) error {
	if len(header) > maxHeader {
		return fmt.Errorf("%w: the header has %d bytes, more than %d", ErrSignature, len(header), maxHeader)
	}
	var at string
	var signatures [][]byte
	for part := range strings.SplitSeq(header, ",") {
		key, value, _ := strings.Cut(part, "=")
		switch key {
		case "t":
			if at != "" {
				return fmt.Errorf("%w: two times", ErrSignature)
			}
			at = value
		case "v1":
			signature, err := hex.DecodeString(value)
			if err != nil || len(signature) != sha256.Size {
				return fmt.Errorf("%w: v1 is not %d hex digits", ErrSignature, 2*sha256.Size)
			}
			signatures = append(signatures, signature)
		}
	}
	seconds, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return fmt.Errorf("%w: no time", ErrSignature)
	}
	want := sum(secret, at, body)
	for _, signature := range signatures {
		if !hmac.Equal(want, signature) {
			continue
		}
		if age := now.Sub(time.Unix(seconds, 0)); age > tolerance || age < -tolerance {
			return fmt.Errorf("%w: signed %s ago, more than %s", ErrSignature, age.Round(time.Second), tolerance)
		}
		return nil
	}
	return ErrSignature
}

func sum(secret []byte, seconds string, body []byte) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(seconds))
	mac.Write([]byte("."))
	mac.Write(body)
	return mac.Sum(nil)
}
