package layout

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzParse reads any document. What is taken can be planned or is refused with problems, and its plan can be printed, drawn and read again.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/*.json", "testdata/*.yaml", "../../docs/layouts/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			f.Fatalf("no seeds in %s: %v", pattern, err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Add([]byte(everything))
	f.Add([]byte("a: &a [*a]"))
	disks := storageServer()
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := Parse(data)
		var problems Problems
		if err != nil {
			if !errors.As(err, &problems) {
				t.Fatalf("an error without problems: %v", err)
			}
			return
		}
		text, err := l.YAML()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(text); err != nil && len(text) <= MaxLayoutSize {
			t.Fatalf("the printed layout cannot be read: %v\n%s", err, text)
		}
		p, err := MakePlan(l, disks, uefi())
		if err != nil {
			if !errors.As(err, &problems) || strings.Contains(err.Error(), "mistake in this program") {
				t.Fatalf("an error without problems: %v", err)
			}
			return
		}
		readAgain(t, p)
	})
}

func FuzzDecodePlan(f *testing.F) {
	for _, text := range []string{raid1, everything, single} {
		p, err := MakePlan(parsed(f, text), storageServer(), uefi())
		if err != nil {
			f.Fatal(err)
		}
		data, err := p.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"format":"bloomery.plan/v1","disks":[{"name":"d","serial":"s","size_bytes":1048576,"sector_size":512,"table":true}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := DecodePlan(data); err == nil {
			readAgain(t, p)
		}
	})
}

func parsed(f *testing.F, text string) *Layout {
	l, err := Parse([]byte(text))
	if err != nil {
		f.Fatal(err)
	}
	return l
}

// readAgain uses everything that a plan offers.
func readAgain(t *testing.T, p *Plan) {
	t.Helper()
	data, err := p.Encode()
	if err != nil {
		if strings.Contains(err.Error(), "can be stored") {
			return
		}
		t.Fatal(err)
	}
	if _, err := DecodePlan(data); err != nil {
		t.Fatalf("the plan cannot be read again: %v", err)
	}
	ids := map[string]bool{}
	for _, a := range p.Actions() {
		if ids[a.ID] {
			t.Fatalf("action %s is there twice", a.ID)
		}
		ids[a.ID] = true
	}
	for _, text := range []string{p.Text(), p.Drawing()} {
		if !utf8.ValidString(text) || strings.ContainsAny(text, "\x00\x1b\r") {
			t.Fatalf("a text with control characters: %q", text)
		}
	}
	decoder := xml.NewDecoder(bytes.NewReader(p.SVG()))
	for {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("the SVG is no XML: %v", err)
		}
	}
}

// TestMixedUpLayouts swaps words and lines of sound documents, which leaves more of them readable than swapping bytes does.
func TestMixedUpLayouts(t *testing.T) {
	words := regexp.MustCompile(`[^\s,:{}\[\]"]+|"[^"]*"`)
	disks := storageServer()
	taken, planned := 0, 0
	for _, document := range []string{everything, single, raid1, string(readFile(t, "scaleway-default.json")), string(readFile(t, "equinix-raid1.json"))} {
		lines := strings.Split(document, "\n")
		all := words.FindAllString(document, -1)
		for seed := range uint64(600) {
			r := rand.New(rand.NewPCG(seed, 2))
			changed := slices.Clone(lines)
			for range 1 + r.IntN(3) {
				i := r.IntN(len(changed))
				switch r.IntN(4) {
				case 0:
					changed = slices.Delete(changed, i, i+1)
				case 1:
					changed = slices.Insert(changed, i, changed[r.IntN(len(changed))])
				default:
					places := words.FindAllStringIndex(changed[i], -1)
					if len(places) > 0 {
						at := places[r.IntN(len(places))]
						changed[i] = changed[i][:at[0]] + all[r.IntN(len(all))] + changed[i][at[1]:]
					}
				}
			}
			l, err := Parse([]byte(strings.Join(changed, "\n")))
			if err != nil {
				continue
			}
			taken++
			p, err := MakePlan(l, disks, uefi())
			var problems Problems
			if err != nil {
				if !errors.As(err, &problems) || strings.Contains(err.Error(), "mistake in this program") {
					t.Fatalf("%v\n%s", err, strings.Join(changed, "\n"))
				}
				continue
			}
			planned++
			readAgain(t, p)
		}
	}
	if taken < 100 || planned < 50 {
		t.Errorf("%d documents were taken and %d planned: too few to say anything", taken, planned)
	}
}
