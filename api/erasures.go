package api

import (
	"strconv"
	"time"

	"github.com/invarhq/invar/digest"
)

// Paths of erasures.
const (
	PathErasures       = "/v1/erasures"
	PathErasure        = "/v1/erasures/{erasure}"
	PathErasureApprove = "/v1/erasures/{erasure}/approve"
)

// ErasurePath fills in one of the patterns that name an erasure.
func ErasurePath(pattern string, number int) string {
	return fill(pattern, "{erasure}", strconv.Itoa(number))
}

// ErasureRequest asks that content is erased.
type ErasureRequest struct {
	Digest    digest.Digest `json:"digest" doc:"Of the content, which an entry of the ledger names."`
	Authority string        `json:"authority" minLength:"1" maxLength:"4096" doc:"A law with its article, or a ticket."`
	Law       bool          `json:"law,omitempty" doc:"The authority is a law: it goes before the retention of the platform's definition."`
	Reason    string        `json:"reason" minLength:"1" maxLength:"4096" doc:"Why; recorded in the ledger."`
}

// Statuses of an erasure.
const (
	ErasureOpen     = "open"
	ErasureReplaced = "replaced"
	ErasureErased   = "erased"
)

// Erasure is a request to erase, and what became of it.
type Erasure struct {
	Number    int           `json:"number" doc:"Its number: 1, 2, 3 …"`
	Digest    digest.Digest `json:"digest" doc:"Of the content."`
	Authority string        `json:"authority" doc:"A law with its article, or a ticket."`
	Law       bool          `json:"law" doc:"The authority is a law."`
	Reason    string        `json:"reason" doc:"Why, in the words of who asked."`
	By        string        `json:"by" doc:"Who asked."`
	At        time.Time     `json:"at" doc:"When."`
	Status    string        `json:"status" enum:"open,replaced,erased" doc:"Where it stands."`
	Log       string        `json:"log" doc:"Name of the ledger: part of what is signed."`
	Request   string        `json:"request" doc:"ID of the entry that asked for it: part of what is signed."`
	Entry     uint64        `json:"entry" doc:"Index of that entry."`
	Entries   []int64       `json:"entries" doc:"Entries that name the content, the first 100."`
	Approvals []Approval    `json:"approvals" doc:"Who has agreed."`
	Missing   int           `json:"missing" doc:"How many more have to agree."`
	ErasedIn  uint64        `json:"erased_in,omitempty" doc:"Index of the entry that erased it."`
	ErasedAt  *time.Time    `json:"erased_at,omitempty" doc:"When it was erased."`
}

// Erasures lists requests to erase.
type Erasures struct {
	Erasures []Erasure `json:"erasures" doc:"Newest first."`
}
