package coordinator

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

const (
	tokenBytes = 32
	// maxPhoneHome bounds the form that cloud-init posts; it is read and thrown away.
	maxPhoneHome = 64 << 10
)

var errBadToken = errors.New("unknown token")

// newToken makes a phone-home token and the hash that is stored of it.
func newToken() (token string, hash []byte, err error) {
	raw := make([]byte, tokenBytes)
	if _, err := rand.Read(raw); err != nil {
		return "", nil, fmt.Errorf("make a phone-home token: %w", err)
	}
	token = base64.RawURLEncoding.EncodeToString(raw)
	return token, hashToken(token), nil
}

// hashToken is what a token is looked up by: 256 random bits need no salt, and looking a hash up gives no timing away.
func hashToken(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

// PhoneHome is the handler of the plain HTTP listeners on customers' networks: POST /phone-home/{token} and nothing else.
func (c *Coordinator) PhoneHome() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /phone-home/{token}", func(w http.ResponseWriter, r *http.Request) {
		if from, ok := remote(r); !ok || !c.limits.phoneHomeFrom.allow(limitKey(from)) || !c.limits.phoneHome.Allow() {
			http.Error(w, "try again", http.StatusTooManyRequests)
			return
		}
		if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxPhoneHome)); err != nil {
			http.Error(w, "too large", http.StatusRequestEntityTooLarge)
			return
		}
		err := c.phoneHome(r)
		switch {
		case errors.Is(err, errBadToken):
			http.NotFound(w, r)
		case err != nil:
			c.Logger.Error("store a phone-home call", "error", err)
			http.Error(w, "try again", http.StatusServiceUnavailable)
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	})
	return mux
}

func (c *Coordinator) phoneHome(r *http.Request) error {
	token := r.PathValue("token")
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || len(token) != base64.RawURLEncoding.EncodedLen(tokenBytes) {
		return errBadToken
	}
	who := caller{from: from.Addr().Unmap()}
	refuse := func(machine, why string) error {
		c.security(r.Context(), "security.phone_home_refused", machine, who, "a phone-home call was refused: "+why)
		return errBadToken
	}
	var machine, why string
	err = c.update(r.Context(), func(ch *change) error {
		machine, why = "", ""
		j, err := ch.JobByToken(hashToken(token))
		if errors.Is(err, store.ErrNotFound) {
			why = "its token is not known or was used"
			return errBadToken
		}
		if err != nil {
			return err
		}
		m, err := ch.Machine(j.GetMachine())
		if err != nil {
			return err
		}
		machine = m.GetName()
		network, ok := c.config.network(installNetwork(j))
		if !ok || !network.Prefix.Contains(who.from) {
			why = fmt.Sprintf("address %s is not in network %s", who.from, installNetwork(j))
			return errBadToken
		}
		if j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_RUNNING {
			why = "its job has ended"
			return errBadToken
		}
		j.TokenHash, j.Phoned = nil, ch.Now()
		if err := ch.note(&bloomeryv1.Event{Type: "system.phoned_home", Machine: m.GetName(), JobId: j.GetId(), Message: fmt.Sprintf("the installed system of machine %s phoned home", m.GetName())},
			map[string]any{"from": who.from.String()}); err != nil {
			return err
		}
		return ch.saveJob(j)
	})
	if why != "" {
		return refuse(machine, why)
	}
	return err
}

// installNetwork names the customer's network that an install moves the port to.
func installNetwork(j *store.Job) string {
	for _, s := range j.GetSteps() {
		if p := s.GetMovePort(); p != nil {
			return p.GetTo()
		}
	}
	return ""
}
