package coordinator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/webhook"
	"bloomery/internal/pki"
)

const (
	// sendTimeout bounds a delivery from dialling to the last byte of the answer.
	sendTimeout = 10 * time.Second
	// maxAnswer bounds what is read of a receiver's answer, and maxAnswerHeader of its header, in bytes.
	maxAnswer       = 4 << 10
	maxAnswerHeader = 16 << 10
	// A pause doubles up to sendLongest; after sendTries an event is a dead letter, an hour after it was tried first.
	sendLongest = 5 * time.Minute
	sendTries   = 20
	maxURL      = 2048
	maxPrefixes = 32
)

// outcome is what became of a delivery.
type outcome struct {
	// status is the receiver's; 0 when it was not reached.
	status int
	err    error
	// after is how long the receiver asked to be left alone; 0 when it did not.
	after time.Duration
}

// refused says that the receiver will not take this event however often it is sent: any 4xx but those that ask for patience.
func (o outcome) refused() bool {
	return o.status >= 400 && o.status < 500 && o.status != http.StatusRequestTimeout && o.status != http.StatusTooEarly && o.status != http.StatusTooManyRequests
}

// givenUp says whether an event that failed for the given time in a row is a dead letter now.
func (o outcome) givenUp(failures int) bool { return o.refused() || failures >= sendTries }

// retryPause is how long to wait after so many failures in a row, about first after one; jitter is in [0, 1).
func retryPause(first time.Duration, failures int, asked time.Duration, jitter float64) time.Duration {
	pause := sendLongest
	if n := failures - 1; n < 16 {
		pause = min(first<<max(n, 0), sendLongest)
	}
	// Half of it is random, so that receivers that come back are not met by all racks at once.
	pause = pause/2 + time.Duration(jitter*float64(pause/2))
	return max(pause, min(asked, sendLongest))
}

// wants says whether a webhook is to be sent an event.
func wants(prefixes []string, kind string) bool {
	return len(prefixes) == 0 || slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(kind, p) })
}

// checkWebhook validates what an operator asks for.
func checkWebhook(w *bloomeryv1.Webhook) error {
	if err := pki.ValidName(w.GetName()); err != nil {
		return invalid("webhook.name", "NAME_INVALID", "%v", err)
	}
	if err := checkWebhookURL(w.GetUrl()); err != nil {
		return invalid("webhook.url", "URL_INVALID", "%v", err)
	}
	if n := len(w.GetTypePrefixes()); n > maxPrefixes {
		return invalid("webhook.type_prefixes", "OUT_OF_RANGE", "%d prefixes: want at most %d", n, maxPrefixes)
	}
	for i, p := range w.GetTypePrefixes() {
		if p == "" || !slices.ContainsFunc(EventTypes(), func(t EventType) bool { return strings.HasPrefix(t.Type, p) }) {
			return invalid(fmt.Sprintf("webhook.type_prefixes[%d]", i), "TYPE_UNKNOWN", "no type of event starts with %q: see \"bloomery event types\"", clip(p))
		}
	}
	return nil
}

// checkWebhookURL takes https, and http where nobody else can listen.
func checkWebhookURL(text string) error {
	if len(text) > maxURL {
		return fmt.Errorf("%d bytes are more than %d", len(text), maxURL)
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return errors.New("want https://host/path") // what url.Parse says holds the text, which may hold a password
	case u.Scheme != "https" && u.Scheme != "http", u.Hostname() == "", u.Opaque != "":
		return errors.New("want https://host/path, or http with a loopback or private address")
	case u.User != nil:
		return errors.New("want no user or password in it: deliveries are signed")
	case u.Fragment != "":
		return errors.New("want no fragment (#...)")
	case u.Scheme == "https" || u.Hostname() == "localhost":
		return nil
	}
	if a, err := netip.ParseAddr(u.Hostname()); err != nil || !near(a) {
		return errors.New("http is for loopback and private addresses only: use https")
	}
	return nil
}

func near(a netip.Addr) bool { a = a.Unmap(); return a.IsLoopback() || a.IsPrivate() }

// sender posts events. It follows no redirect and uses no proxy, and what it reaches over plain http is near.
type sender struct{ https, http *http.Client }

func newSender() *sender {
	client := func(control func(network, address string, _ syscall.RawConn) error) *http.Client {
		dialer := &net.Dialer{Timeout: sendTimeout, Control: control}
		return &http.Client{
			Timeout: sendTimeout,
			Transport: &http.Transport{
				DialContext: dialer.DialContext, ForceAttemptHTTP2: true, TLSHandshakeTimeout: sendTimeout,
				MaxResponseHeaderBytes: maxAnswerHeader, MaxIdleConnsPerHost: 1, IdleConnTimeout: idleTimeout,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return &sender{https: client(nil), http: client(func(_, address string, _ syscall.RawConn) error {
		if a, err := netip.ParseAddrPort(address); err != nil || !near(a.Addr()) {
			return fmt.Errorf("%s is not a loopback or private address: use https", address)
		}
		return nil
	})}
}

func (s *sender) close() {
	s.https.CloseIdleConnections()
	s.http.CloseIdleConnections()
}

// send makes one try.
func (s *sender) send(ctx context.Context, url string, secret, body []byte, now time.Time) outcome {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return outcome{err: errors.New("the webhook's URL cannot be used")}
	}
	request.Header.Set("Content-Type", webhook.ContentType)
	request.Header.Set("User-Agent", "bloomery")
	request.Header.Set(webhook.SignatureHeader, webhook.Sign(secret, body, now))
	client := s.https
	if request.URL.Scheme == "http" {
		client = s.http
	}
	response, err := client.Do(request)
	if err != nil {
		return outcome{err: withoutURL(err)}
	}
	// The connection is used again only if the answer was read.
	_, err = io.CopyN(io.Discard, response.Body, maxAnswer)
	_ = response.Body.Close()
	out := outcome{status: response.StatusCode}
	switch {
	case response.StatusCode/100 != 2:
		out.err = fmt.Errorf("the receiver answered %d %s", response.StatusCode, http.StatusText(response.StatusCode))
		if seconds, err := strconv.ParseInt(response.Header.Get("Retry-After"), 10, 32); err == nil && seconds > 0 {
			out.after = time.Duration(seconds) * time.Second
		}
	case err != nil && !errors.Is(err, io.EOF):
		out.status, out.err = 0, fmt.Errorf("read the receiver's answer: %w", withoutURL(err))
	}
	return out
}

// why says in a few words why a delivery failed; the bytes may come from outside.
func (o outcome) why() string { return strings.ToValidUTF8(clipTo(o.err.Error(), maxWhy), "?") }

// withoutURL keeps a URL out of errors: its path may be a secret of the receiver's.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
