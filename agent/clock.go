package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	hintTimeout = 3 * time.Second
	hintRounds  = 5
	// Less than this is not worth setting the clock for.
	hintTolerance = 2 * time.Second
)

// fetchTime asks for the time, by plain HTTP because no certificate can be judged without it. The answer is only a hint.
func fetchTime(ctx context.Context, client *http.Client, url string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, hintTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return time.Time{}, err
	}
	response, err := client.Do(request)
	if err != nil {
		return time.Time{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 128))
	if err != nil {
		return time.Time{}, fmt.Errorf("read the time from %s: %w", url, err)
	}
	if response.StatusCode != http.StatusOK {
		return time.Time{}, fmt.Errorf("%s answers %s", url, response.Status)
	}
	hint, err := time.Parse(time.RFC3339, strings.TrimSpace(string(body)))
	if err != nil {
		return time.Time{}, fmt.Errorf("read the time from %s: %w", url, err)
	}
	return hint, nil
}

// setClock asks each URL in turn, some rounds long, and sets the clock when it is off. It returns by how much the clock was moved.
// Without any answer a clock that is not before earliest is left as it is; that is an error only if it is before.
func setClock(ctx context.Context, client *http.Client, urls []string, earliest time.Time, set func(hint, earliest time.Time) error) (time.Duration, error) {
	var last []error
	for round := range hintRounds {
		if len(urls) == 0 {
			break
		}
		if round > 0 && !sleep(ctx, 200*time.Millisecond<<round) {
			return 0, ctx.Err()
		}
		last = last[:0]
		for _, url := range urls {
			hint, err := fetchTime(ctx, client, url)
			if err != nil {
				last = append(last, err)
				continue
			}
			moved := time.Until(hint)
			if moved.Abs() < hintTolerance {
				return 0, nil
			}
			if err := set(hint, earliest); err != nil {
				last = append(last, err)
				continue
			}
			return moved, nil
		}
	}
	if time.Now().After(earliest) {
		return 0, nil
	}
	return 0, fmt.Errorf("no time server answers and the clock is before the image was built: %w", errors.Join(last...))
}
