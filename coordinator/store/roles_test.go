package store

import (
	"fmt"
	"testing"
)

// TestRoleChanges walks every small cluster to where no role changes any more, and looks at what it became.
func TestRoleChanges(t *testing.T) {
	roles := []Role{RoleVoter, RoleStandby, RoleSpare}
	for n := 1; n <= 5; n++ {
		states := 1
		for range n - 1 {
			states *= 2 * len(roles)
		}
		for state := range states {
			// The first leads, so it votes and lives.
			members, alive := []Member{{ID: 1, Address: "n0"}}, map[string]bool{"n0": true}
			for i, rest := 1, state; i < n; i++ {
				m := Member{ID: uint64(i + 1), Address: fmt.Sprintf("n%d", i), Role: roles[rest%3]}
				members, alive[m.Address] = append(members, m), rest/3%2 == 0
				rest /= 6
			}
			name := fmt.Sprintf("%d nodes, state %d: %v %v", n, state, members, alive)
			living := 0
			for _, ok := range alive {
				if ok {
					living++
				}
			}
			for turn := 0; ; turn++ {
				changes := roleChanges(members, "n0", func(a string) bool { return alive[a] })
				if len(changes) == 0 {
					break
				}
				if turn > 20 {
					t.Fatalf("%s: does not settle", name)
				}
				if changes[0].member.Address == "n0" {
					t.Fatalf("%s: the leader changes its own role", name)
				}
				for i := range members {
					if members[i].ID == changes[0].member.ID {
						members[i].Role = changes[0].role
					}
				}
			}
			votes, goneVotes := 0, 0
			for _, m := range members {
				switch {
				case m.Role == RoleVoter && alive[m.Address]:
					votes++
				case m.Role == RoleVoter:
					goneVotes++
				case m.Role == RoleSpare && alive[m.Address]:
					t.Errorf("%s: %s lives and has no copy", name, m.Address)
				}
			}
			want := min(voters, living)
			if n < voters {
				want = 1
			}
			if votes != want {
				t.Errorf("%s: %d living voters, want %d: %v", name, votes, want, members)
			}
			if votes == voters && goneVotes > 0 || n < voters && goneVotes > 0 {
				t.Errorf("%s: %d votes are with the dead: %v", name, goneVotes, members)
			}
		}
	}
}
