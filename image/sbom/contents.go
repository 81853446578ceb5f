package sbom

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/invarhq/invar/digest"
)

// Limits of what is read. What is beyond them is named in the document as not looked at.
const (
	maxDatabase  = 64 << 20  // of a package database
	maxCopyright = 1 << 20   // of a copyright file
	maxProgram   = 256 << 20 // of a program
)

// contents is what a root says of itself.
type contents struct {
	files    int // regular files
	system   system
	debs     []debPackage
	licenses map[string][]string // of a deb's name
	apks     []apkPackage
	programs []program
	missed   []string // sentences: what was there and not looked at
}

// program is an executable file that the go command built.
type program struct {
	path   string // absolute, in the image
	digest digest.Digest
	info   *buildinfo.BuildInfo
}

// look reads package databases and programs of a root.
func look(ctx context.Context, root fs.FS) (contents, error) {
	c := contents{licenses: map[string][]string{}}
	for _, step := range []func(fs.FS) error{c.lookSystem, c.lookDebs, c.lookAPKs, c.lookRPM} {
		if err := step(root); err != nil {
			return contents{}, err
		}
	}
	return c, c.walk(ctx, root)
}

// read returns a file of the root, or nil without one. What is too big, no regular file or behind something that is no directory is
// missed: a foreign image may have anything there.
func (c *contents) read(root fs.FS, name string, limit int64) ([]byte, error) {
	f, err := root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		c.miss("/%s: it can't be opened", name)
		return nil, nil
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading /%s: %w", name, err)
	}
	if !fi.Mode().IsRegular() || fi.Size() > limit {
		c.miss("/%s: no regular file of at most %d bytes", name, limit)
		return nil, nil
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("reading /%s: %w", name, err)
	}
	return b, nil
}

func (c *contents) miss(format string, args ...any) {
	c.missed = append(c.missed, fmt.Sprintf(format, args...))
}

func (c *contents) lookSystem(root fs.FS) error {
	for _, name := range []string{"usr/lib/os-release", "etc/os-release"} {
		b, err := c.read(root, name, maxCopyright)
		if err != nil || b != nil {
			c.system = parseOSRelease(string(b))
			return err
		}
	}
	return nil
}

// lookDebs reads dpkg's database, in one file or, as images without dpkg have it, one a package.
func (c *contents) lookDebs(root fs.FS) error {
	b, err := c.read(root, "var/lib/dpkg/status", maxDatabase)
	if err != nil {
		return err
	}
	c.debs = parseStatus(string(b))
	entries, err := fs.ReadDir(root, "var/lib/dpkg/status.d")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.miss("/var/lib/dpkg/status.d: it can't be opened")
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || strings.HasSuffix(e.Name(), ".md5sums") {
			continue
		}
		if b, err = c.read(root, "var/lib/dpkg/status.d/"+e.Name(), maxDatabase); err != nil {
			return err
		}
		c.debs = append(c.debs, parseStatus(string(b))...)
	}
	return c.lookCopyright(root)
}

func (c *contents) lookCopyright(root fs.FS) error {
	unreadable := 0
	for _, p := range c.debs {
		if !fs.ValidPath(p.name) || strings.Contains(p.name, "/") {
			continue
		}
		b, err := c.read(root, "usr/share/doc/"+p.name+"/copyright", maxCopyright)
		if err != nil {
			return err
		}
		names, ok := parseCopyright(string(b))
		if !ok {
			unreadable++
		}
		c.licenses[p.name] = names
	}
	if unreadable > 0 {
		c.miss("licenses of %d Debian packages: no copyright file in the machine-readable format", unreadable)
	}
	return nil
}

func (c *contents) lookAPKs(root fs.FS) error {
	for _, name := range []string{"lib/apk/db/installed", "usr/lib/apk/db/installed"} {
		b, err := c.read(root, name, maxDatabase)
		if err != nil {
			return err
		}
		if b != nil {
			c.apks = parseInstalled(string(b))
			return nil
		}
	}
	return nil
}

// lookRPM says when there is a database that is not read.
func (c *contents) lookRPM(root fs.FS) error {
	for _, dir := range []string{"var/lib/rpm", "usr/lib/sysimage/rpm", "usr/share/rpm"} {
		for _, file := range []string{"rpmdb.sqlite", "Packages.db", "Packages"} {
			if _, err := fs.Stat(root, path.Join(dir, file)); err == nil {
				c.miss("RPM packages: the database /%s/%s", dir, file)
				return nil
			}
		}
	}
	return nil
}

// walk counts files and finds programs of the go command.
func (c *contents) walk(ctx context.Context, root fs.FS) error {
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil || !d.Type().IsRegular() {
			return err
		}
		c.files++
		fi, err := d.Info()
		if err != nil || fi.Mode().Perm()&0o111 == 0 {
			return err
		}
		return c.lookProgram(root, name, fi.Size())
	})
	if err != nil {
		return fmt.Errorf("reading the root: %w", err)
	}
	slices.SortFunc(c.programs, func(a, b program) int { return strings.Compare(a.path, b.path) })
	return nil
}

const elfMagic = "\x7fELF"

func (c *contents) lookProgram(root fs.FS, name string, size int64) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	magic := make([]byte, len(elfMagic))
	if _, err := io.ReadFull(f, magic); err != nil || string(magic) != elfMagic {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			err = nil
		}
		return err
	}
	if size > maxProgram {
		c.miss("/%s: a program of %d bytes", name, size)
		return nil
	}
	b, err := io.ReadAll(io.MultiReader(bytes.NewReader(magic), f))
	if err != nil {
		return err
	}
	info, err := buildinfo.Read(bytes.NewReader(b))
	if err != nil {
		return nil // no program of the go command
	}
	c.programs = append(c.programs, program{"/" + name, digest.Of(b), info})
	return nil
}
