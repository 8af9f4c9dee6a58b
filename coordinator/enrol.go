package coordinator

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

const (
	maxMACs = 64
	// enrolAgain is how long the same boot with the same key may ask again: its answer may have been lost.
	enrolAgain = 2 * time.Minute
)

var (
	bootIDPattern = regexp.MustCompile(`^[0-9a-f]{32}$`)
	uuidPattern   = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
)

// errNotExpected is all that a refused agent learns; the event says why.
var errNotExpected = errors.New("this machine is not expected to enrol")

// refusedEnrolment says why nobody was enrolled, for the security event.
type refusedEnrolment struct{ machine, why string }

func (e *refusedEnrolment) Error() string { return e.why }

// Enrol implements bloomery.v1.AgentService.
func (c *Coordinator) Enrol(ctx context.Context, r *connect.Request[bloomeryv1.EnrolRequest]) (*connect.Response[bloomeryv1.EnrolResponse], error) {
	who := callerOf(ctx)
	if !c.limits.enrolFrom.allow(limitKey(who.from)) || !c.limits.enrol.Allow() {
		return nil, connect.NewError(connect.CodeResourceExhausted, errors.New("too many enrolments: try again in a second"))
	}
	response, err := c.enrol(ctx, who, r.Msg)
	var refused *refusedEnrolment
	if errors.As(err, &refused) {
		c.security(ctx, "security.enrolment_refused", refused.machine, who,
			fmt.Sprintf("enrolment refused: %s (uuid %q, macs %s)", refused.why, clip(r.Msg.GetUuid()), clip(strings.Join(r.Msg.GetMacs(), " "))))
		return nil, connect.NewError(connect.CodePermissionDenied, errNotExpected)
	}
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(response), nil
}

func (c *Coordinator) enrol(ctx context.Context, who caller, r *bloomeryv1.EnrolRequest) (*bloomeryv1.EnrolResponse, error) {
	csr, err := pki.ParseCSR(r.GetCsr())
	if err != nil {
		return nil, invalid("csr", "CSR_INVALID", "%v", err)
	}
	if !bootIDPattern.MatchString(r.GetBootId()) {
		return nil, invalid("boot_id", "BOOT_ID_INVALID", "want 32 lower-case hex digits")
	}
	if !uuidPattern.MatchString(r.GetUuid()) {
		return nil, invalid("uuid", "UUID_INVALID", "want RFC 4122 text in lower case")
	}
	macs, err := canonicalMACs(r.GetMacs())
	if err != nil {
		return nil, invalid("macs", "MAC_INVALID", "%v", err)
	}
	key := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	var response *bloomeryv1.EnrolResponse
	err = c.update(ctx, func(ch *change) error {
		m, err := machineOf(&ch.Reader, macs, r.GetUuid())
		if err != nil {
			return err
		}
		boot, err := ch.Boot(m.GetName())
		if err != nil {
			return err
		}
		renews := who.Role == pki.RoleAgent && who.Name == m.GetName() && currentBoot(boot, who, r.GetBootId())
		if err := mayEnrol(boot, r.GetBootId(), key[:], ch.Now()); err != nil && !renews {
			return &refusedEnrolment{m.GetName(), err.Error()}
		}
		if err := leasedTo(&ch.Reader, who, m.GetName()); err != nil {
			return err
		}
		chain, notAfter, err := c.Authority.SignAgent(csr, m.GetName(), ch.Now())
		if err != nil {
			return fmt.Errorf("sign the certificate of machine %s: %w", m.GetName(), err)
		}
		first := boot.Enrolled.IsZero()
		if first {
			boot.Enrolled, boot.BootID, boot.KeyHash = ch.Now(), r.GetBootId(), key[:]
		}
		certificate := sha256.Sum256(chain[0])
		boot.CertificateHash, boot.Heard, boot.Authority = certificate[:], ch.Now(), c.Authority.AgentsOf(chain[1])
		if renews {
			// The agent's calls that are under way, and its next try when this answer is lost, show the present one.
			shown := sha256.Sum256(who.Certificate)
			boot.KeyHash, boot.CertificateHash = key[:], append(boot.CertificateHash, shown[:]...)
		}
		if err := ch.SaveBoot(boot); err != nil {
			return err
		}
		if m.GetUuid() == "" {
			m.Uuid = r.GetUuid()
			if err := ch.saveMachine(m); err != nil {
				return err
			}
		}
		response = &bloomeryv1.EnrolResponse{Machine: m.GetName(), Certificates: chain, NotAfter: timestamppb.New(notAfter)}
		if err := ch.TouchJob(boot.JobID); err != nil {
			return err
		}
		ch.topics["job/"+boot.JobID], ch.topics["machine/"+m.GetName()] = true, true
		if !first {
			return nil
		}
		return ch.note(&bloomeryv1.Event{Type: "agent.enrolled", Machine: m.GetName(), JobId: boot.JobID, Message: fmt.Sprintf("the agent of machine %s enrolled", m.GetName())},
			map[string]any{"from": addrText(who.from), "boot_id": r.GetBootId(), "agent_version": clip(r.GetAgentVersion()), "seconds": ch.Now().Sub(boot.Created).Seconds()})
	})
	return response, err
}

// mayEnrol decides whether a boot may be enrolled now by an agent that shows no certificate of it.
func mayEnrol(b *store.Boot, bootID string, key []byte, now time.Time) error {
	switch {
	case b == nil:
		return errors.New("the machine is not expected to boot")
	case b.Open():
		return nil
	case b.BootID == bootID && bytes.Equal(b.KeyHash, key) && now.Sub(b.Enrolled) <= enrolAgain:
		return nil
	}
	return errors.New("an agent has enrolled for this boot before")
}

// machineOf finds the one machine that has the MAC addresses and the UUID. Addresses that no machine has are allowed: not every NIC is on record.
func machineOf(r *store.Reader, macs []string, uuid string) (*bloomeryv1.Machine, error) {
	var found *bloomeryv1.Machine
	for _, mac := range macs {
		m, err := r.MachineByMAC(mac)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if found != nil && found.GetName() != m.GetName() {
			return nil, &refusedEnrolment{"", fmt.Sprintf("its MAC addresses belong to machines %s and %s", found.GetName(), m.GetName())}
		}
		found = m
	}
	if found == nil {
		return nil, &refusedEnrolment{"", "no machine has any of its MAC addresses"}
	}
	if found.GetUuid() != "" && found.GetUuid() != uuid {
		return nil, &refusedEnrolment{found.GetName(), "its UUID is not the machine's"}
	}
	return found, nil
}

// leasedTo checks that a call comes from an address that is leased to the machine.
func leasedTo(r *store.Reader, who caller, machine string) error {
	if !who.from.IsValid() {
		return &refusedEnrolment{machine, "it did not come over the provisioning network"}
	}
	holder, err := r.LeaseHolder(who.from)
	if errors.Is(err, store.ErrNotFound) || (err == nil && holder != machine) {
		return &refusedEnrolment{machine, fmt.Sprintf("its address %s is not leased to the machine", who.from)}
	}
	return err
}

// canonicalMACs checks MAC addresses from outside and writes them in lower case with colons.
func canonicalMACs(macs []string) ([]string, error) {
	if len(macs) == 0 || len(macs) > maxMACs {
		return nil, fmt.Errorf("%d MAC addresses: want 1 to %d", len(macs), maxMACs)
	}
	var all []string
	for _, text := range macs {
		mac, err := net.ParseMAC(text)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return nil, fmt.Errorf("%q: want a unicast MAC address such as 52:54:00:12:34:56", clip(text))
		}
		if s := mac.String(); !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all, nil
}
