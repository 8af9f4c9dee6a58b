package scale

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

// machinesVariable tells the first coordinator's process how many machines its rack has when it begins.
const machinesVariable = "BLOOMERY_SCALE_MACHINES"

// agentsFile is where that process leaves the agents' keys and certificates.
func agentsFile(data string) string { return filepath.Join(data, "agents.json") }

// identity is an enrolled agent.
type identity struct {
	Machine, BootID string
	Key             []byte
	Certificates    [][]byte
}

// atOnce is how many machines one transaction records: some 6 KB each, of the megabyte that it may have.
const atOnce = 25

// populate makes a rack's database with machines that have each been inspected before and whose agents are in the middle of a job.
func populate(config *coordinator.Config, machines int) (err error) {
	database := filepath.Join(config.Data, "dqlite")
	if _, err := os.Stat(database); err == nil {
		return nil // it starts again
	}
	authority, err := pki.LoadAuthority(config.PKI)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	db, err := store.Open(ctx, store.Options{Dir: database, SecretFile: filepath.Join(config.Data, "secret.key"), Logger: quiet()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var agents []identity
	for first := 0; first < machines; first += atOnce {
		var some []identity
		if err := db.Update(ctx, func(tx *store.Tx) error {
			some = nil
			for i := first; i < min(first+atOnce, machines); i++ {
				who, err := enrolled(tx, authority, i)
				if err != nil {
					return fmt.Errorf("machine %d: %w", i, err)
				}
				some = append(some, who)
			}
			return nil
		}); err != nil {
			return err
		}
		agents = append(agents, some...)
	}
	data, err := json.Marshal(agents)
	if err != nil {
		return err
	}
	return os.WriteFile(agentsFile(config.Data), data, 0o600)
}

// enrolled records a machine with a job whose first step its agent runs.
func enrolled(tx *store.Tx, authority *pki.Authority, i int) (identity, error) {
	who := identity{Machine: fmt.Sprintf("m%04d", i), BootID: fmt.Sprintf("%032x", i+1)}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return who, err
	}
	if who.Key, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		return who, err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return who, err
	}
	csr, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return who, err
	}
	if who.Certificates, _, err = authority.SignAgent(csr, who.Machine, tx.Now()); err != nil {
		return who, err
	}
	inventory, err := structpb.NewStruct(inventoryOf(i))
	if err != nil {
		return who, err
	}
	job := "job-" + who.Machine
	if err := tx.CreateMachine(&bloomeryv1.Machine{
		Name: who.Machine, Uuid: fmt.Sprintf("11111111-2222-3333-4444-%012x", i), Macs: []string{fmt.Sprintf("52:54:00:00:%02x:%02x", i>>8, i&255)},
		Status: bloomeryv1.MachineStatus_MACHINE_STATUS_CHECKING, JobId: job, Inventory: inventory,
		Bmc: &bloomeryv1.BMC{Address: "127.255.255.1:9", Username: "admin"}, SwitchPort: &bloomeryv1.SwitchPort{Switch: "tor1", Port: fmt.Sprintf("Ethernet%d", i)},
		Labels: map[string]string{"room": "a1", "rack": fmt.Sprint(i / 40)},
	}, "a password"); err != nil {
		return who, err
	}
	now := timestamppb.New(tx.Now())
	if err := tx.CreateJob(&store.Job{BootRound: 1, Job: &bloomeryv1.Job{
		Id: job, Machine: who.Machine, Kind: bloomeryv1.JobKind_JOB_KIND_INSPECT, Status: bloomeryv1.JobStatus_JOB_STATUS_RUNNING, CreatedAt: now, CreatedBy: "anna",
		Steps: []*bloomeryv1.Step{
			{Id: stepOf(who.Machine), Status: bloomeryv1.StepStatus_STEP_STATUS_RUNNING, StartedAt: now, Attempts: 1, Spec: &bloomeryv1.Step_CheckDisks{CheckDisks: &bloomeryv1.CheckDisksStep{}}},
			{Id: "then-" + who.Machine, Index: 1, Status: bloomeryv1.StepStatus_STEP_STATUS_PENDING,
				Spec: &bloomeryv1.Step_AwaitSystem{AwaitSystem: &bloomeryv1.AwaitSystemStep{Evidence: bloomeryv1.Evidence_EVIDENCE_PHONE_HOME, TimeoutSeconds: 3600}}},
		},
	}}); err != nil {
		return who, err
	}
	j, err := tx.Job(job)
	if err != nil {
		return who, err
	}
	j.StepBoots[0] = who.BootID
	if err := tx.SaveJob(j); err != nil {
		return who, err
	}
	hash := sha256.Sum256(who.Certificates[0])
	return who, tx.SaveBoot(&store.Boot{Machine: who.Machine, JobID: job, Round: 1, Created: tx.Now(), Enrolled: tx.Now(), Heard: tx.Now(), BootID: who.BootID,
		KeyHash: hash[:], CertificateHash: hash[:], Authority: authority.AgentsOf(who.Certificates[1])})
}

func stepOf(machine string) string { return "step-" + machine }

// inventoryOf is as large as a server's with two processors, sixteen memory modules and ten disks: about 4 KB.
func inventoryOf(i int) map[string]any {
	var modules, disks []any
	for n := range 16 {
		modules = append(modules, map[string]any{"slot": fmt.Sprintf("DIMM_%c%d", 'A'+n/8, n%8), "size_bytes": 32 << 30, "speed_mts": 3200, "serial": fmt.Sprintf("%08X", i*100+n), "maker": "Samsung"})
	}
	for n := range 10 {
		disks = append(disks, map[string]any{"name": fmt.Sprintf("nvme%dn1", n), "serial": fmt.Sprintf("S%06d%02d", i, n), "size_bytes": 4 << 40, "model": "SAMSUNG MZQL23T8HCLS", "wwn": fmt.Sprintf("eui.%016x", i*100+n)})
	}
	return map[string]any{"product": map[string]any{"vendor": "Supermicro", "name": "SYS-1029", "serial": fmt.Sprintf("SN%08d", i)}, "memory": modules, "disks": disks,
		"bios": map[string]any{"vendor": "American Megatrends", "version": "3.4", "date": strings.Repeat("0", 10)}}
}
