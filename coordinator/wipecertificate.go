package coordinator

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/partition/wipe"
	"bloomery/partition/wipe/certificate"
)

// maxWipeResult bounds what an agent says of a wipe, in bytes of JSON: a certificate holds it once more.
const maxWipeResult = 32 << 10

// wiped stores the certificate of a disk that was wiped, well or not. An agent whose report cannot be certified is not held up by that.
func (s *reportStore) wiped(e *bloomeryv1.Event, m *bloomeryv1.Machine, j *store.Job, step *bloomeryv1.Step, f *bloomeryv1.StepFinished) error {
	if f.GetResult() == nil {
		return nil // nothing was done to the disk
	}
	disk := step.GetWipe().GetDisk()
	told := &bloomeryv1.Event{Time: e.GetTime(), Machine: s.machine, JobId: j.GetId(), StepId: step.GetId()}
	c, document, err := s.certificateOf(m, j, step, f)
	if err != nil {
		told.Type, told.Severity = "disk.wipe_uncertified", bloomeryv1.Severity_SEVERITY_ERROR
		told.Message = clipTo(fmt.Sprintf("the wipe of disk %s of machine %s has no certificate: %v", diskNames([]*bloomeryv1.DiskRef{disk}), s.machine, err), maxText)
		return s.ch.note(told, map[string]any{"serial": clip(disk.GetSerial()), "wwn": clip(disk.GetWwn())})
	}
	if err := s.ch.AddWipe(store.Wipe{
		ID: c.ID, Machine: s.machine, Serial: disk.GetSerial(), WWN: disk.GetWwn(), Level: string(c.Wipe.Level), Sanitization: string(c.Wipe.Sanitization),
		Successful: c.Successful, Document: document,
	}); err != nil {
		return err
	}
	told.Type = "disk.wiped"
	told.Message = fmt.Sprintf("disk %s of machine %s was wiped by %s (%s)", diskNames([]*bloomeryv1.DiskRef{disk}), s.machine, c.Wipe.Method, c.Wipe.Sanitization)
	if !c.Successful {
		told.Severity = bloomeryv1.Severity_SEVERITY_ERROR
		told.Message = clipTo(fmt.Sprintf("disk %s of machine %s could not be wiped: %s", diskNames([]*bloomeryv1.DiskRef{disk}), s.machine, c.Error), maxText)
	}
	sum := sha256.Sum256(document)
	return s.ch.note(told, map[string]any{
		"serial": disk.GetSerial(), "wwn": disk.GetWwn(), "level": string(c.Wipe.Level), "method": string(c.Wipe.Method), "sanitization": string(c.Wipe.Sanitization),
		"successful": c.Successful, "certificate_sha256": hex.EncodeToString(sum[:]),
	})
}

// certificateOf binds what the agent says to what the coordinator knows: which machine, which disk, which job.
func (s *reportStore) certificateOf(m *bloomeryv1.Machine, j *store.Job, step *bloomeryv1.Step, f *bloomeryv1.StepFinished) (certificate.Certificate, []byte, error) {
	c := certificate.Certificate{
		Format: certificate.Format, ID: step.GetId(), Job: j.GetId(), Machine: certificate.Machine{Name: s.machine, UUID: m.GetUuid(), Serial: m.GetSerial()},
		Disk:       certificate.Disk{Serial: step.GetWipe().GetDisk().GetSerial(), WWN: step.GetWipe().GetDisk().GetWwn()},
		Successful: f.GetOk(), Issued: s.ch.Now().UTC(),
	}
	if !f.GetOk() {
		c.Error = clipTo(f.GetError(), maxText)
	}
	data, err := f.GetResult().MarshalJSON()
	if err != nil {
		return c, nil, err
	}
	if len(data) > maxWipeResult {
		return c, nil, fmt.Errorf("the agent's report has %d bytes, more than %d", len(data), maxWipeResult)
	}
	var said struct {
		wipe.Result
		Disk         certificate.Disk `json:"disk"`
		AgentVersion string           `json:"agent_version"`
	}
	if err := json.Unmarshal(data, &said); err != nil {
		return c, nil, fmt.Errorf("read the agent's report: %w", err)
	}
	if said.Started.IsZero() {
		return c, nil, fmt.Errorf("the agent's report does not say when it began")
	}
	c.Wipe, c.AgentVersion = said.Result, clip(said.AgentVersion)
	c.Disk.Vendor, c.Disk.Model, c.Disk.Firmware, c.Disk.Transport, c.Disk.SizeBytes =
		clip(said.Disk.Vendor), clip(said.Disk.Model), clip(said.Disk.Firmware), clip(said.Disk.Transport), said.Disk.SizeBytes
	document, err := s.certify(c)
	return c, document, err
}

// certify signs as this coordinator, whichever wrote the report down first.
func (c *Coordinator) certify(known certificate.Certificate) ([]byte, error) {
	known.Rack, known.Coordinator = c.Authority.Rack(), c.config.Node
	return certificate.Sign(known, c.Authority.Server())
}

// ListWipeCertificates implements bloomery.v1.MachineService.
func (c *Coordinator) ListWipeCertificates(ctx context.Context, r *connect.Request[bloomeryv1.ListWipeCertificatesRequest]) (*connect.Response[bloomeryv1.ListWipeCertificatesResponse], error) {
	size, err := pageSize(r.Msg.GetPageSize(), wipesPage)
	if err != nil {
		return nil, err
	}
	size = min(size, wipesPage)
	var before int64
	if token := r.Msg.GetPageToken(); token != "" {
		if before, err = strconv.ParseInt(token, 10, 64); err != nil || before <= 0 {
			return nil, invalid("page_token", "PAGE_TOKEN_INVALID", "want a token of an earlier answer")
		}
	}
	var wipes []store.Wipe
	err = c.Store.View(ctx, func(s *store.Reader) (err error) {
		if _, err := s.Machine(clip(r.Msg.GetName())); err != nil {
			return err
		}
		wipes, err = s.Wipes(r.Msg.GetName(), before, size+1)
		return err
	})
	if err != nil {
		return nil, err
	}
	response := &bloomeryv1.ListWipeCertificatesResponse{}
	for i, w := range wipes {
		if i == size {
			response.NextPageToken = strconv.FormatInt(wipes[size-1].Sequence, 10)
			break
		}
		var file struct {
			Certificate certificate.Certificate `json:"certificate"`
		}
		if err := json.Unmarshal(w.Document, &file); err != nil {
			return nil, fmt.Errorf("decode the certificate of wipe %s: %w", w.ID, err)
		}
		response.Certificates = append(response.Certificates, &bloomeryv1.WipeCertificate{
			Id: w.ID, Machine: w.Machine, Disk: &bloomeryv1.DiskRef{Serial: w.Serial, Wwn: w.WWN}, Level: w.Level, Method: string(file.Certificate.Wipe.Method),
			Sanitization: w.Sanitization, Successful: w.Successful, EndedAt: timestamppb.New(file.Certificate.Wipe.Ended), Document: string(w.Document),
		})
	}
	return connect.NewResponse(response), nil
}

// wipesPage is how many certificates one answer holds: each has a few KiB.
const wipesPage = 100
