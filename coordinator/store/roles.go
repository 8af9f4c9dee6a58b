package store

import (
	"cmp"
	"slices"
)

// voters is how many nodes of a rack vote: one may be lost.
const voters = 3

// change is a role that the leader gives to a node.
type change struct {
	member Member
	role   Role
}

// settledRoles says that no role has to change whoever is alive, so that nobody needs to be asked.
func settledRoles(members []Member, leader string) bool {
	return len(members) <= voters && len(roleChanges(members, leader, func(string) bool { return true })) == 0
}

// roleChanges decides what the leader changes next; the first that can be done is enough, then it looks again.
// Three nodes vote, or one while there are fewer: two that both vote would stop when either is lost.
// A voter that is gone keeps its vote until another node can take it: without a replacement there is nothing to gain.
func roleChanges(members []Member, leader string, alive func(address string) bool) []change {
	want := voters
	if len(members) < voters {
		want = 1
	}
	var voting, gone, ready, idle []Member
	for _, m := range members {
		switch {
		case m.Role == RoleVoter && alive(m.Address):
			voting = append(voting, m)
		case m.Role == RoleVoter:
			gone = append(gone, m)
		case alive(m.Address):
			ready = append(ready, m)
		}
		if m.Role == RoleSpare && alive(m.Address) {
			idle = append(idle, m)
		}
	}
	// A standby has the data already.
	slices.SortStableFunc(ready, func(a, b Member) int { return cmp.Compare(a.Role, b.Role) })
	var all []change
	give := func(to []Member, role Role) []change {
		for _, m := range to {
			if m.Address != leader {
				all = append(all, change{m, role})
			}
		}
		return all
	}
	switch {
	case len(voting) < want && len(ready) > 0:
		return give(ready, RoleVoter)
	case len(voting) > want:
		return give(voting, RoleStandby)
	case len(voting) == want && len(gone) > 0:
		return give(gone, RoleSpare)
	}
	return give(idle, RoleStandby)
}
