package coordinator

import (
	"strings"
	"testing"
)

// FuzzJoinToken reads what somebody pasted: what is accepted survives being written again.
func FuzzJoinToken(f *testing.F) {
	good, err := joinToken{Node: "c2", API: []string{"https://10.0.0.1:8443"}, Roots: [][]byte{{1}}, Secret: strings.Repeat("a", joinSecretLength)}.encode()
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{good, good[:20], "blj_", "blj_e30", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		token, roots, err := parseJoinToken(text)
		if err != nil {
			return
		}
		if roots == nil || token.Node == "" || len(token.API) == 0 {
			t.Fatalf("accepted %+v", token)
		}
		again, err := token.encode()
		must(t, err)
		if _, _, err := parseJoinToken(again); err != nil {
			t.Errorf("what was accepted is refused when it is written again: %v", err)
		}
	})
}
