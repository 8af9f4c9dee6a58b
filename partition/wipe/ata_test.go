package wipe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"bloomery/internal/run"
)

// fakeATA answers as hdparm does for a drive with a security state of its own.
type fakeATA struct {
	disk                                               *memoryDisk
	unsupported, frozen, enhanced, locked, lies, keeps bool
	password                                           string
	eraseFails                                         bool
	commands                                           []string
}

func (f *fakeATA) answer(c run.Call) (run.Result, error) {
	fail := run.Result{ExitCode: 5, Stderr: []byte("SG_IO: bad/missing sense data")}
	if c.Argv[1] == "--Istdout" {
		return run.Result{Stdout: []byte(f.identify())}, nil
	}
	flag, password := c.Argv[3], c.Argv[4]
	f.commands = append(f.commands, strings.TrimPrefix(flag, "--security-"))
	if f.frozen {
		return fail, nil
	}
	switch flag {
	case "--security-set-pass":
		f.password = password
	case "--security-unlock":
		if password != f.password {
			return fail, nil
		}
		f.locked = false
	case "--security-disable":
		if password != f.password || f.locked {
			return fail, nil
		}
		f.password = ""
	case "--security-erase", "--security-erase-enhanced":
		if password != f.password || f.eraseFails {
			return fail, nil
		}
		if !f.lies {
			clear(f.disk.data)
		}
		if !f.keeps {
			f.password, f.locked = "", false
		}
	}
	return run.Result{}, nil
}

// identify prints the words as hdparm 9.65 does: eight in a line, each with a blank behind it.
func (f *fakeATA) identify() string {
	words := make([]uint16, ataWords)
	words[ataCommandSet], words[ataEraseTime], words[ataEnhancedTime] = 0x746b, 0x0001, 0x8001
	if !f.unsupported {
		words[ataSecurity] = 1
	} else {
		words[ataCommandSet] &^= 2
	}
	for bit, on := range map[int]bool{1: f.password != "", 2: f.locked, 3: f.frozen, 5: f.enhanced} {
		if on {
			words[ataSecurity] |= 1 << bit
		}
	}
	return printWords(words)
}

func printWords(words []uint16) string {
	var b strings.Builder
	b.WriteString("\n/dev/sda:\n")
	for i, w := range words {
		fmt.Fprintf(&b, "%04x ", w)
		if i%8 == 7 {
			b.WriteString("\n")
		}
	}
	return b.String()
}

func TestATA(t *testing.T) {
	for _, c := range []struct {
		name       string
		drive      fakeATA
		method     Method
		worth      Sanitization
		commands   string
		passedOver string
		err        string
	}{
		{name: "enhanced", drive: fakeATA{enhanced: true}, method: MethodATAEnhanced, worth: Purge, commands: "set-pass erase-enhanced"},
		{name: "plain", method: MethodATAErase, worth: Clear, commands: "set-pass erase", passedOver: "not offer it"},
		{name: "unsupported", drive: fakeATA{unsupported: true}, method: MethodOverwrite, worth: Clear, passedOver: "no security|no security|proves nothing"},
		{name: "frozen", drive: fakeATA{frozen: true}, method: MethodOverwrite, worth: Clear, passedOver: "frozen|frozen|proves nothing"},
		{name: "erasing fails", drive: fakeATA{eraseFails: true}, method: MethodOverwrite, worth: Clear, commands: "set-pass erase disable", passedOver: "not offer it|exited with code 5|proves nothing"},
		{name: "lies", drive: fakeATA{lies: true}, method: MethodOverwrite, worth: Clear, commands: "set-pass erase", passedOver: "not offer it|kept|proves nothing"},
		{name: "does nothing at all", drive: fakeATA{lies: true, keeps: true}, method: MethodOverwrite, worth: Clear, commands: "set-pass erase disable", passedOver: "not offer it|still has its password|proves nothing"},
		{name: "left locked by an interrupted wipe", drive: fakeATA{locked: true, password: ataPassword, enhanced: true}, method: MethodATAEnhanced, worth: Purge, commands: "unlock disable set-pass erase-enhanced"},
		{name: "locked by somebody else", drive: fakeATA{locked: true, password: "theirs"}, commands: "unlock", err: "not ours"},
		{name: "locked and frozen", drive: fakeATA{locked: true, frozen: true, password: ataPassword}, err: "switch the machine off and on"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, drive := fullDisk(36), c.drive
			drive.disk = m
			runner := &run.Fake{Answer: drive.answer}
			e := &engine{disk: m, seed: seeded(1), means: func(ctx context.Context, _ func(float64)) ([]eraser, error) {
				return ataMeans(ctx, &ataDrive{runner: runner, dev: "/dev/sda", rotational: true})
			}}
			result, err := e.run(t.Context(), Erase)
			if got := strings.Join(drive.commands, " "); got != c.commands {
				t.Errorf("commands %q, want %q", got, c.commands)
			}
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if result.Method != c.method || result.Sanitization != c.worth {
				t.Errorf("%s by %s, want %s by %s", result.Sanitization, result.Method, c.worth, c.method)
			}
			wantReasons(t, result, c.passedOver)
			if drive.password != "" {
				t.Error("the drive was left with a password")
			}
			gone(t, m.data)
		})
	}
}

// The whole command lines, as hdparm's manual page has them.
func TestATACommandLines(t *testing.T) {
	drive := &fakeATA{disk: fullDisk(1)}
	runner := &run.Fake{Answer: drive.answer}
	d := &ataDrive{runner: runner, dev: "/dev/sda"}
	if err := d.erase(t.Context(), "--security-erase-enhanced", time.Hour, func(float64) {}); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, c := range runner.Calls() {
		lines = append(lines, c.String())
	}
	want := []string{
		"hdparm --user-master u --security-set-pass bloomery /dev/sda",
		"hdparm --user-master u --security-erase-enhanced bloomery /dev/sda",
		"hdparm --Istdout /dev/sda",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("ran %q, want %q", lines, want)
	}
}

// A wipe that is told to stop does not leave the drive with a password.
func TestATACancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	drive := &fakeATA{disk: fullDisk(1)}
	runner := &run.Fake{Answer: func(c run.Call) (run.Result, error) {
		if slices.Contains(c.Argv, "--security-erase") {
			cancel()
			return run.Result{ExitCode: -1}, ctx.Err()
		}
		return drive.answer(c)
	}}
	d := &ataDrive{runner: runner, dev: "/dev/sda"}
	if err := d.erase(ctx, "--security-erase", 0, func(float64) {}); !errors.Is(err, context.Canceled) || drive.password != "" {
		t.Errorf("got %v, password %q", err, drive.password)
	}
}

func TestEraseMinutes(t *testing.T) {
	for word, want := range map[uint16]time.Duration{0: 0, 1: 2 * time.Minute, 0x00ff: 510 * time.Minute, 0x8001: 2 * time.Minute, 0x8100: 512 * time.Minute} {
		if got := eraseMinutes(word); got != want {
			t.Errorf("eraseMinutes(%#x) = %s, want %s", word, got, want)
		}
	}
}

func FuzzIdentify(f *testing.F) {
	f.Add((&fakeATA{enhanced: true}).identify())
	f.Add("\n/dev/sda:\n045a 3fff")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		words, err := parseIdentify(text)
		if err != nil {
			return
		}
		if s := parseSecurity(words); s.eraseTime < 0 || s.enhancedTime < 0 {
			t.Fatalf("%+v", s)
		}
		if again, err := parseIdentify(printWords(words)); err != nil || !slices.Equal(again, words) {
			t.Fatalf("printed and read again: %v", err)
		}
	})
}
