// Package debian makes a file system of packages of a Debian suite, the same one from the same lock.
//
// # Lock
//
// The machine's own apt resolves the packages, the essential ones and all that they depend on, without
// recommendations, against an empty system: what is installed on the machine does not matter. apt's sources, keys and
// credentials are the machine's; everything else of its configuration is left aside, so no hook of the machine runs. The lock
// pins every package by name, version, architecture, size and SHA-256, and a source date: that of the newest
// Release file.
//
// # File system
//
// Packages are fetched by exact version, checked against the lock and kept by their hash. They are unpacked, and dpkg
// installs them inside, in namespaces of their own and without a network, with SOURCE_DATE_EPOCH set (as mmdebstrap
// does): so maintainer scripts make users, alternatives and the linker's cache. Then what depends on time or chance is
// removed: logs, caches, locks, backups, machine IDs and keys that scripts made. Documentation but
// copyright files, manual pages and translations go too, as in other container images of Debian. PostgreSQL's packages
// make no cluster: data belongs into a volume.
//
// # Files
//
//	DIR/SUITE-ARCH/…     apt's lists and state
//	DIR/debs/HEX.deb     packages by SHA-256
package debian

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
)

// fresh is how long apt's lists are taken as they are.
const fresh = 10 * time.Minute

// Cache is a directory of packages and of apt's state. Several processes may use one.
type Cache struct{ Dir string }

// Progress is told what is being done: detail for people, and bytes where known.
type Progress func(detail string, done, total int64)

// apt is apt without the machine's state, for one suite and architecture.
type apt struct {
	dir   string // of its state
	debs  string
	suite string
	arch  string
}

var suiteName = regexp.MustCompile(`^[a-z][a-z0-9]*$`)

func (c Cache) apt(suite, arch string) (apt, error) {
	if !suiteName.MatchString(suite) {
		return apt{}, fault.WithHint(fault.Errorf(fault.Invalid, "%q is not the code name of a suite", suite), "write it as in suite = \"bookworm\"")
	}
	for _, tool := range []string{"apt-get", "apt-config", "dpkg", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return apt{}, fault.WithHint(fault.As(fault.Invalid, fmt.Errorf("looking for Debian's tools: %w", err)),
				"images of kind debian are baked on Debian, Ubuntu or in a container of them; elsewhere use ref")
		}
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return apt{}, err
	}
	a := apt{dir: filepath.Join(dir, suite+"-"+arch), debs: filepath.Join(dir, "debs"), suite: suite, arch: arch}
	return a, nil
}

// open makes the state's directories and takes its lock, which the returned function releases.
func (a apt) open(ctx context.Context) (func(), error) {
	for _, d := range []string{"lists/partial", "cache/archives/partial", "empty"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(a.debs, 0o755); err != nil {
		return nil, err
	}
	release, err := flock(ctx, filepath.Join(a.dir, "lock"))
	if err != nil {
		return nil, err
	}
	if err := a.configure(ctx); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// flock takes an exclusive lock on a file, against other processes and other goroutines.
func flock(ctx context.Context, name string) (func(), error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// configure writes apt's configuration: of the machine's own only how to reach its sources.
func (a apt) configure(ctx context.Context) error {
	dump, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return fmt.Errorf("reading the machine's apt configuration: %w", err)
	}
	var b strings.Builder
	b.WriteString(keepAcquire(string(dump)))
	for _, kv := range [][2]string{
		{"Dir::State", a.dir}, {"Dir::State::lists", filepath.Join(a.dir, "lists")}, {"Dir::State::status", filepath.Join(a.dir, "status")},
		{"Dir::Cache", filepath.Join(a.dir, "cache")}, {"Dir::Log", filepath.Join(a.dir, "empty")},
		{"Dir::Etc::parts", filepath.Join(a.dir, "empty")}, {"Dir::Etc::main", "/dev/null"},
		{"APT::Architecture", a.arch}, {"APT::Architectures::", a.arch}, {"APT::Install-Recommends", "false"},
		{"APT::Sandbox::User", "root"}, {"APT::Default-Release", "/^" + a.suite + "(-security|-updates)?$/"},
		{"Acquire::Languages", "none"}, {"Acquire::ForceHash", "SHA256"},
	} {
		fmt.Fprintf(&b, "%s %q;\n", kv[0], kv[1])
	}
	if err := os.WriteFile(filepath.Join(a.dir, "status"), nil, 0o644); err != nil {
		return err
	}
	return os.WriteFile(a.config(), []byte(b.String()), 0o600) // may hold a proxy's password
}

func (a apt) config() string { return filepath.Join(a.dir, "apt.conf") }

// keepAcquire returns the lines of a dumped configuration that say how files are acquired. Additional index targets,
// which other software of the machine asks for, are none of them.
func keepAcquire(dump string) string {
	var b strings.Builder
	for line := range strings.Lines(dump) {
		keep := strings.HasPrefix(line, "Acquire::") || strings.HasPrefix(line, "Dir::Bin::methods") || strings.HasPrefix(line, "Dir::Bin::Methods")
		if keep && !strings.HasPrefix(line, "Acquire::IndexTargets") && !strings.HasPrefix(line, "Acquire::Languages") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// run runs apt-get. Its errors carry what apt said.
func (a apt) run(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "APT_CONFIG="+a.config(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, &aptError{err, said.String()}
	}
	return out.Bytes(), nil
}

// aptError is a failure of apt-get with what it said.
type aptError struct {
	err  error
	said string
}

func (e *aptError) Unwrap() error { return e.err }
func (e *aptError) Error() string {
	var lines []string
	for line := range strings.Lines(e.said) {
		if strings.HasPrefix(line, "E: ") {
			lines = append(lines, strings.TrimSpace(strings.TrimPrefix(line, "E: ")))
		}
	}
	if len(lines) == 0 {
		return fmt.Sprintf("apt-get: %v: %s", e.err, strings.TrimSpace(e.said))
	}
	return "apt-get: " + strings.Join(lines, "; ")
}

// update fetches the lists unless they are younger than maxAge.
func (a apt) update(ctx context.Context, maxAge time.Duration) error {
	stamp := filepath.Join(a.dir, "updated")
	if fi, err := os.Stat(stamp); err == nil && time.Since(fi.ModTime()) < maxAge {
		return nil
	}
	if _, err := a.run(ctx, a.dir, "-q", "update", "--error-on=any"); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fault.WithHint(fault.As(fault.Unavailable, fmt.Errorf("fetching package lists: %w", err)),
			"check that apt-get update works on this machine")
	}
	if err := a.checkSuite(ctx); err != nil {
		return err
	}
	return os.WriteFile(stamp, nil, 0o644)
}

// checkSuite refuses a suite that the machine's sources do not have.
func (a apt) checkSuite(ctx context.Context) error {
	out, err := a.run(ctx, a.dir, "indextargets", "--format", "$(CODENAME)", "Created-By: Packages")
	if err != nil {
		return err
	}
	if slices.Contains(strings.Fields(string(out)), a.suite) {
		return nil
	}
	have := strings.Join(slices.Compact(slices.Sorted(slices.Values(strings.Fields(string(out))))), ", ")
	return fault.WithHint(fault.Errorf(fault.Invalid, "the machine's apt sources have no suite %q (they have: %s)", a.suite, have),
		"add the suite to the machine's apt sources, or use one that they have")
}

// Lock resolves the packages to what the suite has now.
func (c Cache) Lock(ctx context.Context, suite, arch string, packages []string, progress Progress) (image.LockedImage, error) {
	a, err := c.apt(suite, arch)
	if err != nil {
		return image.LockedImage{}, err
	}
	release, err := a.open(ctx)
	if err != nil {
		return image.LockedImage{}, err
	}
	defer release()
	progress("package lists of "+suite, 0, 0)
	if err := a.update(ctx, fresh); err != nil {
		return image.LockedImage{}, err
	}
	request := slices.Compact(slices.Sorted(slices.Values(packages)))
	locked, err := a.resolve(ctx, request)
	if err != nil {
		return image.LockedImage{}, err
	}
	date, err := a.date()
	if err != nil {
		return image.LockedImage{}, err
	}
	return image.LockedImage{Suite: suite, Request: request, Packages: locked, Date: date.Format(time.RFC3339)}, nil
}

var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)

// resolve asks apt what it would install on an empty system.
func (a apt) resolve(ctx context.Context, packages []string) ([]image.LockedPackage, error) {
	for _, p := range packages {
		if !packageName.MatchString(p) {
			return nil, fault.Errorf(fault.Invalid, "%q is not the name of a Debian package", p)
		}
	}
	args := append([]string{"-qq", "-y", "--print-uris", "install", "?essential"}, packages...)
	out, err := a.run(ctx, a.dir, args...)
	if err != nil {
		return nil, fault.WithHint(fault.As(fault.Invalid, fmt.Errorf("resolving packages of %s: %w", a.suite, err)),
			"apt-cache search finds a package's name")
	}
	locked, err := parseURIs(string(out))
	if err != nil {
		return nil, fmt.Errorf("resolving packages of %s: %w", a.suite, err)
	}
	return locked, nil
}

// parseURIs reads what apt-get --print-uris prints: a quoted URI, file name, size and hash on a line.
func parseURIs(out string) ([]image.LockedPackage, error) {
	var all []image.LockedPackage
	for line := range strings.Lines(out) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		p, err := parseURI(line)
		if err != nil {
			return nil, fmt.Errorf("reading apt's answer %.200q: %w", line, err)
		}
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b image.LockedPackage) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

func parseURI(line string) (image.LockedPackage, error) {
	fields := strings.Fields(line)
	if len(fields) != 4 {
		return image.LockedPackage{}, fmt.Errorf("want four fields")
	}
	parts := strings.Split(strings.TrimSuffix(fields[1], ".deb"), "_")
	if len(parts) != 3 || !strings.HasSuffix(fields[1], ".deb") || !packageName.MatchString(parts[0]) {
		return image.LockedPackage{}, fmt.Errorf("want NAME_VERSION_ARCHITECTURE.deb")
	}
	version, err := url.PathUnescape(parts[1])
	if err != nil || version == "" {
		return image.LockedPackage{}, fmt.Errorf("version %q", parts[1])
	}
	size, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil || size <= 0 {
		return image.LockedPackage{}, fmt.Errorf("size %q", fields[2])
	}
	hash, ok := strings.CutPrefix(fields[3], "SHA256:")
	if !ok {
		return image.LockedPackage{}, fmt.Errorf("want a SHA-256")
	}
	d, err := digest.Parse("sha256:" + hash)
	return image.LockedPackage{Name: parts[0], Version: version, Architecture: parts[2], SHA256: d, SizeBytes: size}, err
}

// date returns when the newest Release file was made.
func (a apt) date() (time.Time, error) {
	files, err := filepath.Glob(filepath.Join(a.dir, "lists", "*Release"))
	if err != nil {
		return time.Time{}, err
	}
	var newest time.Time
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return time.Time{}, err
		}
		if t, ok := releaseDate(string(b)); ok && t.After(newest) {
			newest = t
		}
	}
	if newest.IsZero() {
		return newest, fault.Errorf(fault.Unavailable, "no Release file of %s has a date", a.suite)
	}
	return newest, nil
}

func releaseDate(release string) (time.Time, bool) {
	for line := range strings.Lines(release) {
		if v, ok := strings.CutPrefix(line, "Date: "); ok {
			t, err := time.Parse(time.RFC1123, strings.TrimSpace(v))
			return t.UTC(), err == nil
		}
	}
	return time.Time{}, false
}

func (a apt) deb(p image.LockedPackage) string { return filepath.Join(a.debs, p.SHA256.Hex()+".deb") }

// fetch brings every package of the lock into the cache, checked.
func (a apt) fetch(ctx context.Context, packages []image.LockedPackage, progress Progress) error {
	var missing []image.LockedPackage
	var total int64
	for _, p := range packages {
		if checkDeb(a.deb(p), p) != nil {
			missing = append(missing, p)
			total += p.SizeBytes
		}
	}
	if len(missing) == 0 {
		return nil
	}
	progress(fmt.Sprintf("%d packages", len(missing)), 0, total)
	if err := a.update(ctx, 24*time.Hour); err != nil {
		return err
	}
	err := a.download(ctx, missing)
	if errors.Is(err, fault.NotFound) { // the lists may be old
		if err := a.update(ctx, time.Minute); err != nil {
			return err
		}
		err = a.download(ctx, missing)
	}
	if err == nil {
		progress(fmt.Sprintf("%d packages", len(missing)), total, total)
	}
	return err
}

// download fetches packages by exact version.
func (a apt) download(ctx context.Context, packages []image.LockedPackage) error {
	tmp, err := os.MkdirTemp(a.debs, "download-*")
	if err != nil {
		return diskFull(err)
	}
	defer os.RemoveAll(tmp)
	args := []string{"-q", "download"}
	for _, p := range packages {
		args = append(args, p.Name+"="+p.Version)
	}
	if _, err := a.run(ctx, tmp, args...); err != nil {
		return downloadError(err)
	}
	for _, p := range packages {
		file := filepath.Join(tmp, p.Name+"_"+strings.ReplaceAll(p.Version, ":", "%3a")+"_"+p.Architecture+".deb")
		if err := checkDeb(file, p); err != nil {
			return err
		}
		if err := os.Rename(file, a.deb(p)); err != nil {
			return diskFull(err)
		}
	}
	return nil
}

var gone = regexp.MustCompile(`Version '([^']+)' for '([^']+)' was not found|Unable to locate package (\S+)|Can't find a source to download version '([^']+)' of '([^']+)'`)

// downloadError says which package is gone, if that is what apt said.
func downloadError(err error) error {
	failed, ok := errors.AsType[*aptError](err)
	if !ok {
		return err
	}
	if m := gone.FindStringSubmatch(failed.said); m != nil {
		return fault.WithHint(fault.Errorf(fault.NotFound, "package %s %s, which the lock pins, is no longer offered by the machine's apt sources",
			cmp.Or(m[2], m[3], m[5]), cmp.Or(m[1], m[4])), "run invar lock --update for this image, or add a source that keeps old versions")
	}
	return fault.WithHint(fault.As(fault.Unavailable, fmt.Errorf("fetching packages: %w", err)), "check that apt-get download works on this machine")
}

// checkDeb compares a file with what the lock says.
func checkDeb(file string, p image.LockedPackage) error {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.Errorf(fault.NotFound, "package %s %s: apt fetched no file for %s", p.Name, p.Version, p.Architecture)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	d, n, err := digest.OfReader(f)
	if err != nil {
		return err
	}
	if d != p.SHA256 || n != p.SizeBytes {
		return fault.Errorf(fault.Corrupt, "package %s %s is %s (%d bytes), the lock says %s (%d bytes)", p.Name, p.Version, d, n, p.SHA256, p.SizeBytes)
	}
	return nil
}

func diskFull(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fault.WithHint(fault.As(fault.Unavailable, err), "free some space on the disk that holds the data directory")
	}
	return err
}
