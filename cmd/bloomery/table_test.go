package main

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

func TestTableFits(t *testing.T) {
	long := strings.Repeat("ä", 60)
	rows := [][]string{{"NAME", "STATUS", "A LONG HEADER", "X"}, {"node1", "running", long, long}, {long, "", "x", "y"}}
	var b bytes.Buffer
	if err := writeTable(&b, rows, tableWidth); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	for _, line := range lines {
		if n := utf8.RuneCountInString(line); n > tableWidth {
			t.Errorf("%d runes: %s", n, line)
		}
	}
	if !strings.Contains(lines[0], "A LONG HEADER") || !strings.HasPrefix(lines[2], long) || !strings.Contains(lines[1], "…") {
		t.Errorf("table:\n%s", b.String())
	}
}

func TestCSVIsInert(t *testing.T) {
	var b bytes.Buffer
	err := writeCSV(&b, [][]string{{"A", "B"}, {"=1+1", "-2"}, {"@x", " +y"}, {"a,\"b\"", "two\nlines"}, {"", "1-1"}, {"\x1b[2J", "\t=z"}})
	if err != nil {
		t.Fatal(err)
	}
	want := "A,B\n'=1+1,'-2\n'@x,' +y\n\"a,\"\"b\"\"\",two lines\n,1-1\n\" [2J\",' =z\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

func FuzzParseFleet(f *testing.F) {
	f.Add([]byte("racks:\n  - {name: par1, config: a.yaml}\n"))
	f.Add([]byte("racks: [{name: par1, config: x}, {name: par1, config: y}]"))
	f.Add([]byte("racks: &a [*a]"))
	f.Add([]byte("---\n---\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		racks, err := parseFleet(data)
		if err != nil {
			return
		}
		names := map[string]bool{}
		for _, r := range racks {
			if r.Name == "" || r.Config == "" || names[r.Name] {
				t.Errorf("accepted %+v", racks)
			}
			names[r.Name] = true
		}
	})
}

// TestColumnsExist keeps what is written down in lists of names true.
func TestColumnsExist(t *testing.T) {
	if _, err := chooseColumns(usualColumns()); err != nil {
		t.Error(err)
	}
	if got := shownColumns("table", nil, []string{"of-the-future"}); len(got) != len(usualColumns()) {
		t.Errorf("a view of columns that are not known shows %d columns", len(got))
	}
	for _, order := range []string{"", "name", "status", "rack", "model", "project", "updated"} {
		a, b := &bloomeryv1.Machine{Name: "a"}, &bloomeryv1.Machine{Name: "b"}
		if compareMachines(order)(a, b) >= 0 || compareMachines("-"+order)(a, b) <= 0 {
			t.Errorf("order %q", order)
		}
	}
}
