package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "bloomery/api/bloomery/v1"
	"bloomery/inventory"
)

// Reasons of failed steps: stable names that programs decide on.
const (
	reasonInternal       = "INTERNAL"
	reasonUnknownStep    = "STEP_UNKNOWN"
	reasonAgentImage     = "AGENT_IMAGE_CORRUPT"
	reasonInventory      = "INVENTORY_FAILED"
	reasonDiskRef        = "DISK_REF_EMPTY"
	reasonDiskNotFound   = "DISK_NOT_FOUND"
	reasonDiskMissing    = "DISK_MISSING"
	reasonDiskRefused    = "DISK_REFUSED"
	reasonDiskAmbiguous  = "DISK_AMBIGUOUS"
	reasonDiskTooSmall   = "DISK_TOO_SMALL"
	reasonDiskInUse      = "DISK_IN_USE"
	reasonDiskSector     = "DISK_SECTOR_SIZE"
	reasonDiskWrite      = "DISK_WRITE"
	reasonCheckFailed    = "CHECK_FAILED"
	reasonWipe           = "WIPE_FAILED"
	reasonImageNotFound  = "IMAGE_NOT_FOUND"
	reasonImageSignature = "IMAGE_SIGNATURE"
	reasonImageManifest  = "IMAGE_MANIFEST_CHANGED"
	reasonImageCorrupt   = "IMAGE_CORRUPT"
	reasonImageFetch     = "IMAGE_FETCH"
	reasonPartitionTable = "PARTITION_TABLE"
	reasonGrow           = "GROW_FAILED"
	reasonSeed           = "SEED_FAILED"
	reasonBootEntry      = "BOOT_ENTRY_FAILED"
	reasonNoPlan         = "PLAN_INVALID"
	reasonLayout         = "LAYOUT_FAILED"
	reasonUnpack         = "UNPACK_FAILED"
	reasonConfigure      = "CONFIGURE_FAILED"
)

// StepError is why a step failed.
type StepError struct {
	// Reason is a stable name in upper snake case.
	Reason string
	// Faulty says that the machine itself is to blame.
	Faulty bool
	Err    error
}

func (e *StepError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *StepError) Unwrap() error { return e.Err }

func failed(reason string, err error) error { return &StepError{Reason: reason, Err: err} }

func faulty(reason string, err error) error {
	return &StepError{Reason: reason, Faulty: true, Err: err}
}

// stepRun is one step that is being run.
type stepRun struct {
	agent *Agent
	jobID string
	step  *pb.Step
	// target is the job's plan, for a step that works on its filesystems.
	target *pb.LayoutTarget

	// kexec says, after a handover, that the installed kernel is loaded.
	kexec bool

	mu   sync.Mutex
	last time.Time
}

// do runs the step and gives its result, a value that marshals to a JSON object, also beside an error where there is something to tell.
func (s *stepRun) do(ctx context.Context) (any, error) {
	if touchesDisk(s.step) {
		// An image with pieces missing must not begin what it cannot end.
		if damage := s.agent.damage.Load(); damage != nil {
			return nil, failed(reasonAgentImage, *damage)
		}
	}
	switch spec := s.step.Spec.(type) {
	case *pb.Step_Inspect:
		return s.inspect(ctx)
	case *pb.Step_CheckDisks:
		return s.checkDisks(ctx)
	case *pb.Step_Wipe:
		return s.wipe(ctx, spec.Wipe)
	case *pb.Step_WriteImage:
		return s.writeImage(ctx, spec.WriteImage)
	case *pb.Step_GrowRoot:
		return s.growRoot(ctx, spec.GrowRoot)
	case *pb.Step_ApplyLayout:
		return s.applyLayout(ctx, spec.ApplyLayout)
	case *pb.Step_UnpackImage:
		return s.unpackImage(ctx, spec.UnpackImage)
	case *pb.Step_ConfigureSystem:
		return s.configureSystem(ctx, spec.ConfigureSystem)
	case *pb.Step_CloudInit:
		return s.cloudInit(ctx, spec.CloudInit)
	case *pb.Step_SeedPartition:
		return s.seedPartition(ctx, spec.SeedPartition)
	case *pb.Step_BootEntry:
		return s.bootEntry(ctx, spec.BootEntry)
	case *pb.Step_Handover:
		return s.handover(ctx, spec.Handover)
	}
	return nil, failed(reasonUnknownStep, fmt.Errorf("this agent knows no step of kind %s", stepKind(s.step)))
}

// touchesDisk tells whether a step changes what is on a disk.
func touchesDisk(step *pb.Step) bool {
	switch step.Spec.(type) {
	case *pb.Step_Wipe, *pb.Step_WriteImage, *pb.Step_GrowRoot, *pb.Step_ApplyLayout, *pb.Step_UnpackImage, *pb.Step_ConfigureSystem, *pb.Step_CloudInit,
		*pb.Step_SeedPartition:
		return true
	}
	return false
}

// stepKind names a step for people: write_image.
func stepKind(step *pb.Step) string {
	field := step.ProtoReflect().WhichOneof(step.ProtoReflect().Descriptor().Oneofs().ByName("spec"))
	if field == nil {
		return "unknown"
	}
	return string(field.Name())
}

// progress reports how far the step is, at most four times a second but always the last word. Without a percentage of its own it is that of the bytes.
func (s *stepRun) progress(p *pb.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.last) < reportEvery && p.DoneBytes < p.TotalBytes {
		return
	}
	s.last = time.Now()
	if p.Percent == 0 && p.TotalBytes > 0 {
		p.Percent = 100 * float64(p.DoneBytes) / float64(p.TotalBytes)
	}
	p.Message = plain(p.Message)
	s.agent.reporter.add(s.jobID, s.step.Id, &pb.Report{Body: &pb.Report_Progress{Progress: p}})
}

// disk finds the disk that the step means among those that are there at this moment. Names play no part: they move between boots.
func (s *stepRun) disk(ctx context.Context, ref *pb.DiskRef) (inventory.Disk, error) {
	if ref.GetSerial() == "" && ref.GetWwn() == "" {
		return inventory.Disk{}, failed(reasonDiskRef, errors.New("the step names no disk: want a serial or a WWN"))
	}
	inv, err := s.agent.collect(ctx)
	if err != nil {
		return inventory.Disk{}, failed(reasonInventory, fmt.Errorf("look for the disk: %w", err))
	}
	disk, err := inventory.FindDisk(inv.Disks, inventory.Selector{Serial: ref.GetSerial(), WWN: ref.GetWwn()})
	switch {
	case errors.Is(err, inventory.ErrNoDisk):
		return disk, failed(reasonDiskNotFound, err)
	case errors.Is(err, inventory.ErrAmbiguousDisk):
		return disk, failed(reasonDiskAmbiguous, err)
	case err != nil:
		return disk, failed(reasonDiskRef, err)
	}
	return disk, nil
}
