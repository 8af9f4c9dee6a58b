//go:build !guest

package guest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const mark = "\x16" // what -test.v=test2json puts in front of its own lines

// TestReadResults gives the reader what machines say, whole and cut short.
func TestReadResults(t *testing.T) {
	passing := "GUEST begin a/b\n" + mark + "=== RUN   TestX\nhello\n" + mark + "--- PASS: TestX (0.01s)\n" + mark + "PASS\n\nGUEST end a/b 0\n"
	tests := map[string]struct {
		said    string
		want    []string
		wantErr string
	}{
		"pass": {passing + "GUEST done\n", []string{"a/b/TestX pass"}, ""},
		"fail with a subtest": {"GUEST begin a/b\n" + mark + "=== RUN   TestX\n" + mark + "=== RUN   TestX/deep\n    x_test.go:3: no\n" + mark + "--- FAIL: TestX (0.00s)\n" +
			mark + "    --- FAIL: TestX/deep (0.00s)\n" + mark + "FAIL\n\nGUEST end a/b exit status 1\nGUEST done\n", []string{"a/b/TestX fail", "a/b/TestX/deep fail"}, ""},
		"skip": {"GUEST begin a/b\n" + mark + "=== RUN   TestX\n" + mark + "--- SKIP: TestX (0.00s)\n" + mark + "PASS\n\nGUEST end a/b 0\nGUEST done\n", []string{"a/b/TestX skip"}, ""},
		"panic of a test": {"GUEST begin a/b\n" + mark + "=== RUN   TestX\npanic: oh\ngoroutine 1\n\nGUEST end a/b exit status 2\nGUEST done\n",
			[]string{"a/b/TestX unfinished"}, ""},
		"binary missing":         {"GUEST begin a/b\n\nGUEST end a/b fork/exec /guest/0.test: no such file or directory\nGUEST done\n", nil, "no test ran (fork/exec"},
		"exit after pass":        {strings.Replace(passing, "a/b 0", "a/b exit status 3", 1) + "GUEST done\n", []string{"a/b/TestX pass"}, "ended with exit status 3"},
		"machine gone in a test": {"GUEST begin a/b\n" + mark + "=== RUN   TestX\nhel", []string{"a/b/TestX unfinished"}, "in the middle of a/b"},
		"machine gone before":    {"", nil, "a/b was not run"},
		"runner's error":         {"GUEST error \"disk GUESTV1 is missing\"\n", nil, "GUESTV1"},
		"no end of the runner":   {passing, []string{"a/b/TestX pass"}, "before its runner had done"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var got []string
			err := readResults(t.Context(), strings.NewReader(tt.said), Plan{Packages: []PlanPackage{{Name: "a/b"}}}, func(results []result) {
				for _, r := range results {
					got = append(got, r.name+" "+r.verdict)
				}
			})
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("results (-want +got):\n%s", diff)
			}
			if (err == nil) != (tt.wantErr == "") || err != nil && !strings.Contains(err.Error(), tt.wantErr) {
				t.Errorf("error %v, want one with %q", err, tt.wantErr)
			}
		})
	}
}

func TestSelected(t *testing.T) {
	all := []testPackage{{name: "lab/guest", tests: []string{"TestDisks"}}, {name: "partition/apply", tests: []string{"TestStop", "TestRAID"}}, {name: "partition/wipe", tests: []string{"TestATA"}}}
	tests := map[string]struct {
		pattern string
		want    string
	}{
		"everything":      {"", "lab/guest:TestDisks partition/apply:TestStop,TestRAID partition/wipe:TestATA"},
		"all guest tests": {"TestGuest", "lab/guest:TestDisks partition/apply:TestStop,TestRAID partition/wipe:TestATA"},
		"a folder":        {"Guest/partition", "partition/apply:TestStop,TestRAID partition/wipe:TestATA"},
		"a package":       {"Guest/partition/apply", "partition/apply:TestStop,TestRAID"},
		"a test":          {"TestGuest/partition/apply/Stop", "partition/apply:TestStop"},
		"a test's case":   {"TestGuest/partition/apply/TestStop/deep", "partition/apply:TestStop"},
		"alternatives":    {"TestGuest/(partition|lab)/x", "lab/guest:TestDisks partition/apply:TestStop,TestRAID partition/wipe:TestATA"},
		"none":            {"TestGuest/partition/nothing", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			packages, err := selected(all, tt.pattern)
			var got []string
			for _, pkg := range packages {
				got = append(got, pkg.name+":"+strings.Join(pkg.tests, ","))
			}
			if diff := cmp.Diff(tt.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("selection (-want +got):\n%s", diff)
			}
			if (err != nil) != (tt.want == "") {
				t.Errorf("error %v", err)
			}
		})
	}
}
