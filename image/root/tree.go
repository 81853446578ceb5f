package root

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/erofs/go-erofs"

	"github.com/invarhq/invar/fault"
)

const (
	maxEntries = 4_000_000
	maxName    = 255
	maxTarget  = 4095
	maxLinks   = 40 // symbolic links on the way to one path
	maxXattrs  = 64 << 10

	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	xattrRecord    = "SCHILY.xattr."
)

// budget bounds a sum over several goroutines.
type budget struct {
	mu   sync.Mutex
	left int64
}

func (b *budget) take(n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left -= n; b.left < 0 {
		return fault.Errorf(fault.Invalid, "the image unpacks to more than %d bytes", int64(maxBytes))
	}
	return nil
}

// node is a file of the merged root.
type node struct {
	name     string
	mode     fs.FileMode // type, permissions and set-id bits
	uid, gid uint32
	xattrs   map[string]string
	target   string           // of a symbolic link
	children map[string]*node // of a directory
	data     io.ReaderAt      // of a regular file: size bytes from offset on
	offset   int64
	size     int64
	layer    int // that it comes from
}

// tree is the merged root. It is an fs.FS, for the EROFS encoder to read.
type tree struct {
	root    *node
	entries int
}

func directory(name string, layer int) *node {
	return &node{name: name, mode: fs.ModeDir | 0o755, children: map[string]*node{}, layer: layer}
}

func newTree() *tree { return &tree{root: directory(".", -1)} }

// apply merges the layer's tar over what is there.
func (t *tree) apply(ctx context.Context, l *layer) error {
	return t.applyTar(ctx, l.file, l.size, l.number)
}

func (t *tree) applyTar(ctx context.Context, data io.ReaderAt, size int64, number int) error {
	in := &skipper{r: data, size: size}
	tr := tar.NewReader(in)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fault.As(fault.Corrupt, err)
		}
		if t.entries++; t.entries > maxEntries {
			return fault.Errorf(fault.Invalid, "the image has more than %d entries", maxEntries)
		}
		if err := t.entry(h, data, in.at, size, number); err != nil {
			return err
		}
	}
}

// skipper reads a tar's headers and seeks over its data. Reading in small blocks is cheap: they come from a buffer.
type skipper struct {
	r    io.ReaderAt
	size int64
	at   int64 // the next byte to be read
	buf  [4096]byte
	from int64 // place of buf[0]
	have int
}

func (s *skipper) Read(p []byte) (int, error) {
	if s.at >= s.size {
		return 0, io.EOF
	}
	if s.at < s.from || s.at >= s.from+int64(s.have) {
		n, err := s.r.ReadAt(s.buf[:min(int64(len(s.buf)), s.size-s.at)], s.at)
		if n == 0 {
			return 0, err
		}
		s.from, s.have = s.at, n
	}
	n := copy(p, s.buf[s.at-s.from:s.have])
	s.at += int64(n)
	return n, nil
}

func (s *skipper) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += s.at
	case io.SeekEnd:
		offset += s.size
	}
	if offset < 0 {
		return 0, errors.New("seeking before the beginning")
	}
	s.at = offset
	return offset, nil
}

// entry applies one entry of a tar whose data starts at offset.
func (t *tree) entry(h *tar.Header, data io.ReaderAt, offset, size int64, layer int) error {
	parts, err := split(h.Name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if h.Typeflag == tar.TypeDir {
			t.root.describe(h)
		}
		return nil
	}
	dir, base := parts[:len(parts)-1], parts[len(parts)-1]
	if strings.HasPrefix(base, whiteoutPrefix) {
		t.whiteout(dir, base, layer)
		return nil
	}
	n, err := t.newNode(h, base, data, offset, size, layer)
	if n == nil || err != nil {
		return err
	}
	parent, err := t.makeDirs(dir, layer)
	if err != nil {
		return err
	}
	parent.put(n)
	return nil
}

// split cleans an entry's name. A component ".." is refused: nothing honest has it.
func split(name string) ([]string, error) {
	var parts []string
	for p := range strings.SplitSeq(name, "/") {
		switch {
		case p == "" || p == ".":
		case p == "..":
			return nil, fault.Errorf(fault.Invalid, "the entry %q leaves the root", name)
		case len(p) > maxName || strings.ContainsRune(p, 0):
			return nil, fault.Errorf(fault.Invalid, "the entry %.80q has an impossible name", name)
		default:
			parts = append(parts, p)
		}
	}
	return parts, nil
}

// newNode makes the node of an entry, or nil for an entry that is left out.
func (t *tree) newNode(h *tar.Header, name string, data io.ReaderAt, offset, size int64, layer int) (*node, error) {
	n := &node{name: name, layer: layer}
	switch h.Typeflag {
	case tar.TypeReg, '\x00': // NUL: as written before POSIX
		if isSparse(h) {
			return nil, fault.Errorf(fault.Invalid, "the entry %q is a sparse file, which layers must not have", h.Name)
		}
		if h.Size < 0 || h.Size > size-offset {
			return nil, fault.Errorf(fault.Corrupt, "the entry %q ends after the layer", h.Name)
		}
		n.data, n.offset, n.size = data, offset, h.Size
	case tar.TypeDir:
		n.mode, n.children = fs.ModeDir, map[string]*node{}
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxTarget {
			return nil, fault.Errorf(fault.Invalid, "the symbolic link %q has an impossible target", h.Name)
		}
		n.mode, n.target = fs.ModeSymlink, h.Linkname
	case tar.TypeFifo:
		n.mode = fs.ModeNamedPipe
	case tar.TypeLink:
		return t.hardLink(h, name, layer)
	case tar.TypeChar, tar.TypeBlock, tar.TypeXGlobalHeader:
		return nil, nil
	default:
		return nil, fault.Errorf(fault.Invalid, "the entry %q is of the unknown type %q", h.Name, h.Typeflag)
	}
	n.describe(h)
	return n, checkXattrs(h, n.xattrs)
}

func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// hardLink copies the node that the entry is linked to.
func (t *tree) hardLink(h *tar.Header, name string, layer int) (*node, error) {
	parts, err := split(h.Linkname)
	if err != nil {
		return nil, err
	}
	to := t.lookup(parts, false)
	if to == nil || to.mode.IsDir() {
		return nil, fault.Errorf(fault.Corrupt, "the hard link %q leads to %q, which is no file of the image", h.Name, h.Linkname)
	}
	n := *to
	n.name, n.layer = name, layer
	return &n, nil
}

// describe takes owner, permissions and attributes from the header.
func (n *node) describe(h *tar.Header) {
	n.mode = n.mode.Type() | h.FileInfo().Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)
	n.uid, n.gid = uint32(h.Uid), uint32(h.Gid)
	n.xattrs = nil
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, xattrRecord)
		if !ok || !keepXattr(name) {
			continue
		}
		if n.xattrs == nil {
			n.xattrs = map[string]string{}
		}
		n.xattrs[name] = v
	}
}

// keepXattr leaves out what means something to a host: access control lists and overlayfs's own marks.
func keepXattr(name string) bool {
	space, rest, ok := strings.Cut(name, ".")
	if !ok || rest == "" || len(name) > maxName {
		return false
	}
	return space == "user" || space == "security" || (space == "trusted" && !strings.HasPrefix(rest, "overlay."))
}

func checkXattrs(h *tar.Header, xattrs map[string]string) error {
	total := 0
	for k, v := range xattrs {
		total += len(k) + len(v)
	}
	if total > maxXattrs {
		return fault.Errorf(fault.Invalid, "the entry %q has %d bytes of extended attributes", h.Name, total)
	}
	return nil
}

// put places a node in a directory, over what is there.
func (n *node) put(child *node) {
	old := n.children[child.name]
	if old != nil && old.mode.IsDir() && child.mode.IsDir() {
		child.children = old.children
	}
	n.children[child.name] = child
}

// makeDirs returns the directory, made where it is missing. Symbolic links are followed; what is neither
// a directory nor leads to one is replaced.
func (t *tree) makeDirs(parts []string, layer int) (*node, error) {
	if to := t.lookup(parts, true); to != nil && to.mode.IsDir() {
		return to, nil
	}
	at := t.root
	for i, p := range parts {
		next := t.lookup(parts[:i+1], true)
		if next == nil || !next.mode.IsDir() {
			if t.entries++; t.entries > maxEntries {
				return nil, fault.Errorf(fault.Invalid, "the image has more than %d entries", maxEntries)
			}
			next = directory(p, layer)
			at.children[p] = next
		}
		at = next
	}
	return at, nil
}

// lookup finds a node, following symbolic links inside the root; the last one only if asked. It returns
// nil when there is none.
func (t *tree) lookup(parts []string, followLast bool) *node {
	links := 0
	var walk func(stack []*node, parts []string) *node
	walk = func(stack []*node, parts []string) *node {
		for i, p := range parts {
			at := stack[len(stack)-1]
			if p == "" || p == "." {
				continue
			}
			if p == ".." {
				stack = stack[:max(1, len(stack)-1)]
				continue
			}
			next := at.children[p]
			if next == nil {
				return nil
			}
			if next.mode.Type() != fs.ModeSymlink || (!followLast && i == len(parts)-1) {
				stack = append(stack[:len(stack):len(stack)], next)
				continue
			}
			if links++; links > maxLinks {
				return nil
			}
			if path.IsAbs(next.target) {
				stack = stack[:1]
			}
			return walk(stack, append(strings.Split(next.target, "/"), parts[i+1:]...))
		}
		return stack[len(stack)-1]
	}
	return walk([]*node{t.root}, parts)
}

// whiteout hides what lower layers have at a path, or all that they have in a directory.
func (t *tree) whiteout(dir []string, base string, layer int) {
	parent := t.lookup(dir, true)
	if parent == nil || !parent.mode.IsDir() {
		return
	}
	if base == opaqueMarker {
		for _, c := range parent.children {
			parent.hide(c, layer)
		}
		return
	}
	if c := parent.children[strings.TrimPrefix(base, whiteoutPrefix)]; c != nil {
		parent.hide(c, layer)
	}
}

// hide removes a child unless it comes from the layer itself, or something below it does.
func (n *node) hide(c *node, layer int) {
	for _, cc := range c.children {
		c.hide(cc, layer)
	}
	if c.layer < layer && len(c.children) == 0 {
		delete(n.children, c.name)
	}
}

// addMountPoints makes what the package's documentation promises.
func (t *tree) addMountPoints() {
	for _, name := range []string{"proc", "dev", "sys", "run", "tmp", "etc"} {
		if to := t.lookup([]string{name}, true); to != nil && to.mode.IsDir() {
			continue
		}
		d := directory(name, -1)
		if name == "tmp" {
			d.mode |= 0o777 | fs.ModeSticky
		}
		t.root.children[name] = d
	}
	etc := t.lookup([]string{"etc"}, true)
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		etc.children[name] = &node{name: name, mode: 0o644, layer: -1}
	}
}

// The rest makes the tree an fs.FS with symbolic links.

func (t *tree) find(op, name string) (*node, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	at := t.root
	if name == "." {
		return at, nil
	}
	for p := range strings.SplitSeq(name, "/") {
		if at = at.children[p]; at == nil {
			return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
		}
	}
	return at, nil
}

func (t *tree) Open(name string) (fs.File, error) {
	n, err := t.find("open", name)
	if err != nil {
		return nil, err
	}
	if n.data == nil {
		return file{Reader: strings.NewReader(""), node: n}, nil
	}
	return file{Reader: io.NewSectionReader(n.data, n.offset, n.size), node: n}, nil
}

func (t *tree) Stat(name string) (fs.FileInfo, error) {
	n, err := t.find("stat", name)
	if err != nil {
		return nil, err
	}
	return info{n}, nil
}

func (t *tree) Lstat(name string) (fs.FileInfo, error) { return t.Stat(name) }

func (t *tree) ReadLink(name string) (string, error) {
	n, err := t.find("readlink", name)
	if err != nil {
		return "", err
	}
	return n.target, nil
}

func (t *tree) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := t.find("readdir", name)
	if err != nil {
		return nil, err
	}
	entries := make([]fs.DirEntry, 0, len(n.children))
	for _, k := range slices.Sorted(maps.Keys(n.children)) {
		entries = append(entries, fs.FileInfoToDirEntry(info{n.children[k]}))
	}
	return entries, nil
}

type file struct {
	io.Reader
	node *node
}

func (f file) Stat() (fs.FileInfo, error) { return info{f.node}, nil }
func (f file) Close() error               { return nil }

type info struct{ n *node }

func (i info) Name() string       { return i.n.name }
func (i info) Size() int64        { return i.n.size }
func (i info) Mode() fs.FileMode  { return i.n.mode }
func (i info) ModTime() time.Time { return time.Unix(0, 0) }
func (i info) IsDir() bool        { return i.n.mode.IsDir() }

// Sys is what the encoder takes owner and attributes from.
func (i info) Sys() any {
	return &erofs.Stat{Mode: i.n.mode, Size: i.n.size, UID: i.n.uid, GID: i.n.gid, Nlink: i.links(), Xattrs: i.n.xattrs}
}

func (i info) links() int {
	if !i.n.mode.IsDir() {
		return 1
	}
	links := 2
	for _, c := range i.n.children {
		if c.mode.IsDir() {
			links++
		}
	}
	return links
}
