package apply

import (
	"fmt"
	"slices"
	"strings"
)

// Difference is one thing that is not as planned. An empty value is one that is not there.
type Difference struct {
	Field   string `json:"field"`
	Planned string `json:"planned"`
	Found   string `json:"found"`
}

func (d Difference) String() string {
	return fmt.Sprintf("%s is %q, planned is %q", d.Field, d.Found, d.Planned)
}

type differences []Difference

func (d *differences) compare(field, planned, found string) {
	if planned != found {
		*d = append(*d, Difference{Field: field, Planned: planned, Found: found})
	}
}

func (d differences) sorted() []Difference {
	slices.SortStableFunc(d, func(a, b Difference) int { return strings.Compare(a.Field, b.Field) })
	return d
}
