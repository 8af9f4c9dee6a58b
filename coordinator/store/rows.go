package store

import (
	"encoding/json"
	"fmt"
	"strings"
)

// dqlite takes at most 255 parameters a statement, and each statement of a node that does not lead is a trip over the network. So
// whatever is written or looked up for many rows is given as one parameter, a JSON array, and unfolded by json_each.

// execRows runs a statement over rows, each an array that the statement reads as value->>0, value->>1 and so on. Values are
// strings, int64 or nil.
func (t *Tx) execRows(query string, rows [][]any) error {
	if len(rows) == 0 {
		return nil
	}
	text, err := json.Marshal(rows)
	if err != nil {
		return fmt.Errorf("encode rows: %w", err)
	}
	return t.exec(query, string(text))
}

// columns is the first n values of a row.
func columns(n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "value->>%d", i)
	}
	return b.String()
}

// list is a set of keys as a parameter for IN (SELECT value FROM json_each(?)).
func list(keys []string) (string, error) {
	text, err := json.Marshal(keys)
	if err != nil {
		return "", fmt.Errorf("encode keys: %w", err)
	}
	return string(text), nil
}
