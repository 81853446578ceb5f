package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/durable"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/local/tree"
)

// Where the data of a volume lie, in DIR/volumes/ENV/COMPONENT. No name of a volume begins with a dot or has one.
//
//	NAME               version 1
//	.NAME.v2           version 2
//	.NAME.s3           snapshot 3
//	.NAME.s3.json      what it held when it was made: a copy is complete when it has its name, and this is written before
//	.NAME.s3.making    what there is of a copy that is being made; after a crash, it is made again
func (h *Host) placeDir(p runtime.Place) string {
	name := p.Name
	switch {
	case p.Snapshot > 0:
		name = fmt.Sprintf(".%s.s%d", p.Name, p.Snapshot)
	case p.Version > 1:
		name = fmt.Sprintf(".%s.v%d", p.Name, p.Version)
	}
	return filepath.Join(h.config.Dir, "volumes", p.Env, p.Component, name)
}

// contentFile is where it is written what the place held when it was made.
func contentFile(dir string) string {
	return filepath.Join(filepath.Dir(dir), "."+trimDot(filepath.Base(dir))+".json")
}

func trimDot(name string) string {
	if name[0] == '.' {
		return name[1:]
	}
	return name
}

// claimPlace has a place be made or deleted by one call at a time, and none that an instance uses. The volumes of a whole environment can't be
// destroyed meanwhile.
func (h *Host) claimPlace(p runtime.Place, use runtime.Place) (release func(), err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.placing[p] {
		return nil, fault.Errorf(fault.Conflict, "%s is being made or deleted", p)
	}
	for _, i := range h.instances {
		for _, v := range i.spec.Volumes {
			if v.Place() == use {
				return nil, fault.Errorf(fault.Conflict, "instance %s uses %s", i.spec.Identity.ID, use)
			}
		}
	}
	if h.placing == nil {
		h.placing = map[runtime.Place]bool{}
	}
	h.placing[p] = true
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.placing, p)
	}, nil
}

// CopyVolume implements runtime.Host.
func (h *Host) CopyVolume(ctx context.Context, c runtime.VolumeCopy, progress func(done, total int64)) (runtime.Content, error) {
	if err := c.Check(); err != nil {
		return runtime.Content{}, err
	}
	to, used := h.placeDir(c.To), c.From
	if c.Live {
		used = runtime.Place{}
	}
	release, err := h.claimPlace(c.To, used)
	if err != nil {
		return runtime.Content{}, err
	}
	defer release()
	if content, err := readContent(to); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return content, err
	}
	content, err := h.copyVolume(ctx, c, to, progress)
	if err != nil {
		return content, explain(to, err)
	}
	return content, nil
}

// making is the suffix of what there is of a copy that is being made.
const making = ".making"

// copyVolume makes the copy aside and gives it its name when all of it is durable. A crash before that leaves what the next call
// deletes; after that, what it finds.
func (h *Host) copyVolume(ctx context.Context, c runtime.VolumeCopy, to string, progress func(done, total int64)) (runtime.Content, error) {
	parent := filepath.Dir(to)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return runtime.Content{}, err
	}
	tmp := filepath.Join(parent, "."+trimDot(filepath.Base(to))+making)
	if err := os.RemoveAll(tmp); err != nil { // of a copy that was cut short
		return runtime.Content{}, err
	}
	content, err := h.copyTo(ctx, c, tmp, progress)
	if err != nil {
		return content, errors.Join(err, os.RemoveAll(tmp))
	}
	if err := syncAll(tmp); err != nil {
		return content, errors.Join(err, os.RemoveAll(tmp))
	}
	b, err := json.Marshal(content)
	if err == nil {
		err = durable.Write(contentFile(to), b, 0o600)
	}
	if err == nil {
		err = os.Rename(tmp, to)
	}
	if err != nil {
		return content, errors.Join(err, os.RemoveAll(tmp), removeFile(contentFile(to)))
	}
	return content, durable.SyncDir(parent)
}

// copyTo copies the data. A first version that no instance has had yet is empty.
func (h *Host) copyTo(ctx context.Context, c runtime.VolumeCopy, tmp string, progress func(done, total int64)) (runtime.Content, error) {
	from := h.placeDir(c.From)
	if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) && c.From.Version == 1 {
		root := h.features.hostID(0)
		if err := errors.Join(os.Mkdir(tmp, 0o755), os.Chown(tmp, root, root)); err != nil {
			return runtime.Content{}, err
		}
		held, err := tree.Measure(ctx, tmp)
		return runtime.Content{Bytes: held.Bytes, Files: held.Files, Digest: held.Digest}, err
	}
	held, changed, err := tree.Copy(ctx, from, tmp, tree.Options{Live: c.Live, Progress: progress})
	return runtime.Content{Bytes: held.Bytes, Files: held.Files, Digest: held.Digest, Changed: changed}, err
}

// syncAll makes all that a directory's file system holds durable.
func syncAll(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	return nil
}

// readContent returns what the copy at a directory held when it was made; fs.ErrNotExist when there is none.
func readContent(dir string) (runtime.Content, error) {
	var c runtime.Content
	if _, err := os.Stat(dir); err != nil {
		return c, err
	}
	b, err := os.ReadFile(contentFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return c, fault.Errorf(fault.Conflict, "%s is there already, and is no copy", dir)
	}
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(b, &c)
}

func removeFile(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// explain gives a copy's failure its kind, and says what an operator can do about it.
func explain(to string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.As(fault.NotFound, err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.WithHint(fault.As(fault.Unavailable, err), "free space below %s: invar volume list says what is kept", filepath.Dir(to))
	}
	return fault.As(fault.Unavailable, err)
}

// DeleteVolume implements runtime.Host.
func (h *Host) DeleteVolume(_ context.Context, p runtime.Place) error {
	if err := p.Check(); err != nil {
		return err
	}
	release, err := h.claimPlace(p, p)
	if err != nil {
		return err
	}
	defer release()
	dir := h.placeDir(p)
	doomed := filepath.Join(h.config.Dir, "volumes", ".destroyed")
	if err := os.MkdirAll(doomed, 0o700); err != nil {
		return err
	}
	to, err := os.MkdirTemp(doomed, p.Env+"-")
	if err != nil {
		return err
	}
	err = os.Rename(dir, filepath.Join(to, "data"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, os.Remove(to))
	}
	return errors.Join(removeFile(contentFile(dir)), os.RemoveAll(to))
}
