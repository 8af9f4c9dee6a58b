package wipe

import (
	"errors"
	"time"
)

// ErrKeepsData is wrapped when a disk still gives data after everything was tried, or does not keep what is written to it.
var ErrKeepsData = errors.New("disk still holds data after the wipe")

// Level is how much has to be gone.
type Level string

// The levels. Each ends with zeros where tables, superblocks and labels lie.
const (
	// Signatures is for a disk that is known to be wiped and carried nobody's data since: it is discarded where it can be, and only the places of
	// metadata are overwritten and read back.
	Signatures Level = "signatures"
	// Quick is for a disk of unknown history: discarded, or every byte zeroed where it cannot be or gives data after it.
	Quick Level = "quick"
	// Erase is for a disk that carried a customer's data: the drive's own erasure, or every byte overwritten.
	Erase Level = "erase"
)

// Method is the means by which the data went.
type Method string

// The methods, as certificates name them.
const (
	MethodSignatures     Method = "signatures"
	MethodDiscard        Method = "discard"
	MethodZero           Method = "zero"
	MethodOverwrite      Method = "overwrite"
	MethodSanitizeBlock  Method = "nvme-sanitize-block-erase"
	MethodSanitizeCrypto Method = "nvme-sanitize-crypto-erase"
	MethodFormatCrypto   Method = "nvme-format-crypto-erase"
	MethodFormatErase    Method = "nvme-format-user-data-erase"
	MethodATAEnhanced    Method = "ata-security-erase-enhanced"
	MethodATAErase       Method = "ata-security-erase"
	MethodSecureDiscard  Method = "mmc-secure-discard"
)

// Sanitization is what a wipe amounts to in the words of NIST SP 800-88.
type Sanitization string

// A purge withstands a laboratory, a clear whoever uses the disk's ordinary interface; none says that data may be left.
const (
	None  Sanitization = "none"
	Clear Sanitization = "clear"
	Purge Sanitization = "purge"
)

// Result says what a wipe did.
type Result struct {
	Level        Level        `json:"level"`
	Method       Method       `json:"method"`
	Sanitization Sanitization `json:"sanitization"`
	// PassedOver are the methods that were not used or did not do, in the order of preference, with the reasons.
	PassedOver []PassedOver `json:"passed_over,omitempty"`
	// Commands are what was sent to the disk, in order.
	Commands []string `json:"commands"`
	// Bytes is the size of the disk, Overwritten how many of them were written by this machine.
	Bytes        int64        `json:"bytes"`
	Overwritten  int64        `json:"overwritten"`
	Verification Verification `json:"verification"`
	Started      time.Time    `json:"started"`
	Ended        time.Time    `json:"ended"`
}

// PassedOver is a method that was not used, or was and did not do.
type PassedOver struct {
	Method Method `json:"method"`
	Reason string `json:"reason"`
}

// Verification says how the disk was looked at afterwards.
type Verification struct {
	// Seed draws the places that were looked at and the pattern that was written there before: hex, so that it can be done again.
	Seed string `json:"seed"`
	// Markers were written before the wipe, and not one found after it; Samples are the stretches in which old data was looked for.
	Markers int `json:"markers"`
	Samples int `json:"samples"`
	// Bytes were read back after the wipe, MetadataPlaces of them found zero.
	Bytes          int64 `json:"bytes"`
	MetadataPlaces int   `json:"metadata_places"`
}

// Progress tells how far a wipe is: done of total, and what is being done. They count the bytes that are overwritten, by the drive or by this
// machine, and read back. Total changes when a method did not do and another one is begun.
type Progress func(done, total int64, message string)
