//go:build !guest

package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

const (
	module     = "bloomery/"
	moduleRoot = "../.."
	testSuffix = "_guest_test.go"
)

// testPackage is a package with guest tests.
type testPackage struct {
	name  string // "partition/apply"
	dir   string
	tests []string
}

// findPackages lists the module's packages that have guest tests, in the order of their names.
func findPackages(ctx context.Context) ([]testPackage, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-tags", "guest,libsqlite3", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles", "./...")
	cmd.Dir = moduleRoot
	out, err := cmd.Output()
	if err != nil {
		return nil, commandError(err)
	}
	var found []testPackage
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var listed struct {
			ImportPath, Dir           string
			TestGoFiles, XTestGoFiles []string
		}
		if err := decoder.Decode(&listed); errors.Is(err, io.EOF) {
			return found, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		pkg := testPackage{name: strings.TrimPrefix(listed.ImportPath, module), dir: listed.Dir}
		for _, file := range append(listed.TestGoFiles, listed.XTestGoFiles...) {
			if !strings.HasSuffix(file, testSuffix) {
				continue
			}
			tests, err := testsOf(filepath.Join(listed.Dir, file))
			if err != nil {
				return nil, err
			}
			pkg.tests = append(pkg.tests, tests...)
		}
		if len(pkg.tests) > 0 {
			found = append(found, pkg)
		}
	}
}

// testsOf lists a file's tests, so that a package's other tests, which run on the build machine, are left out.
func testsOf(file string) ([]string, error) {
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var tests []string
	for _, d := range parsed.Decls {
		f, ok := d.(*ast.FuncDecl)
		if ok && f.Recv == nil && regexp.MustCompile(`^Test([^a-z]|$)`).MatchString(f.Name.Name) && f.Name.Name != "TestMain" {
			tests = append(tests, f.Name.Name)
		}
	}
	return tests, nil
}

// selected narrows packages and their tests to what `go test -run` names: TestGuest/partition/apply/TestStop. A pattern that cannot be split
// leaves everything; `go test` filters the results anyway.
func selected(packages []testPackage, pattern string) ([]testPackage, error) {
	_, rest, ok := strings.Cut(pattern, "/")
	if !ok || strings.ContainsAny(rest, "|()[]") {
		return packages, nil
	}
	parts := strings.Split(strings.Trim(rest, "/"), "/")
	var out []testPackage
	for _, pkg := range packages {
		elements := strings.Split(pkg.name, "/")
		n := min(len(elements), len(parts))
		if !slices.EqualFunc(parts[:n], elements[:n], matches) {
			continue
		}
		if len(parts) > n {
			pkg.tests = slices.DeleteFunc(slices.Clone(pkg.tests), func(test string) bool { return !matches(parts[n], test) })
		}
		if len(pkg.tests) > 0 {
			out = append(out, pkg)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no guest test matches %q", pattern)
	}
	return out, nil
}

// matches tells whether an element of -run's pattern matches a name; one that is no pattern matches nothing.
func matches(pattern, name string) bool {
	ok, err := regexp.MatchString(pattern, name)
	return err == nil && ok
}

// compile builds the packages' binaries and the runner into dir, and says how the runner is to call them.
func compile(ctx context.Context, dir string, packages []testPackage, disks []string) (Plan, error) {
	if err := goTool(ctx, "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "runner"), "./lab/guest/runner"); err != nil {
		return Plan{}, err
	}
	p := Plan{Disks: disks}
	for i, pkg := range packages {
		binary := fmt.Sprintf("%d.test", i)
		if err := goTool(ctx, "test", "-c", "-tags", "guest", "-ldflags=-s -w", "-o", filepath.Join(dir, binary), "./"+pkg.name); err != nil {
			return Plan{}, err
		}
		p.Packages = append(p.Packages, PlanPackage{
			Name: pkg.name, Binary: "/guest/" + binary, Dir: "/guest/" + pkg.name,
			Args: []string{"-test.v=test2json", "-test.timeout=" + PackageTimeout.String(), "-test.run=^(" + strings.Join(pkg.tests, "|") + ")$"},
		})
	}
	return p, nil
}

func goTool(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = moduleRoot
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w: %s", args[0], err, out)
	}
	return nil
}

// writeInitrd writes the agent image's archive with one more behind it, in which the runner stands where the agent did.
func writeInitrd(path, base, dir string, p Plan, packages []testPackage) (err error) {
	image, err := os.ReadFile(base)
	if err != nil {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := out.Write(image); err != nil {
		return err
	}
	files := &archive{w: cpio.Newc.Writer(out), made: map[string]bool{}}
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	files.add("bin/uinit", filepath.Join(dir, "runner"), nil)
	files.add(strings.TrimPrefix(PlanPath, "/"), "", text)
	for i, pkg := range p.Packages {
		files.add(strings.TrimPrefix(pkg.Binary, "/"), filepath.Join(dir, filepath.Base(pkg.Binary)), nil)
		files.folder(strings.TrimPrefix(pkg.Dir, "/"))
		files.testdata(strings.TrimPrefix(pkg.Dir, "/"), packages[i].dir)
	}
	return errors.Join(files.err, cpio.WriteTrailer(files.w))
}

// archive adds files with the folders that they stand in; the first error ends it.
type archive struct {
	w    cpio.RecordWriter
	made map[string]bool
	err  error
}

func (a *archive) folder(path string) {
	if path == "." || a.made[path] || a.err != nil {
		return
	}
	a.folder(filepath.Dir(path))
	a.made[path] = true
	a.err = errors.Join(a.err, a.w.WriteRecord(cpio.Directory(path, 0o755)))
}

// add takes the content from a file unless it is given.
func (a *archive) add(path, from string, content []byte) {
	a.folder(filepath.Dir(path))
	if a.err != nil {
		return
	}
	if from != "" {
		if content, a.err = os.ReadFile(from); a.err != nil {
			return
		}
	}
	a.err = a.w.WriteRecord(cpio.StaticFile(path, string(content), 0o755))
}

func (a *archive) testdata(to, dir string) {
	if _, err := os.Stat(filepath.Join(dir, "testdata")); err != nil {
		return
	}
	a.err = errors.Join(a.err, filepath.WalkDir(filepath.Join(dir, "testdata"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		relative, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		a.add(filepath.Join(to, relative), path, nil)
		return a.err
	}))
}

// commandError adds what a command wrote to its error.
func commandError(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return err
}
