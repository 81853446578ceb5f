package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/distribution/v3/registry/storage/driver/factory"
	"github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"github.com/sirupsen/logrus"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
)

// driverName is what distribution's configuration calls our storage driver.
const driverName = "invar"

// register makes the driver known to distribution, whose table of drivers is global to the process. It also silences
// distribution's logger, global as well: what goes wrong in a request is in its response, and the server logs requests.
var register = sync.OnceFunc(func() {
	factory.Register(driverName, driverFactory{})
	logrus.SetOutput(io.Discard)
})

type driverFactory struct{}

func (driverFactory) Create(_ context.Context, parameters map[string]any) (storagedriver.StorageDriver, error) {
	d, ok := parameters["driver"].(*driver)
	if !ok {
		return nil, errors.New("no driver among the parameters")
	}
	return d, nil
}

// Handler serves the distribution specification under /v2/. ctx bounds its background work, which is to remove uploads
// that nobody went on with for a day; so one handler a directory is enough. Content can be added and tagged over it, never deleted.
func (s *Store) Handler(ctx context.Context) http.Handler {
	register()
	abandoned := map[any]any{"enabled": true, "age": "24h", "interval": "24h", "dryrun": false}
	config := &configuration.Configuration{
		Storage: configuration.Storage{
			driverName:    configuration.Parameters{"driver": s.driver},
			"redirect":    configuration.Parameters{"disable": true},
			"maintenance": configuration.Parameters{"uploadpurging": abandoned},
		},
	}
	config.Log.AccessLog.Disabled = true
	config.HTTP.RelativeURLs = true // the server also listens on a unix socket
	return s.withReferrers(handlers.NewApp(ctx, config))
}

// driver gives CNCF distribution the Store to work on. Distribution names what it keeps by paths
// (registry/storage/paths.go): blob data is mapped to the Store's blobs; the links that make a blob visible in
// a repository exist exactly when the blob does; tags and uploads are files below DIR/registry.
type driver struct {
	storagedriver.StorageDriver // the files below DIR/registry
	store                       *Store
}

func newDriver(s *Store) *driver {
	return &driver{filesystem.New(filesystem.DriverParameters{RootDirectory: s.registryDir(), MaxThreads: 64}), s}
}

func (d *driver) Name() string { return driverName }

const pathRoot = "/docker/registry/v2/"

var (
	blobPath = regexp.MustCompile(`^/docker/registry/v2/blobs/sha256/[0-9a-f]{2}/([0-9a-f]{64})/data$`)
	linkPath = regexp.MustCompile(`^/docker/registry/v2/repositories/.+/(?:_layers|_manifests/revisions)/sha256/([0-9a-f]{64})/link$`)
)

func match(re *regexp.Regexp, p string) (digest.Digest, bool) {
	m := re.FindStringSubmatch(p)
	if m == nil {
		return "", false
	}
	return digest.Digest("sha256:" + m[1]), true
}

func (d *driver) GetContent(ctx context.Context, p string) ([]byte, error) {
	if b, ok := match(linkPath, p); ok {
		if !d.store.Has(b) {
			return nil, storagedriver.PathNotFoundError{Path: p, DriverName: driverName}
		}
		return []byte(b), nil
	}
	if b, ok := match(blobPath, p); ok {
		content, err := d.store.Bytes(b)
		return content, driverError(p, err)
	}
	return d.StorageDriver.GetContent(ctx, p)
}

func driverError(p string, err error) error {
	if errors.Is(err, fault.NotFound) {
		return storagedriver.PathNotFoundError{Path: p, DriverName: driverName}
	}
	return err
}

func (d *driver) PutContent(ctx context.Context, p string, content []byte) error {
	if b, ok := match(linkPath, p); ok {
		if !d.store.Has(b) {
			return fmt.Errorf("linking %s: no such blob", b)
		}
		if strings.Contains(p, "/_manifests/") {
			return d.store.link(b)
		}
		return nil
	}
	if b, ok := match(blobPath, p); ok {
		_, err := d.store.PutBlob(ctx, b, bytes.NewReader(content))
		return err
	}
	return d.StorageDriver.PutContent(ctx, p, content)
}

func (d *driver) Reader(ctx context.Context, p string, offset int64) (io.ReadCloser, error) {
	b, ok := match(blobPath, p)
	if !ok {
		return d.StorageDriver.Reader(ctx, p, offset)
	}
	f, err := os.Open(d.store.Path(b))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, storagedriver.PathNotFoundError{Path: p, DriverName: driverName}
	}
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (d *driver) Stat(ctx context.Context, p string) (storagedriver.FileInfo, error) {
	b, ok := match(blobPath, p)
	if !ok {
		return d.StorageDriver.Stat(ctx, p)
	}
	fi, err := os.Stat(d.store.Path(b))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, storagedriver.PathNotFoundError{Path: p, DriverName: driverName}
	}
	if err != nil {
		return nil, err
	}
	return storagedriver.FileInfoInternal{FileInfoFields: storagedriver.FileInfoFields{
		Path: p, Size: fi.Size(), ModTime: fi.ModTime(),
	}}, nil
}

// Move brings an upload, which distribution has synced and checked, to its name.
func (d *driver) Move(ctx context.Context, from, to string) error {
	b, ok := match(blobPath, to)
	if !ok {
		return d.StorageDriver.Move(ctx, from, to)
	}
	if err := os.Rename(filepath.Join(d.store.registryDir(), filepath.FromSlash(from)), d.store.Path(b)); err != nil {
		return diskFull(err)
	}
	return syncDir(d.store.blobs())
}

// Writer is only asked for uploads; a blob is never written in place.
func (d *driver) Writer(ctx context.Context, p string, appendTo bool) (storagedriver.FileWriter, error) {
	if _, ok := match(blobPath, p); ok {
		return nil, storagedriver.ErrUnsupportedMethod{DriverName: driverName}
	}
	return d.StorageDriver.Writer(ctx, p, appendTo)
}

// Delete removes uploads. Content is removed by Store.Remove, by whoever knows what refers to it.
func (d *driver) Delete(ctx context.Context, p string) error {
	if _, ok := match(blobPath, p); ok {
		return storagedriver.ErrUnsupportedMethod{DriverName: driverName}
	}
	return d.StorageDriver.Delete(ctx, p)
}

func (d *driver) Walk(ctx context.Context, p string, f storagedriver.WalkFn, options ...func(*storagedriver.WalkOptions)) error {
	return d.StorageDriver.Walk(ctx, p, f, options...)
}

// Repository is the name of a repository, such as "shop" or "shop/prod".
type Repository string

var repositoryName = regexp.MustCompile(`^[a-z0-9]+(?:[._-][a-z0-9]+)*(?:/[a-z0-9]+(?:[._-][a-z0-9]+)*)*$`)
var tagName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

func tagPath(repo Repository, tag string) (string, error) {
	if !repositoryName.MatchString(string(repo)) || !tagName.MatchString(tag) {
		return "", fault.Errorf(fault.Invalid, "%s:%s is not a repository and tag of the distribution specification", repo, tag)
	}
	return path.Join(pathRoot, "repositories", string(repo), "_manifests/tags", tag, "current/link"), nil
}

// Tag names a manifest or index of the store in a repository. It moves a tag that exists.
func (s *Store) Tag(ctx context.Context, repo Repository, tag string, d digest.Digest) error {
	p, err := tagPath(repo, tag)
	if err != nil {
		return err
	}
	if _, err := s.Size(d); err != nil {
		return fmt.Errorf("tagging %s:%s: %w", repo, tag, err)
	}
	if err := s.driver.PutContent(ctx, p, []byte(d)); err != nil {
		return fmt.Errorf("tagging %s:%s: %w", repo, tag, diskFull(err))
	}
	return nil
}

// Resolve returns what a tag names.
func (s *Store) Resolve(ctx context.Context, repo Repository, tag string) (digest.Digest, error) {
	p, err := tagPath(repo, tag)
	if err != nil {
		return "", err
	}
	b, err := s.driver.GetContent(ctx, p)
	if errors.As(err, new(storagedriver.PathNotFoundError)) {
		return "", fault.Errorf(fault.NotFound, "no tag %s:%s in the store", repo, tag)
	}
	if err != nil {
		return "", fmt.Errorf("resolving %s:%s: %w", repo, tag, err)
	}
	return digest.Parse(string(b))
}
