package network

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// clockSpan is how long after its build an agent image may still run.
const clockSpan = 10 * 366 * 24 * time.Hour

// BoundHint says whether an unauthenticated time may be believed: not before earliest (the image's build date) and not
// more than ten years after it. Certificates' lifetimes then limit what a liar can gain.
func BoundHint(hint, earliest time.Time) error {
	if hint.Before(earliest) {
		return fmt.Errorf("the time %s is before this image was built (%s)", hint.UTC().Format(time.RFC3339), earliest.UTC().Format(time.RFC3339))
	}
	if latest := earliest.Add(clockSpan); hint.After(latest) {
		return fmt.Errorf("the time %s is more than ten years after this image was built (%s)", hint.UTC().Format(time.RFC3339), earliest.UTC().Format(time.RFC3339))
	}
	return nil
}

// SetTime sets the system's clock to a hint within BoundHint.
func SetTime(hint, earliest time.Time) error {
	if err := BoundHint(hint, earliest); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	tv := unix.NsecToTimeval(hint.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		return fmt.Errorf("set the clock to %s: %w", hint.UTC().Format(time.RFC3339), err)
	}
	return nil
}
