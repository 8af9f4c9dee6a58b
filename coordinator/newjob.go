package coordinator

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/cloudinit"
	"bloomery/coordinator/store"
	"bloomery/images"
	"bloomery/partition/layout"
)

const maxRequestID = 128

// InspectMachine implements bloomery.v1.MachineService.
func (c *Coordinator) InspectMachine(ctx context.Context, r *connect.Request[bloomeryv1.InspectMachineRequest]) (*connect.Response[bloomeryv1.InspectMachineResponse], error) {
	j, err := c.startJob(ctx, r.Msg.GetName(), r.Msg.GetRequestId(), Request{Kind: bloomeryv1.JobKind_JOB_KIND_INSPECT})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.InspectMachineResponse{Job: j}), nil
}

// InstallMachine implements bloomery.v1.MachineService.
func (c *Coordinator) InstallMachine(ctx context.Context, r *connect.Request[bloomeryv1.InstallMachineRequest]) (*connect.Response[bloomeryv1.InstallMachineResponse], error) {
	if err := c.soundImage(ctx, r.Msg.GetSpec().GetImage()); err != nil {
		return nil, err
	}
	j, err := c.startJob(ctx, r.Msg.GetName(), r.Msg.GetRequestId(), Request{Kind: bloomeryv1.JobKind_JOB_KIND_INSTALL, Install: r.Msg.GetSpec()})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.InstallMachineResponse{Job: j}), nil
}

// ReleaseMachine implements bloomery.v1.MachineService.
func (c *Coordinator) ReleaseMachine(ctx context.Context, r *connect.Request[bloomeryv1.ReleaseMachineRequest]) (*connect.Response[bloomeryv1.ReleaseMachineResponse], error) {
	j, err := c.startJob(ctx, r.Msg.GetName(), r.Msg.GetRequestId(), Request{Kind: bloomeryv1.JobKind_JOB_KIND_RELEASE})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.ReleaseMachineResponse{Job: j}), nil
}

// startJob checks a request, computes its steps once and stores the job. A request id that was used before returns its job.
func (c *Coordinator) startJob(ctx context.Context, name, requestID string, r Request) (*bloomeryv1.Job, error) {
	if len(requestID) > maxRequestID {
		return nil, invalid("request_id", "TOO_LONG", "%d bytes are more than %d", len(requestID), maxRequestID)
	}
	who := callerOf(ctx).Name
	var key string
	if requestID != "" {
		asks := who
		if callerOf(ctx).token != nil {
			asks = "token " + who // An operator may have the same name.
		}
		sum := sha256.Sum256([]byte(asks + "\x00" + name + "\x00" + r.Kind.String() + "\x00" + requestID))
		key = hex.EncodeToString(sum[:])
	}
	facts, err := c.facts(r)
	if err != nil {
		return nil, err
	}
	token, hash, err := newToken()
	if err != nil {
		return nil, err
	}
	var j *store.Job
	err = c.update(ctx, func(ch *change) error {
		if key != "" {
			if j, err = ch.JobByRequest(key); err == nil || !errors.Is(err, store.ErrNotFound) {
				return err
			}
		}
		m, err := ch.WithInventory(clip(name))
		if err != nil {
			return err
		}
		if err := mayStart(m, r.Kind); err != nil {
			return err
		}
		f := facts
		j = &store.Job{}
		if r.Kind == bloomeryv1.JobKind_JOB_KIND_INSTALL {
			if err := c.installFacts(ch, m, r.Install, token, &f); err != nil {
				return err
			}
			if len(f.PhoneHomeURLs) > 0 {
				j.TokenHash = hash
			}
			m.Address = ""
			if f.Address.IsValid() {
				m.Address = f.Address.String()
			}
		}
		if r.Kind == bloomeryv1.JobKind_JOB_KIND_INSTALL {
			if f.Wiped, err = wipedDisks(&ch.Reader, m); err != nil {
				return err
			}
			if f.Plan, err = planInstall(m, r.Install, f); err != nil {
				return err
			}
		}
		steps, err := Steps(m, r, f)
		if err != nil {
			return err
		}
		j.Job = &bloomeryv1.Job{Id: f.JobID, Machine: m.GetName(), Kind: r.Kind, Status: bloomeryv1.JobStatus_JOB_STATUS_RUNNING, Steps: steps, CreatedAt: timestamppb.New(ch.Now()), CreatedBy: who}
		m.JobId, m.FaultCode, m.FaultMessage = j.GetId(), "", ""
		if err := ch.move(m, startEvent(r.Kind), j.GetId()); err != nil {
			return err
		}
		if err := ch.saveMachine(m); err != nil {
			return err
		}
		if err := ch.CreateJob(j); err != nil {
			return err
		}
		if f.Plan != nil {
			if err := ch.createJobPlan(j.GetId(), f.Plan, r.Install); err != nil {
				return err
			}
		}
		if key != "" {
			if err := ch.SaveRequest(key, j.GetId()); err != nil {
				return err
			}
		}
		ch.topics["jobs"] = true
		return ch.note(&bloomeryv1.Event{Type: "job.created", Machine: m.GetName(), JobId: j.GetId(), Message: fmt.Sprintf("%s of machine %s was asked for by %s", kindName(r.Kind), m.GetName(), who)},
			map[string]any{"kind": kindName(r.Kind), "steps": len(steps)})
	})
	if err != nil {
		return nil, err
	}
	return redact(j.Job), nil
}

// createJobPlan stores the plan of a new job with what opens its volumes.
func (ch *change) createJobPlan(id string, plan *layout.Plan, spec *bloomeryv1.InstallSpec) error {
	encoded, err := plan.Encode()
	if err != nil {
		return fmt.Errorf("encode the plan: %w", err)
	}
	secrets, err := jobSecrets(plan, spec.GetSecrets())
	if err != nil {
		return err
	}
	return ch.CreateJobPlan(id, store.JobPlan{Plan: encoded, Secrets: secrets})
}

// mayStart says whether a machine can take a job of a kind now.
func mayStart(m *bloomeryv1.Machine, kind bloomeryv1.JobKind) error {
	if m.GetLock() != nil {
		return locked(m)
	}
	if m.GetJobId() != "" {
		return notNow("name", "MACHINE_BUSY", "job %s drives machine %s", m.GetJobId(), m.GetName())
	}
	if _, err := NextStatus(m.GetStatus(), startEvent(kind)); err != nil {
		hint := ""
		if m.GetStatus() == discovered && kind == bloomeryv1.JobKind_JOB_KIND_INSTALL {
			hint = ": inspect it first"
		}
		return notNow("name", "WRONG_STATUS", "machine %s is %s%s", m.GetName(), statusName(m.GetStatus()), hint)
	}
	return nil
}

func startEvent(kind bloomeryv1.JobKind) LifecycleEvent {
	switch kind {
	case bloomeryv1.JobKind_JOB_KIND_INSTALL:
		return InstallStarted
	case bloomeryv1.JobKind_JOB_KIND_RELEASE:
		return ReleaseStarted
	}
	return InspectStarted
}

// facts gathers what Steps needs from outside the store.
func (c *Coordinator) facts(r Request) (Facts, error) {
	id, err := randomHex(8)
	if err != nil {
		return Facts{}, err
	}
	f := Facts{JobID: id, Networks: c.config.Networks, AwaitTimeout: c.config.Timing.Await}
	if r.Kind != bloomeryv1.JobKind_JOB_KIND_INSTALL {
		return f, nil
	}
	entries, err := c.Images.List()
	if err != nil {
		c.Logger.Error("an image in the store is unsound", "error", err)
	}
	for _, e := range entries {
		boot := e.Manifest.Boot
		image := ImageFacts{
			Name: e.Manifest.Name, Kind: e.Manifest.Kind, SizeBytes: e.Manifest.Size, ManifestSHA256: e.Manifest.SHA256().String(),
			RootPartition: int32(boot.RootPartition), ESPPartition: int32(boot.ESPPartition), Description: e.Manifest.OS.PrettyName,
			Kernel: boot.Kernel, Initrd: boot.Initrd, CommandLine: boot.Cmdline, Kexec: boot.Kexec, RootStacks: boot.RootStacks,
		}
		switch boot.Seed {
		case images.SeedCIDATA:
			image.SeedLabel = cloudinit.LabelNoCloud
		case images.SeedConfigDrive:
			image.SeedLabel = cloudinit.LabelConfigDrive
		}
		f.Images = append(f.Images, image)
	}
	return f, nil
}

// installFacts gives the machine an address on the customer's network and the token's URLs. An unknown network is left to Steps to refuse.
func (c *Coordinator) installFacts(ch *change, m *bloomeryv1.Machine, spec *bloomeryv1.InstallSpec, token string, f *Facts) error {
	network, ok := c.config.network(spec.GetNetwork())
	if !ok {
		return nil
	}
	for _, base := range network.PhoneHome {
		f.PhoneHomeURLs = append(f.PhoneHomeURLs, base+token)
	}
	if !network.Range.First.IsValid() {
		return nil
	}
	if err := ch.ReleaseAddresses(m.GetName()); err != nil {
		return err
	}
	address, err := ch.AllocateAddress(network.Name, m.GetName(), network.Range.First, network.Range.Last)
	if err != nil {
		return fmt.Errorf("give machine %s an address on network %s: %w", m.GetName(), network.Name, err)
	}
	f.Address = netip.PrefixFrom(address, network.Prefix.Bits())
	return nil
}
