package api

import (
	"strconv"

	"github.com/invarhq/invar/digest"
)

// Paths of what an auditor needs beside the tiles of the ledger.
const (
	PathEvidenceCheckpoint = "/v1/evidence/checkpoints/{size}"
	PathEvidenceBlob       = "/v1/evidence/blobs/{digest}"
	PathEvidenceImage      = "/v1/evidence/images/{digest}"
	PathEvidenceExports    = "/v1/evidence/exports"
)

// EvidenceCheckpointPath is where the oldest checkpoint of at least size entries is.
func EvidenceCheckpointPath(size int64) string {
	return fill(PathEvidenceCheckpoint, "{size}", strconv.FormatInt(size, 10))
}

// EvidencePath fills in one of the patterns that name content.
func EvidencePath(pattern string, d digest.Digest) string {
	return fill(pattern, "{digest}", string(d))
}

// Attachments lists what is attached to an image.
type Attachments struct {
	Attachments []Attachment `json:"attachments" doc:"In the order of their digests."`
}

// Attachment is content that is attached to an image.
type Attachment struct {
	Type    string        `json:"type" doc:"What it is: the artifact type."`
	Content digest.Digest `json:"content" doc:"Its content, to be read as a blob."`
}

// ExportRequest tells the server what was exported.
type ExportRequest struct {
	From     int64         `json:"from" minimum:"0" doc:"Index of the first entry."`
	To       int64         `json:"to" minimum:"0" doc:"Index after the last entry."`
	Env      string        `json:"env,omitempty" maxLength:"63" doc:"The environment that it is of; absent: all."`
	Size     int64         `json:"size" minimum:"1" doc:"Entries of the tree that went with it."`
	Moves    int           `json:"moves" minimum:"0" doc:"Heads that moved: the population."`
	Manifest digest.Digest `json:"manifest" doc:"Digest of the manifest of all files."`
}

// ExportReceipt is what the server says of an export.
type ExportReceipt struct {
	Entry uint64 `json:"entry" doc:"Index of the entry that recorded it."`
	Note  string `json:"note" doc:"Signed note (https://c2sp.org/signed-note) over the manifest's digest, by the log's key."`
}
