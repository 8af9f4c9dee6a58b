package coordinator

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

const (
	// rosterFile is in the data folder: who the coordinators are must be known before the database answers.
	rosterFile = "coordinators.json"
	maxRoster  = 1 << 20
	// reasonRemoved tells a coordinator that asks that it was removed.
	reasonRemoved = "NODE_REMOVED"
	// sameMoment is how much earlier than it was signed a certificate begins to be valid.
	sameMoment = 5 * time.Minute
)

// roster is who the rack's coordinators are, as this one saw it last.
type roster struct {
	// path is empty for one that is not kept.
	path string

	mu  sync.Mutex
	all []store.Node
}

// openRoster reads the roster; one that is not there is empty.
func openRoster(data string) (*roster, error) {
	r := &roster{path: filepath.Join(data, rosterFile)}
	info, err := os.Stat(r.path)
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	if info.Size() > maxRoster {
		return nil, fmt.Errorf("%s is corrupt: %d bytes are more than %d", r.path, info.Size(), maxRoster)
	}
	text, err := os.ReadFile(r.path)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &r.all); err != nil {
		return nil, fmt.Errorf("%s is corrupt: %w", r.path, err)
	}
	return r, nil
}

// replace takes over what the database says, and says whether it is news.
func (r *roster) replace(all []store.Node) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, err := json.Marshal(r.all)
	if err != nil {
		return false, err
	}
	fresh, err := json.Marshal(all)
	if err != nil || string(old) == string(fresh) {
		return false, err
	}
	if r.path != "" {
		if err := pki.Replace(r.path, 0o600, fresh); err != nil {
			return false, err
		}
	}
	r.all = slices.Clone(all)
	return true, nil
}

// remove notes that a coordinator was removed, before or without the database's word.
func (r *roster) remove(name string, when time.Time) error {
	all := r.nodes()
	i := slices.IndexFunc(all, func(n store.Node) bool { return n.Name == name })
	if i < 0 {
		all = append(all, store.Node{Name: name})
		i = len(all) - 1
	}
	if all[i].Present() {
		all[i].Removed = when
	}
	_, err := r.replace(all)
	return err
}

func (r *roster) nodes() []store.Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

func (r *roster) node(name string) (store.Node, bool) {
	for _, n := range r.nodes() {
		if n.Name == name {
			return n, true
		}
	}
	return store.Node{}, false
}

// admit says why whoever shows a coordinator's certificate is none. Everyone else is let through.
func (r *roster) admit(id pki.Identity) error {
	if id.Role != pki.RoleNode {
		return nil
	}
	n, ok := r.node(id.Name)
	if !ok {
		return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s is not one of the rack's coordinators", id.Name))
	}
	leaf, err := x509.ParseCertificate(id.Certificate)
	if err != nil {
		return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("certificate of coordinator %s: %w", id.Name, err))
	}
	if n.Present() && !leaf.NotBefore.Before(n.NotBefore.Add(-sameMoment).Truncate(time.Second)) {
		return nil
	}
	refused := connect.NewError(connect.CodePermissionDenied, fmt.Errorf("coordinator %s was removed from the rack", id.Name))
	if detail, err := connect.NewErrorDetail(&bloomeryv1.FieldError{Field: "certificate", Reason: reasonRemoved, Message: "this coordinator was removed from the rack"}); err == nil {
		refused.AddDetail(detail)
	}
	return refused
}

// saysRemoved tells the answer of a coordinator that knows the caller to be removed.
func saysRemoved(err error) bool {
	var refused *connect.Error
	if !errors.As(err, &refused) {
		return false
	}
	for _, d := range refused.Details() {
		if value, err := d.Value(); err == nil {
			if f, ok := value.(*bloomeryv1.FieldError); ok && f.GetReason() == reasonRemoved {
				return true
			}
		}
	}
	return false
}
