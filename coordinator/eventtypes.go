package coordinator

import (
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/types/known/structpb"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// Kinds of an event's fields, as JSON knows them.
const (
	kindString = "string"
	kindNumber = "number"
	kindBool   = "bool"
	kindObject = "object"
	kindList   = "list"
)

// EventType says what events of a type mean and which fields their data may have; a field may be missing, none may come besides.
type EventType struct {
	Type string
	// Severity is the usual one.
	Severity    bloomeryv1.Severity
	Description string
	Fields      []EventField
	// Open says that the data may have other fields too.
	Open bool
}

// EventField is one field of an event's data.
type EventField struct{ Name, Kind, Description string }

// EventTypes is the table of everything that the coordinator records, sorted by type. Docs and schema are generated from it;
// an event that is not in it fails the tests.
func EventTypes() []EventType {
	const (
		info     = bloomeryv1.Severity_SEVERITY_INFO
		warning  = bloomeryv1.Severity_SEVERITY_WARNING
		failure  = bloomeryv1.Severity_SEVERITY_ERROR
		security = bloomeryv1.Severity_SEVERITY_SECURITY
	)
	step := EventField{"step", kindString, "the step's kind, for example write-image"}
	reason := EventField{"reason", kindString, "stable word for why, empty if it went well"}
	hook := EventField{"webhook", kindString, "the webhook's name"}
	from := EventField{"from", kindString, "address of the caller"}
	refused := []EventField{from, {"role", kindString, "role of the caller's certificate; none without one"}, {"name", kindString, "name in the caller's certificate"}}
	boot := func(more ...EventField) []EventField {
		return append([]EventField{{"server", kindString, "dhcp, tftp or http"}, {"reason", kindString, "why, in words"}}, more...)
	}
	copied := []EventField{{"image", kindString, "its name"}, {"node", kindString, "the coordinator"}}
	mac := EventField{"mac", kindString, "MAC address that asked"}
	return []EventType{
		{Type: "access.node_renewed", Severity: info, Description: "A coordinator renewed its own certificate.", Fields: []EventField{
			{"node", kindString, "its name"}, {"authority", kindString, "fingerprint of the CA that signed it"}}},
		{Type: "access.operator_imported", Severity: warning, Description: "An operator was put on record as an administrator because their certificate lies in the PKI folder and the rack had no administrator.", Fields: []EventField{
			{"operator", kindString, "the operator's name"}}},
		{Type: "agent.enrolled", Severity: info, Description: "An agent got its certificate for this boot.", Fields: []EventField{
			from, {"boot_id", kindString, "the boot"}, {"agent_version", kindString, "version of the agent"}, {"seconds", kindNumber, "from power-on to here"}}},
		{Type: "agent.log", Severity: info, Open: true, Description: "An agent's own words; the data is the agent's, at most 4 KiB.", Fields: []EventField{
			{"dropped_bytes", kindNumber, "size of data that was too large and is not here"}}},
		{Type: "agent.phase", Severity: info, Description: "A phase of the agent's boot sequence ended.", Fields: []EventField{
			{"phase", kindString, "name of the phase"}, {"ok", kindBool, "whether it succeeded"}, {"seconds", kindNumber, "how long it took"}}},
		{Type: "archive.corrupt", Severity: failure, Description: "A file of a coordinator's event archive could not be read; it is made or fetched again.", Fields: []EventField{
			{"node", kindString, "the coordinator"}, {"file", kindString, "the file's name"}, {"first", kindNumber, "its first event"}, {"last", kindNumber, "its last event"}}},
		{Type: "archive.dropped", Severity: info, Description: "Archived events were dropped because of their age.", Fields: []EventField{{"last", kindNumber, "the last one that was dropped"}}},
		{Type: "audit.call", Severity: info, Description: "A call that changes something was made: actor and source are who and from where.", Fields: []EventField{
			{"procedure", kindString, "service and method"}, {"request", kindObject, "what was asked, without secrets"},
			{"changes", kindList, "each with record, before and after: the fields that differ, without secrets"}, {"more_changes", kindNumber, "how many changes are not listed"}}},
		{Type: "boot.expected", Severity: info, Description: "A machine may boot the agent from now on."},
		{Type: "check.verdict", Severity: info, Description: "A check of a machine's hardware gave its verdict: pass is information, warn a warning, fail an error. The measurements are in the step's result.", Fields: []EventField{
			step, {"verdict", kindString, "pass, warn, fail or skipped"}, {"results", kindNumber, "components that were checked"}, {"failed", kindNumber, "of these, how many failed"}}},
		{Type: "disk.wipe_uncertified", Severity: failure, Description: "A disk was wiped, or was to be, and what the agent says of it makes no certificate.", Fields: []EventField{
			{"serial", kindString, "the disk's serial number"}, {"wwn", kindString, "its world wide name"}}},
		{Type: "disk.wiped", Severity: info, Description: "A disk was wiped, or could not be, and the certificate is stored.", Fields: []EventField{
			{"serial", kindString, "the disk's serial number"}, {"wwn", kindString, "its world wide name"}, {"level", kindString, "signatures, quick or erase"}, {"method", kindString, "how the data went"},
			{"sanitization", kindString, "none, clear or purge, as NIST SP 800-88 has them"}, {"successful", kindBool, "whether the wipe ended as it should"},
			{"certificate_sha256", kindString, "digest of the signed certificate"}}},
		{Type: "image.added", Severity: info, Description: "An image was added to the store.", Fields: []EventField{{"image", kindString, "its name"}}},
		{Type: "image.copied", Severity: info, Description: "A coordinator has copied an image from another one.", Fields: append(copied,
			EventField{"bytes", kindNumber, "its compressed size"}, EventField{"seconds", kindNumber, "how long it took"})},
		{Type: "image.copy_failed", Severity: warning, Description: "A coordinator could not get its copy of an image and tries on; told once for each reason.", Fields: append(copied,
			EventField{"reason", kindString, "NO_COPY, DISK_FULL, IMAGE_CORRUPT, KEY_REVOKED or FETCH_FAILED"})},
		{Type: "image.key_added", Severity: warning, Description: "The rack trusts images that another key has signed; at a rack's first start by the coordinator, from its PKI folder.", Fields: []EventField{{"key", kindString, "minisign's id of the key"}}},
		{Type: "image.key_revoked", Severity: warning, Description: "What a key has signed is not installed any more.", Fields: []EventField{{"key", kindString, "minisign's id of the key"}}},
		{Type: "image.removed", Severity: info, Description: "An image was removed from the store.", Fields: []EventField{{"image", kindString, "its name"}}},
		{Type: "image.spoilt", Severity: failure, Description: "A coordinator's copy of an image is not what was signed; it is fetched again.", Fields: copied},
		{Type: "job.cancel_requested", Severity: info, Description: "Somebody asked to cancel a job."},
		{Type: "job.cancelled", Severity: warning, Description: "A job was cancelled; its machine was switched off.", Fields: []EventField{reason}},
		{Type: "job.created", Severity: info, Description: "A job was asked for and its steps are stored.", Fields: []EventField{
			{"kind", kindString, "inspection, install or release"}, {"steps", kindNumber, "how many steps it has"}}},
		{Type: "job.done", Severity: info, Description: "A job did all that it was asked for.", Fields: []EventField{reason}},
		{Type: "job.failed", Severity: failure, Description: "A job failed; its machine was switched off.", Fields: []EventField{reason}},
		{Type: "machine.created", Severity: info, Description: "A machine was recorded."},
		{Type: "machine.deleted", Severity: info, Description: "A machine was taken off the record; a warning when one of its disks may still hold a customer's data."},
		{Type: "machine.hardware_changed", Severity: info, Description: "A machine is made of other parts than when it was looked at last; a warning when one is missing or was replaced.", Fields: []EventField{
			{"changes", kindList, "the first ten, in words; \"bloomery machine diff\" shows all"}}},
		{Type: "machine.locked", Severity: info, Description: "A team locked a machine: it takes no job."},
		{Type: "machine.reboot", Severity: warning, Description: "A machine whose agent was lost is booted into the agent again.", Fields: []EventField{
			{"boot", kindNumber, "how often the job has powered the machine into the agent"}}},
		{Type: "machine.status", Severity: info, Description: "A machine's status changed.", Fields: []EventField{
			{"from", kindString, "status before"}, {"to", kindString, "status now"}, {"event", kindString, "what moved it, see lifecycle.md"}}},
		{Type: "machine.unlocked", Severity: info, Description: "A machine's lock was taken off."},
		{Type: "machine.updated", Severity: info, Description: "Somebody changed what is on record of a machine; the message names the fields."},
		{Type: "netboot.offered", Severity: info, Description: "A machine's firmware was offered an address and the agent.", Fields: boot(mac, EventField{"address", kindString, "the address"})},
		{Type: "netboot.refused", Severity: warning, Description: "A known machine's firmware asked to netboot and got no answer.", Fields: boot(mac)},
		{Type: "netboot.served", Severity: info, Description: "A machine fetched a boot file whole.", Fields: boot(
			EventField{"file", kindString, "its name"}, EventField{"bytes", kindNumber, "its size"}, EventField{"seconds", kindNumber, "how long it took"})},
		{Type: "node.joined", Severity: info, Description: "A coordinator was let into the rack.", Fields: []EventField{
			{"node", kindString, "its name"}, {"address", kindString, "where its database is reached"}}},
		{Type: "node.removed", Severity: warning, Description: "A coordinator was taken out of the rack.", Fields: []EventField{
			{"node", kindString, "its name"}, {"forced", kindBool, "whether it was to be done even if no majority is left"}}},
		{Type: "port.moved", Severity: info, Description: "A machine's switch port was moved to another network.", Fields: []EventField{
			{"from", kindString, "network before"}, {"to", kindString, "network now"}}},
		{Type: "port.not_moved", Severity: warning, Description: "An operator's move of a machine's switch port, to or from quarantine, failed; the message says why.", Fields: []EventField{{"to", kindString, "network that it should be in"}}},
		{Type: "power.error", Severity: warning, Description: "A machine could not be switched off after its job."},
		{Type: "power.off", Severity: info, Description: "A machine was switched off."},
		{Type: "power.on", Severity: info, Description: "A machine was switched on."},
		{Type: "power.reset", Severity: info, Description: "Somebody reset a machine."},
		{Type: "rack.backup", Severity: security, Description: "Somebody took a backup of the rack: whoever has it and its passphrase has the rack's keys."},
		{Type: "rack.restored", Severity: security, Description: "The rack was restored from a backup; what happened after that was made is forgotten.", Fields: []EventField{
			{"created", kindString, "when the backup was made, RFC 3339"}, {"node", kindString, "the coordinator that made it"},
			{"version", kindString, "version of its program"}, {"running_jobs", kindNumber, "jobs that ran then"}}},
		{Type: "security.archive_refused", Severity: security, Description: "A file of the event archive was asked for by somebody who is no coordinator.", Fields: refused},
		{Type: "security.boot_refused", Severity: security, Description: "A boot file was asked for from an address that may have none.", Fields: boot(from)},
		{Type: "security.call_refused", Severity: security, Description: "A call was made that the caller's certificate does not allow.", Fields: refused},
		{Type: "security.certificate_refused", Severity: security, Description: "A certificate claimed a role that it was not issued for.", Fields: refused},
		{Type: "security.enrolment_refused", Severity: security, Description: "Something that was not expected asked for an agent's certificate.", Fields: refused},
		{Type: "security.image_refused", Severity: security, Description: "An image was asked for by somebody who may not read it.", Fields: refused},
		{Type: "security.join_refused", Severity: security, Description: "Something without a valid token asked to become a coordinator.", Fields: refused},
		{Type: "security.phone_home_refused", Severity: security, Description: "A phone-home call came with a wrong token or from a wrong address.", Fields: refused},
		{Type: "security.report_refused", Severity: security, Description: "An agent reported on another machine's job.", Fields: refused},
		{Type: "step.begun", Severity: info, Description: "The agent says that it has begun a step.", Fields: []EventField{step}},
		{Type: "step.done", Severity: info, Description: "A step succeeded.", Fields: []EventField{step, {"seconds", kindNumber, "from its first start to its end"}, {"written_bytes", kindNumber, "bytes that write-image or unpack-image wrote"}}},
		{Type: "step.failed", Severity: failure, Description: "A step failed.", Fields: []EventField{step, reason, {"machine_faulty", kindBool, "whether it condemns the machine"}}},
		{Type: "step.progress", Severity: info, Description: "A step passed another tenth of its work.", Fields: []EventField{
			step, {"percent", kindNumber, "0 to 100"}, {"done_bytes", kindNumber, "bytes of its work that are done"}, {"total_bytes", kindNumber, "bytes of all its work"}, {"bytes_per_second", kindNumber, "its speed"}}},
		{Type: "step.stale_report", Severity: warning, Description: "A report on a step that does not run in this boot; it changed nothing."},
		{Type: "step.started", Severity: info, Description: "A step was given out, or the coordinator began it.", Fields: []EventField{step, {"attempt", kindNumber, "1 for the first time"}}},
		{Type: "system.phoned_home", Severity: info, Description: "The installed system reported that it runs.", Fields: []EventField{from}},
		{Type: "view.deleted", Severity: info, Description: "A view of machines was deleted.", Fields: []EventField{{"view", kindString, "its name"}}},
		{Type: "view.saved", Severity: info, Description: "A view of machines was saved.", Fields: []EventField{{"view", kindString, "its name"}}},
		{Type: "webhook.added", Severity: info, Description: "A webhook was added.", Fields: []EventField{hook}},
		{Type: "webhook.gave_up", Severity: failure, Description: "A webhook's first dead letter: an event could not be delivered. There is no other event until its list was emptied.", Fields: []EventField{
			hook, {"sequence", kindNumber, "the event's number"}, {"tries", kindNumber, "how often it was tried"}, {"status", kindNumber, "HTTP status of the last answer, 0 without one"}}},
		{Type: "webhook.removed", Severity: info, Description: "A webhook and its dead letters were removed.", Fields: []EventField{hook}},
		{Type: "webhook.retried", Severity: info, Description: "A webhook's dead letters are tried again.", Fields: []EventField{hook, {"letters", kindNumber, "how many"}}},
		{Type: "webhook.test", Severity: info, Description: "A webhook was tested: its receiver gets this event at once, and may get it again in its turn.", Fields: []EventField{hook}},
	}
}

// eventTypes is the table by type.
type eventTypes map[string]EventType

func newEventTypes() eventTypes {
	all := eventTypes{}
	for _, t := range EventTypes() {
		all[t.Type] = t
	}
	return all
}

// undeclared says what of an event is not in the table.
func (all eventTypes) undeclared(e *bloomeryv1.Event) error {
	t, ok := all[e.GetType()]
	if !ok {
		return fmt.Errorf("event type %q is not in EventTypes", e.GetType())
	}
	var wrong []error
	for name, value := range e.GetData().GetFields() {
		i := slices.IndexFunc(t.Fields, func(f EventField) bool { return f.Name == name })
		switch {
		case i < 0 && !t.Open:
			wrong = append(wrong, fmt.Errorf("event type %s has no field %q in EventTypes", t.Type, name))
		case i >= 0 && kindOf(value) != t.Fields[i].Kind:
			wrong = append(wrong, fmt.Errorf("event type %s: field %q is a %s, EventTypes says %s", t.Type, name, kindOf(value), t.Fields[i].Kind))
		}
	}
	return errors.Join(wrong...)
}

func kindOf(v *structpb.Value) string {
	switch v.GetKind().(type) {
	case *structpb.Value_StringValue:
		return kindString
	case *structpb.Value_NumberValue:
		return kindNumber
	case *structpb.Value_BoolValue:
		return kindBool
	case *structpb.Value_ListValue:
		return kindList
	case *structpb.Value_StructValue:
		return kindObject
	}
	return "null"
}
