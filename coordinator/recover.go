package coordinator

import (
	"fmt"
	"path/filepath"

	"bloomery/coordinator/store"
)

// RecoveryState is what a coordinator that does not run knows of its database.
type RecoveryState struct {
	Dir, Address string
	// Term and Index are of the newest entry of the replicated log on its disk.
	Term, Index uint64
	Members     []string
}

// ReadRecovery looks at the database of a coordinator that does not run.
func ReadRecovery(config Config) (RecoveryState, error) {
	s := RecoveryState{Dir: filepath.Join(config.Data, "dqlite")}
	o, err := store.ReadOffline(s.Dir)
	if err != nil {
		return s, err
	}
	s.Address, s.Term, s.Index = o.Self.Address, o.Position.Term, o.Position.Index
	for _, m := range o.Members {
		s.Members = append(s.Members, m.Address+" ("+m.Role.String()+")")
	}
	return s, nil
}

// Recover makes a coordinator that does not run the only one of its rack, with what its disk has.
func Recover(config Config) error {
	members, err := openRoster(config.Data)
	if err != nil {
		return err
	}
	if n, ok := members.node(config.Node); ok && !n.Present() {
		return removedError(config)
	}
	if _, err := store.Recover(filepath.Join(config.Data, "dqlite")); err != nil {
		return fmt.Errorf("recover the database: %w", err)
	}
	return nil
}
