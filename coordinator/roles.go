package coordinator

import (
	"fmt"
	"slices"
	"strings"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/internal/pki"
)

// roleSet is a set of operators' roles.
type roleSet uint8

const (
	viewer roleSet = 1 << iota
	operating
	hardware
	networking
	admin

	everyone = viewer | operating | hardware | networking | admin
	// hands are those who may touch a machine.
	hands = operating | hardware | admin
)

func setOf(r bloomeryv1.Role) roleSet {
	switch r {
	case bloomeryv1.Role_ROLE_VIEWER:
		return viewer
	case bloomeryv1.Role_ROLE_OPERATOR:
		return operating
	case bloomeryv1.Role_ROLE_HARDWARE:
		return hardware
	case bloomeryv1.Role_ROLE_NETWORK:
		return networking
	case bloomeryv1.Role_ROLE_ADMIN:
		return admin
	}
	return 0
}

// conduct is what is special about a call.
type conduct uint8

const (
	// changes: every call is an audit event with who, from where, what, before and after.
	changes conduct = 1 << iota
	// acts: it does something outside of the database, so its audit event is stored before it begins.
	acts
	// byCertificate: a bearer token does not open it, so that a stolen one cannot make itself permanent.
	byCertificate
	// offline: an operator's certificate of the rack's CA is enough while the database cannot be read.
	offline
)

// permission says who may make a call.
type permission struct {
	procedure string
	// peer is whose certificate the call needs; RoleNone is anyone, and the call decides for itself.
	peer pki.Role
	// roles are those of operators and tokens, when peer is RoleOperator.
	roles   roleSet
	conduct conduct
}

// permissions is the table of who may call what. A procedure that is not in it is for nobody.
func permissions() []permission {
	operator := pki.RoleOperator
	return []permission{
		{bloomeryv1connect.MachineServiceListMachinesProcedure, operator, everyone, 0},
		{bloomeryv1connect.MachineServiceGetMachineProcedure, operator, everyone, 0},
		{bloomeryv1connect.MachineServiceWatchMachinesProcedure, operator, everyone, 0},
		{bloomeryv1connect.MachineServiceListInventoriesProcedure, operator, everyone, 0},
		{bloomeryv1connect.MachineServiceDiffInventoryProcedure, operator, everyone, 0},
		{bloomeryv1connect.MachineServiceListWipeCertificatesProcedure, operator, everyone, 0},
		{bloomeryv1connect.MachineServiceListViewsProcedure, operator, everyone, 0},
		{bloomeryv1connect.MachineServiceCreateMachineProcedure, operator, hardware | admin, changes},
		// Role network may change the switch port only.
		{bloomeryv1connect.MachineServiceUpdateMachineProcedure, operator, hardware | networking | admin, changes},
		{bloomeryv1connect.MachineServiceDeleteMachineProcedure, operator, hardware | admin, changes},
		{bloomeryv1connect.MachineServiceInspectMachineProcedure, operator, hands, changes},
		{bloomeryv1connect.MachineServiceInstallMachineProcedure, operator, operating | admin, changes},
		{bloomeryv1connect.MachineServicePlanInstallProcedure, operator, operating | admin, 0},
		{bloomeryv1connect.MachineServiceReleaseMachineProcedure, operator, operating | admin, changes},
		{bloomeryv1connect.MachineServicePowerMachineProcedure, operator, hands, changes | acts},
		{bloomeryv1connect.MachineServiceLockMachineProcedure, operator, hands | networking, changes},
		{bloomeryv1connect.MachineServiceUnlockMachineProcedure, operator, hands | networking, changes},
		{bloomeryv1connect.MachineServiceSaveViewProcedure, operator, hands | networking, changes},
		{bloomeryv1connect.MachineServiceDeleteViewProcedure, operator, hands | networking, changes},

		{bloomeryv1connect.JobServiceListJobsProcedure, operator, everyone, 0},
		{bloomeryv1connect.JobServiceGetJobProcedure, operator, everyone, 0},
		{bloomeryv1connect.JobServiceWatchJobProcedure, operator, everyone, 0},
		{bloomeryv1connect.JobServiceGetJobPlanProcedure, operator, everyone, 0},
		{bloomeryv1connect.JobServiceCancelJobProcedure, operator, hands, changes},

		{bloomeryv1connect.EventServiceListEventsProcedure, operator, everyone, 0},
		{bloomeryv1connect.EventServiceWatchEventsProcedure, operator, everyone, 0},
		{bloomeryv1connect.EventServiceListEventTypesProcedure, operator, everyone, 0},
		{bloomeryv1connect.EventServiceVerifyArchiveProcedure, operator, everyone, 0},

		{bloomeryv1connect.ImageServiceListImagesProcedure, operator, everyone, 0},
		{bloomeryv1connect.ImageServiceGetImageProcedure, operator, everyone, 0},
		{bloomeryv1connect.ImageServiceVerifyImageProcedure, operator, everyone, 0},
		{bloomeryv1connect.ImageServiceAddImageProcedure, operator, operating | admin, changes},
		{bloomeryv1connect.ImageServiceGetImageUploadProcedure, operator, operating | admin, 0},
		{bloomeryv1connect.ImageServiceRemoveImageProcedure, operator, operating | admin, changes},
		{bloomeryv1connect.ImageServiceListImageKeysProcedure, operator, everyone, 0},
		{bloomeryv1connect.ImageServiceAddImageKeyProcedure, operator, admin, changes | byCertificate},
		{bloomeryv1connect.ImageServiceRevokeImageKeyProcedure, operator, admin, changes | byCertificate},

		{bloomeryv1connect.WebhookServiceListWebhooksProcedure, operator, everyone, 0},
		{bloomeryv1connect.WebhookServiceListDeadLettersProcedure, operator, everyone, 0},
		{bloomeryv1connect.WebhookServiceAddWebhookProcedure, operator, admin, changes},
		{bloomeryv1connect.WebhookServiceTestWebhookProcedure, operator, admin, changes},
		{bloomeryv1connect.WebhookServiceRemoveWebhookProcedure, operator, admin, changes},
		{bloomeryv1connect.WebhookServiceRetryDeadLettersProcedure, operator, admin, changes},

		{bloomeryv1connect.AccessServiceWhoAmIProcedure, operator, everyone, 0},
		{bloomeryv1connect.AccessServiceListOperatorsProcedure, operator, everyone, 0},
		{bloomeryv1connect.AccessServiceListTokensProcedure, operator, everyone, 0},
		{bloomeryv1connect.AccessServiceRenewCertificateProcedure, operator, everyone, changes | byCertificate},
		{bloomeryv1connect.AccessServiceAddOperatorProcedure, operator, admin, changes | byCertificate},
		{bloomeryv1connect.AccessServiceRevokeOperatorProcedure, operator, admin, changes | byCertificate},
		{bloomeryv1connect.AccessServiceAddTokenProcedure, operator, admin, changes | byCertificate},
		{bloomeryv1connect.AccessServiceRevokeTokenProcedure, operator, admin, changes | byCertificate},

		{bloomeryv1connect.RackServiceGetRackStatusProcedure, operator, everyone, offline},
		{bloomeryv1connect.RackServiceGetAuthoritiesProcedure, operator, everyone, 0},
		{bloomeryv1connect.RackServiceCreateJoinTokenProcedure, operator, admin, changes | byCertificate},
		{bloomeryv1connect.RackServiceRemoveNodeProcedure, operator, admin, changes | byCertificate},
		{bloomeryv1connect.RackServiceRotateCAProcedure, operator, admin, changes | byCertificate},
		// It reads every secret of the rack.
		{bloomeryv1connect.RackServiceBackupRackProcedure, operator, admin, changes | acts | byCertificate},
		// A token that CreateJoinToken made.
		{bloomeryv1connect.RackServiceJoinRackProcedure, pki.RoleNone, 0, 0},

		// A machine that is expected to boot.
		{bloomeryv1connect.AgentServiceEnrolProcedure, pki.RoleNone, 0, 0},
		{bloomeryv1connect.AgentServiceNextStepProcedure, pki.RoleAgent, 0, 0},
		{bloomeryv1connect.AgentServiceReportProcedure, pki.RoleAgent, 0, 0},

		{bloomeryv1connect.NodeServiceWatchHintsProcedure, pki.RoleNode, 0, 0},
		{bloomeryv1connect.NodeServiceGetNodeStatusProcedure, pki.RoleNode, 0, 0},
		{bloomeryv1connect.NodeServiceStoreReportsProcedure, pki.RoleNode, 0, 0},
		{bloomeryv1connect.NodeServiceVerifyImageCopyProcedure, pki.RoleNode, 0, 0},
	}
}

func (p permission) is(c conduct) bool { return p.conduct&c != 0 }

// narrow refuses what a role may do with some messages of a call only.
func narrow(role bloomeryv1.Role, message any) error {
	update, ok := message.(*bloomeryv1.UpdateMachineRequest)
	if !ok || role != bloomeryv1.Role_ROLE_NETWORK {
		return nil
	}
	for _, path := range update.GetUpdateMask().GetPaths() {
		if path != "switch_port" && !strings.HasPrefix(path, "switch_port.") {
			return fmt.Errorf("role network may change switch_port of a machine, not %s", clip(path))
		}
	}
	if len(update.GetUpdateMask().GetPaths()) == 0 {
		return fmt.Errorf("role network may change switch_port of a machine: name it in update_mask")
	}
	return nil
}

// changesWith says whether a message of a call that can change something does.
func changesWith(message any) bool {
	power, ok := message.(*bloomeryv1.PowerMachineRequest)
	return !ok || power.GetOperation() != bloomeryv1.PowerOperation_POWER_OPERATION_STATUS
}

func roleName(r bloomeryv1.Role) string {
	return strings.ToLower(strings.TrimPrefix(r.String(), "ROLE_"))
}

// roles are all that an operator can have, in the order of the tables.
func roles() []bloomeryv1.Role {
	return []bloomeryv1.Role{bloomeryv1.Role_ROLE_VIEWER, bloomeryv1.Role_ROLE_OPERATOR, bloomeryv1.Role_ROLE_HARDWARE, bloomeryv1.Role_ROLE_NETWORK, bloomeryv1.Role_ROLE_ADMIN}
}

// RolesTable renders the table of docs/security.md from the permissions.
func RolesTable() string {
	var b strings.Builder
	b.WriteString("| call | viewer | operator | hardware | network | admin | notes |\n| --- | --- | --- | --- | --- | --- | --- |\n")
	for _, p := range permissions() {
		fmt.Fprintf(&b, "| %s |", shortProcedure(p.procedure))
		for _, r := range roles() {
			if p.peer == pki.RoleOperator && p.roles&setOf(r) != 0 {
				b.WriteString(" x |")
			} else {
				b.WriteString(" |")
			}
		}
		if notes := p.notes(); len(notes) > 0 {
			b.WriteString(" " + strings.Join(notes, "; "))
		}
		b.WriteString(" |\n")
	}
	return b.String()
}

func (p permission) notes() []string {
	var notes []string
	switch p.peer {
	case pki.RoleNone:
		notes = append(notes, "no certificate needed: it has its own rules")
	case pki.RoleAgent:
		notes = append(notes, "agents, for their own machine")
	case pki.RoleNode:
		notes = append(notes, "coordinators")
	}
	for _, n := range []struct {
		conduct conduct
		text    string
	}{{changes, "audited"}, {byCertificate, "not by token"}, {offline, "works without a majority"}} {
		if p.is(n.conduct) {
			notes = append(notes, n.text)
		}
	}
	if p.procedure == bloomeryv1connect.MachineServiceUpdateMachineProcedure {
		notes = append(notes, "network: `switch_port` only")
	}
	return notes
}

// shortProcedure is MachineService/LockMachine.
func shortProcedure(procedure string) string {
	return strings.TrimPrefix(strings.TrimPrefix(procedure, "/"), "bloomery.v1.")
}

// checkRole validates an operator's or a token's role and teams.
func checkRole(prefix string, role bloomeryv1.Role, teams []string) error {
	if !slices.Contains(roles(), role) {
		return invalid(prefix+".role", "ROLE_INVALID", "want viewer, operator, hardware, network or admin")
	}
	if len(teams) > maxTeams {
		return invalid(prefix+".teams", "TOO_MANY", "%d teams are more than %d", len(teams), maxTeams)
	}
	for i, team := range teams {
		if err := pki.ValidName(team); err != nil {
			return invalid(prefix+".teams", "TEAM_INVALID", "%v", err)
		}
		if slices.Contains(teams[:i], team) {
			return invalid(prefix+".teams", "TEAM_TWICE", "team %s is named twice", team)
		}
	}
	return nil
}
