package evidence

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/spec"
)

// guide writes VERIFY.md: how to check this bundle with tools that invar's makers did not write.
func (d *dataset) guide(m *made, paths map[digest.Digest]string) []byte {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	say("# How to check this bundle\n\n")
	say("Of the ledger `%s`, entries %d up to %d%s, exported %s by invar %s.\n", d.log, d.scope.From, d.scope.To-1, ofEnv(d.scope), d.at.Format(timeFormat), d.tool)
	say("Run the commands in this directory. None needs a network, a server, or trust in who exported it.\n\n")
	say("## All at once\n\n```sh\ninvar evidence verify . --key ledger.pub\n```\n\n")
	say("`ledger.pub` is the log's verifier key as *you* got it, not the one in `trust/`. Exit status 6: it does not verify.\n\n")
	say("## Files\n\n```sh\nsha256sum --check --quiet %s\n```\n\n", FileSums)
	say("## The ledger\n\nEvery entry is a line of `%s`; its leaf hash is SHA-256 over a zero byte and the line (RFC 6962). Count what is there, and count the population again:\n\n", FileEntries)
	say("```sh\nwc -l < %s   # %d\n", FileEntries, len(d.leaves))
	say("sed -n '%d,%dp' %s |\n  jq -c 'select(.kind | IN(\"change.apply\", \"change.rollback\", \"change.destroy\", \"deploy.revert\"))%s' | wc -l   # %d\n```\n\n",
		d.scope.From+1, d.scope.To, FileEntries, jqEnv(d.scope), m.pop.Count)
	say("The tiles are those of https://c2sp.org/tlog-tiles. With Tessera's fsck (`go install\ngithub.com/transparency-dev/tessera/cmd/fsck@v1.0.4`), which says what it finds and ends with 0 in any case:\n\n")
	say("```sh\nfsck --storage_url=\"file://$PWD/\" --public_key=%s --ui=false --logtostderr -v=1\n```\n\n", FileKey)
	say("`proofs/*.tlog-proof` (https://c2sp.org/tlog-proof) prove one entry each to whoever has only the key.\n")
	d.guideSigned(m, say)
	d.guidePolicy(m, paths, say)
	if !slices.ContainsFunc(slices.Collect(maps.Keys(d.blobs)), func(p string) bool { return strings.HasPrefix(p, dirProvenance+"/") }) {
		say("\n## Images\n\nNothing is attached to the images of this part of the ledger.\n\n")
	} else {
		say("\n## Images\n\n`sbom/` has CycloneDX documents; `provenance/` has DSSE envelopes with in-toto statements, signed with the log's Ed25519 key (`%s`). What one says:\n\n", FileKey)
		say("```sh\nfor f in provenance/*.dsse.json; do jq -r .payload \"$f\" | base64 -d | jq .subject; done\n```\n\n")
	}
	d.guideAttested(say)
	say("## OSCAL\n\n`oscal/` holds to NIST's JSON schema of OSCAL %s (https://github.com/usnistgov/OSCAL/releases):\n\n", oscalVersion)
	say("```sh\najv validate -s oscal_complete_schema.json -d %s --strict=false -c ajv-formats\n```\n\n", FileResults)
	say("## A sample\n\nTell the other side your seed only now. `invar evidence sample . --seed TEXT --size 25` draws from the %d lines of `%s`, of which\nthe digest is `%s`:\n\n```\n%s\n```\n",
		m.pop.Count, FilePopulation, m.pop.Digest, Algorithm)
	return []byte(b.String())
}

// quoted is text as one word of a shell.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// plain is text that is safe in a shell's comment.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
}

func jqEnv(s Scope) string {
	if s.Env == "" {
		return ""
	}
	return fmt.Sprintf(` | select(.env == "%s")`, s.Env)
}

// guideSigned writes the command for every signature.
func (d *dataset) guideSigned(m *made, say func(string, ...any)) {
	say("\n## Signatures of people\n\n")
	if len(m.audit.Signed) == 0 {
		say("Nobody signed anything in this part of the ledger.\n")
		return
	}
	say("`trust/allowed_signers` has every key with the time from which and until which the platform's definition gave it to somebody. OpenSSH 9.1 or\nlater; each prints `Good`:\n\n```sh\n")
	for _, s := range m.audit.Signed {
		if spec.CheckName(string(s.Statement.Signer)) != nil || !slices.Contains(namespaces, s.Statement.Meaning.Namespace()) {
			continue // what is no name must not get into a shell
		}
		say("ssh-keygen -Y verify -f %s -I %s -n %s -Overify-time=%s -s %s.sig < %s.statement\n", FileSigners, s.Statement.Signer,
			s.Statement.Meaning.Namespace(), s.Time.UTC().Format("20060102150405Z"), s.path(), s.path())
	}
	say("```\n\nWhat was signed names the log, the change and its request, the plan and the release by digest, and its meaning:\n\n```sh\njq . approvals/*.statement\n```\n")
}

// guidePolicy writes the command that comes to each decision again.
func (d *dataset) guidePolicy(m *made, paths map[digest.Digest]string, say func(string, ...any)) {
	say("\n## Decisions of policies\n\n")
	n := 0
	for _, dec := range m.audit.Decisions {
		bundle, okBundle := paths[dec.Data.Bundle]
		input, okInput := paths[dec.Data.Input]
		if !okBundle || !okInput || dec.Decision.V == 0 {
			continue
		}
		if n++; n == 1 {
			say("Stock opa, in the version that the decision names, comes to the same. The digest of what it prints, as canonical JSON, is the decision's `output`:\n\n```sh\n")
		}
		command := dec.Decision.Command(bundle, input)
		say("%s %s | jq -cjS . | sha256sum   # entry %d, %s: %s\n", strings.Join(command[:len(command)-1], " "), quoted(command[len(command)-1]), dec.Index,
			plain(dec.Decision.Engine), plain(dec.Decision.Output.Hex()))
	}
	if n == 0 {
		say("No policy decided in this part of the ledger.\n")
		return
	}
	say("```\n")
}

// guideAttested says how to read what the server attests.
func (d *dataset) guideAttested(say func(string, ...any)) {
	if !slices.ContainsFunc(slices.Collect(maps.Keys(d.blobs)), func(p string) bool { return strings.HasPrefix(p, dirAttestations+"/") }) {
		return
	}
	say("## What the server attests\n\n`attestations/` has DSSE envelopes with in-toto statements too, signed with the same key: what environments were found to run, and\n")
	say("what came of making releases again. The line of `%s` that has the file's name as its body is the entry that it belongs to. What each measurement found:\n\n", FileEntries)
	say("```sh\nfor f in attestations/*.dsse.json; do jq -r .payload \"$f\" | base64 -d | jq -c '.predicate | select(.instances) | {environment, generation, result, to, instances: (.instances | length)}'; done\n```\n\n")
}
