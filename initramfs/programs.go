package initramfs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	uRootModule       = "github.com/u-root/u-root"
	uRootInit         = uRootModule + "/cmds/core/init"
	lastResortPackage = "bloomery/initramfs/lastresort"
)

// Programs are linux/amd64 executables that go into the image beside the agent.
type Programs struct {
	Init       string // u-root's init
	LastResort string // what init runs when the agent has ended
}

// programs compiles the Go programs of the image into o.Out unless they were given.
func (o Options) programs(ctx context.Context) (*Programs, error) {
	if o.Programs != nil {
		return o.Programs, nil
	}
	dir, err := filepath.Abs(filepath.Join(o.Out, ".bin"))
	if err != nil {
		return nil, fmt.Errorf("find output directory: %w", err)
	}
	p := &Programs{Init: filepath.Join(dir, "init"), LastResort: filepath.Join(dir, "lastresort")}
	for pkg, out := range map[string]string{uRootInit: p.Init, lastResortPackage: p.LastResort} {
		if err := goBuild(ctx, o.ModuleDir, pkg, out); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// goBuild compiles pkg so that the same sources give the same bytes wherever they lie.
func goBuild(ctx context.Context, moduleDir, pkg, out string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, pkg)
	cmd.Dir = moduleDir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1", "GOFLAGS=")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("compile %s: %w: %s", pkg, err, lastLines(stderr.String(), 8))
	}
	return nil
}

// goEnv asks the Go command for one of its settings.
func goEnv(ctx context.Context, name string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", name).Output()
	if err != nil {
		return "", fmt.Errorf("ask go for %s: %w", name, err)
	}
	return strings.TrimSpace(string(out)), nil
}
