package compare

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/erofs/go-erofs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image/registry"
)

// maxUnpacked bounds what a compressed layer may unpack to.
const maxUnpacked = 16 << 30

// file is an entry of a layer or of a root.
type file struct {
	kind     string // "file", "directory", "symbolic link" …
	mode     uint32 // permissions, set-id and sticky bits
	uid, gid int
	modified int64  // seconds
	link     string // of a link
	xattrs   string // as text, sorted
	size     int64
	sum      digest.Digest // of a regular file's content
	open     func() (io.ReadCloser, error)
	at       io.ReaderAt // of the content; nil where it can't be read at any place
}

// listing are the entries of a layer or of a root.
type listing struct {
	order []string // as they are in the archive
	files map[string]file
}

func (l *listing) add(name string, f file) {
	for n, plain := 2, name; ; n++ { // an archive may have a name twice
		if _, twice := l.files[name]; !twice {
			break
		}
		name = fmt.Sprintf("%s (%d)", plain, n)
	}
	l.order = append(l.order, name)
	l.files[name] = f
}

// layers compares two layers. Such as are no tars, or compressed in another way than by gzip, are compared as bytes alone.
func layers(where string, storeA *registry.Store, a ocispec.Descriptor, storeB *registry.Store, b ocispec.Descriptor, dir string) ([]Difference, error) {
	head, err := blobs(where, storeA, a, storeB, b)
	if err != nil {
		return nil, err
	}
	var sides [2]listing
	for i, s := range []struct {
		store *registry.Store
		d     ocispec.Descriptor
	}{{storeA, a}, {storeB, b}} {
		f, size, err := unpack(s.store, s.d, dir)
		if errors.Is(err, errOpaque) {
			return append(head, Difference{Where: where, What: "not looked into: " + s.d.MediaType, Offset: -1}), nil
		}
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if sides[i], err = readTar(f, size); err != nil {
			return nil, err
		}
	}
	found, err := listings(where, sides[0], sides[1])
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		found = []Difference{{Where: where, What: archiveOnly(sides[0], sides[1]), Offset: -1}}
	}
	return append(head, bounded(where, found)...), nil
}

// archiveOnly says how archives differ whose entries do not.
func archiveOnly(a, b listing) string {
	if !slices.Equal(a.order, b.order) {
		return "order of the same entries"
	}
	return "the archive's own form: its entries are the same"
}

// blobs says that two blobs differ, and from where on.
func blobs(where string, storeA *registry.Store, a ocispec.Descriptor, storeB *registry.Store, b ocispec.Descriptor) ([]Difference, error) {
	readA, _, err := storeA.Open(digest.Digest(a.Digest))
	if err != nil {
		return nil, err
	}
	defer readA.Close()
	readB, _, err := storeB.Open(digest.Digest(b.Digest))
	if err != nil {
		return nil, err
	}
	defer readB.Close()
	at, err := firstOther(readA, readB)
	return []Difference{{Where: where, What: "content", Recorded: string(a.Digest), Made: string(b.Digest), Offset: at}}, err
}

var errOpaque = errors.New("a layer that can't be looked into")

// unpack returns a layer's tar as a file that can be read at any place: the blob itself, or a temporary file without a name.
func unpack(store *registry.Store, d ocispec.Descriptor, dir string) (*os.File, int64, error) {
	switch {
	case strings.HasSuffix(d.MediaType, ".tar"):
		return fileBytes(store.Path(digest.Digest(d.Digest)))
	case !strings.HasSuffix(d.MediaType, "gzip"):
		return nil, 0, errOpaque
	}
	in, _, err := store.Open(digest.Digest(d.Digest))
	if err != nil {
		return nil, 0, err
	}
	defer in.Close()
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, 0, fault.As(fault.Corrupt, err)
	}
	out, err := os.CreateTemp(dir, "layer-*")
	if err != nil {
		return nil, 0, err
	}
	err = os.Remove(out.Name())
	size, copyErr := io.Copy(out, io.LimitReader(z, maxUnpacked+1))
	if size > maxUnpacked {
		copyErr = fault.Errorf(fault.Invalid, "layer %s unpacks to more than %d bytes", d.Digest, int64(maxUnpacked))
	}
	if err = errors.Join(err, copyErr); err != nil {
		out.Close()
		return nil, 0, err
	}
	return out, size, nil
}

// readTar lists the entries of a tar.
func readTar(in io.ReaderAt, size int64) (listing, error) {
	l := listing{files: map[string]file{}}
	section := io.NewSectionReader(in, 0, size)
	tr := tar.NewReader(section)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return l, nil
		}
		if err != nil {
			return listing{}, fault.Errorf(fault.Corrupt, "reading the archive: %w", err)
		}
		f := file{kind: tarKind(h.Typeflag), mode: uint32(h.Mode) & 0o7777, uid: h.Uid, gid: h.Gid, modified: h.ModTime.Unix(), link: h.Linkname, size: h.Size, xattrs: xattrsOf(h.PAXRecords)}
		if h.Typeflag == tar.TypeReg {
			at, err := section.Seek(0, io.SeekCurrent) // a tar.Reader reads no further than it has to
			if err != nil {
				return listing{}, err
			}
			if !sparse(h) {
				content := io.NewSectionReader(in, at, h.Size)
				f.at, f.open = content, func() (io.ReadCloser, error) {
					return io.NopCloser(io.NewSectionReader(content, 0, content.Size())), nil
				}
			}
			sum := sha256.New()
			if _, err := io.Copy(sum, tr); err != nil {
				return listing{}, fault.Errorf(fault.Corrupt, "reading %s: %w", h.Name, err)
			}
			f.sum = sumOf(sum)
		}
		l.add(path.Clean("/" + h.Name)[1:], f)
	}
}

func sumOf(h hash.Hash) digest.Digest { return digest.Digest(fmt.Sprintf("sha256:%x", h.Sum(nil))) }

func sparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

func tarKind(flag byte) string {
	switch flag {
	case tar.TypeReg:
		return "file"
	case tar.TypeDir:
		return "directory"
	case tar.TypeSymlink:
		return "symbolic link"
	case tar.TypeLink:
		return "hard link"
	}
	return fmt.Sprintf("entry of type %q", flag)
}

// xattrsOf are the extended attributes among an entry's records.
func xattrsOf(records map[string]string) string {
	found := map[string]string{}
	for k, v := range records {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			found[name] = v
		}
	}
	return attributes(found)
}

func attributes(all map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(all)) {
		out = append(out, fmt.Sprintf("%s=%q", k, all[k]))
	}
	return strings.Join(out, " ")
}

// Roots compares two EROFS files: whether they are the same to the last byte, and if not, which files in them differ.
func Roots(recorded, made string) ([]Difference, error) {
	const where = "root"
	a, sizeA, err := fileBytes(recorded)
	if err != nil {
		return nil, fmt.Errorf("comparing roots: %w", err)
	}
	defer a.Close()
	b, sizeB, err := fileBytes(made)
	if err != nil {
		return nil, fmt.Errorf("comparing roots: %w", err)
	}
	defer b.Close()
	at, err := firstOther(io.NewSectionReader(a, 0, sizeA), io.NewSectionReader(b, 0, sizeB))
	if err != nil || at < 0 {
		return nil, err
	}
	head := Difference{Where: where, What: "content", Offset: at}
	if head.Recorded, err = sumFile(a, sizeA); err != nil {
		return nil, err
	}
	if head.Made, err = sumFile(b, sizeB); err != nil {
		return nil, err
	}
	found, err := rootFiles(where, a, b)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		found = []Difference{{Where: where, What: "the file system's own form: its files are the same", Offset: -1}}
	}
	return append([]Difference{head}, bounded(where, found)...), nil
}

func sumFile(f io.ReaderAt, size int64) (string, error) {
	h := sha256.New()
	_, err := io.Copy(h, io.NewSectionReader(f, 0, size))
	return sumOf(h).String(), err
}

func rootFiles(where string, a, b io.ReaderAt) ([]Difference, error) {
	var sides [2]listing
	for i, r := range []io.ReaderAt{a, b} {
		fsys, err := erofs.Open(r)
		if err != nil {
			return nil, fault.Errorf(fault.Corrupt, "reading a root: %w", err)
		}
		if sides[i], err = readRoot(fsys); err != nil {
			return nil, fault.Errorf(fault.Corrupt, "reading a root: %w", err)
		}
	}
	return listings(where, sides[0], sides[1])
}

// readRoot lists what is in a root.
func readRoot(fsys fs.FS) (listing, error) {
	l := listing{files: map[string]file{}}
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		f := file{kind: rootKind(fi.Mode()), mode: unixMode(fi.Mode()), size: fi.Size()}
		if st, ok := fi.Sys().(*erofs.Stat); ok {
			f.uid, f.gid, f.modified, f.xattrs = int(st.UID), int(st.GID), int64(st.Mtime), attributes(st.Xattrs)
		}
		switch fi.Mode().Type() {
		case fs.ModeSymlink:
			f.link, err = fs.ReadLink(fsys, name)
		case fs.ModeDir:
			f.size = 0 // of its own encoding
		case 0:
			f.open = func() (io.ReadCloser, error) { return fsys.Open(name) }
			f.sum, err = sumOpened(f.open)
		}
		l.add(name, f)
		return err
	})
	return l, err
}

func sumOpened(open func() (io.ReadCloser, error)) (digest.Digest, error) {
	in, err := open()
	if err != nil {
		return "", err
	}
	defer in.Close()
	h := sha256.New()
	_, err = io.Copy(h, in)
	return sumOf(h), err
}

func rootKind(m fs.FileMode) string {
	switch m.Type() {
	case 0:
		return "file"
	case fs.ModeDir:
		return "directory"
	case fs.ModeSymlink:
		return "symbolic link"
	}
	return "entry of type " + m.Type().String()
}

// unixMode are the bits of a mode as they are on disk.
func unixMode(m fs.FileMode) uint32 {
	out := uint32(m.Perm())
	for bit, unix := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&bit != 0 {
			out |= unix
		}
	}
	return out
}

// listings compares entry by entry, by name.
func listings(where string, a, b listing) ([]Difference, error) {
	all := map[string]bool{}
	for name := range a.files {
		all[name] = true
	}
	for name := range b.files {
		all[name] = true
	}
	var out []Difference
	for _, name := range slices.Sorted(maps.Keys(all)) {
		old, inA := a.files[name]
		now, inB := b.files[name]
		switch {
		case !inB:
			out = append(out, Difference{Where: where, Path: name, What: "missing", Recorded: old.String(), Offset: -1})
		case !inA:
			out = append(out, Difference{Where: where, Path: name, What: "added", Made: now.String(), Offset: -1})
		default:
			found, err := entries(old, now)
			if err != nil {
				return nil, fmt.Errorf("comparing %s: %w", name, err)
			}
			for _, d := range found {
				d.Where, d.Path = where, name
				out = append(out, d)
			}
		}
	}
	return out, nil
}

// String describes an entry that is on one side alone.
func (f file) String() string {
	if f.kind == "file" {
		return fmt.Sprintf("a file of %d bytes, %s", f.size, f.sum)
	}
	return "a " + f.kind
}

// entries compares two entries of one name.
func entries(a, b file) ([]Difference, error) {
	if a.kind != b.kind {
		return []Difference{{What: "kind", Recorded: a.kind, Made: b.kind, Offset: -1}}, nil
	}
	var out []Difference
	for _, p := range []struct{ what, recorded, made string }{
		{"mode", fmt.Sprintf("%04o", a.mode), fmt.Sprintf("%04o", b.mode)},
		{"owner", fmt.Sprintf("%d:%d", a.uid, a.gid), fmt.Sprintf("%d:%d", b.uid, b.gid)},
		{"time", fmt.Sprint(a.modified), fmt.Sprint(b.modified)},
		{"link", a.link, b.link},
		{"extended attributes", a.xattrs, b.xattrs},
		{"size", fmt.Sprint(a.size), fmt.Sprint(b.size)},
	} {
		if p.recorded != p.made {
			out = append(out, Difference{What: p.what, Recorded: p.recorded, Made: p.made, Offset: -1})
		}
	}
	if a.sum == b.sum {
		return out, nil
	}
	content, err := contents(a, b)
	return append(out, content...), err
}

// contents compares two files whose digests differ.
func contents(a, b file) ([]Difference, error) {
	d := Difference{What: "content", Recorded: a.sum.String(), Made: b.sum.String(), Offset: -1}
	if a.open == nil || b.open == nil {
		return []Difference{d}, nil
	}
	inA, err := a.open()
	if err != nil {
		return nil, err
	}
	defer inA.Close()
	inB, err := b.open()
	if err != nil {
		return nil, err
	}
	defer inB.Close()
	if d.Offset, err = firstOther(inA, inB); err != nil {
		return nil, err
	}
	if a.at == nil || b.at == nil {
		return []Difference{d}, nil
	}
	return append([]Difference{d}, programs(a.at, b.at)...), nil
}
