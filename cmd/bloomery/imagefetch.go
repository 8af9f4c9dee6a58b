package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bloomery/images/download"
	"bloomery/lab"
)

// published is where an image is fetched from that its maker publishes, and what it must be.
type published struct{ sha256, sha512, sums string }

func (p *published) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.sha256, "sha256", "", "checksum of what a URL gives, 64 hexadecimal digits")
	cmd.Flags().StringVar(&p.sha512, "sha512", "", "the same, 128 hexadecimal digits")
	cmd.Flags().StringVar(&p.sums, "sha256sums", "", "https URL of the maker's list of checksums (SHA256SUMS, SHA512SUMS, CHECKSUM)")
}

func isURL(source string) bool {
	return strings.HasPrefix(source, "http://") || strings.HasPrefix(source, "https://")
}

// check refuses a URL without a checksum, and a checksum of a file that is here.
func (p published) check(source string) error {
	given := 0
	for _, flag := range []string{p.sha256, p.sha512, p.sums} {
		if flag != "" {
			given++
		}
	}
	switch {
	case given > 1:
		return usagef("give one of --sha256, --sha512 and --sha256sums")
	case isURL(source) && given == 0:
		return usagef("an image is fetched with its checksum only: give --sha256 or --sha512, or --sha256sums with the URL of the maker's list")
	case !isURL(source) && given > 0:
		return usagef("%s is no URL: checksums are for what is fetched", source)
	}
	return nil
}

// fetch gets the file and names it; remove takes it and its folder away.
func (p published) fetch(ctx context.Context, source, maxSize string, progress io.Writer) (file string, remove func() error, err error) {
	limit, err := lab.ParseSize(maxSize)
	if err != nil {
		return "", nil, usagef("--max-size: %w", err)
	}
	sum, err := p.checksum(ctx, source)
	if err != nil {
		return "", nil, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", nil, fmt.Errorf("find a folder for the download: %w", err)
	}
	lines := throttled{w: progress, every: 2 * time.Second}
	file, err = download.Get(ctx, download.Options{
		URL: source, Folder: filepath.Join(cache, "bloomery", "images"), Checksum: sum, MaxSize: int64(limit),
		Progress: func(done, total int64) {
			if total < 0 {
				lines.printf("fetching %s\n", bytesText(done))
				return
			}
			lines.printf("fetching %s of %s\n", bytesText(done), bytesText(total))
		},
	})
	if err != nil && ctx.Err() != nil {
		return "", nil, fmt.Errorf("%w; the same command goes on from there", err)
	}
	return file, func() error { return os.Remove(file) }, err
}

func (p published) checksum(ctx context.Context, source string) (download.Checksum, error) {
	if p.sums != "" {
		return download.FetchSums(ctx, nil, p.sums, source)
	}
	sum, err := download.ParseChecksum(p.sha256 + p.sha512)
	if err == nil && (sum.Algorithm == "sha512") != (p.sha512 != "") {
		err = errors.New("it is of the other length")
	}
	if err != nil {
		return sum, usagef("--sha256 or --sha512: %w", err)
	}
	return sum, nil
}

// nameOf makes an image's name of a file's: noble-server-cloudimg-amd64.img becomes noble-server-cloudimg-amd64.
func nameOf(source string) string {
	base := filepath.Base(source)
	if u, err := url.Parse(source); err == nil && isURL(source) {
		base = path.Base(u.Path)
	}
	base = strings.ToLower(base)
	for stripped := true; stripped; {
		stripped = false
		for _, ending := range []string{".zst", ".gz", ".xz", ".bz2", ".img", ".raw", ".qcow2", ".tar"} {
			if strings.HasSuffix(base, ending) {
				base, stripped = strings.TrimSuffix(base, ending), true
			}
		}
	}
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, base)
}
