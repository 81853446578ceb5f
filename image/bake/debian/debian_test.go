package debian

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
)

var hash = digest.Of(nil).Hex()

func TestParseURIsReadsAptsAnswer(t *testing.T) {
	got, err := parseURIs("'http://h/p/redis_5%3a7.0.15-1~deb12u6_all.deb' redis_5%3a7.0.15-1~deb12u6_all.deb 12 SHA256:" + hash + "\n" +
		"'http://h/p/libc6_2.36-9+deb12u14_amd64.deb' libc6_2.36-9+deb12u14_amd64.deb 34 SHA256:" + hash + "\n")
	want := []image.LockedPackage{
		{Name: "libc6", Version: "2.36-9+deb12u14", Architecture: "amd64", SHA256: digest.Of(nil), SizeBytes: 34},
		{Name: "redis", Version: "5:7.0.15-1~deb12u6", Architecture: "all", SHA256: digest.Of(nil), SizeBytes: 12},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("parseURIs: %v (-want +got):\n%s", err, diff)
	}
	for _, bad := range []string{"x", "'u' a_1_amd64.deb 1", "'u' a_1.deb 1 SHA256:" + hash, "'u' a_1_all.deb 0 SHA256:" + hash,
		"'u' a_1_all.deb 1 MD5Sum:" + hash, "'u' ../a_1_all.deb 1 SHA256:" + hash, "'u' a_%zz_all.deb 1 SHA256:" + hash} {
		if got, err := parseURIs(bad); err == nil {
			t.Errorf("parseURIs(%q) = %v, want an error", bad, got)
		}
	}
}

// FuzzParseURI: what is accepted is a package that a lock may hold, and prints as what was read.
func FuzzParseURI(f *testing.F) {
	f.Add("'http://h/p/redis_5%3a7_all.deb' redis_5%3a7_all.deb 12 SHA256:" + hash)
	f.Add("'u' a_1_all.deb 0 SHA256:")
	f.Fuzz(func(t *testing.T, line string) {
		p, err := parseURI(line)
		if err != nil {
			return
		}
		if strings.ContainsAny(p.Name+p.Architecture, "/ \n") || p.SizeBytes <= 0 {
			t.Errorf("accepted %+v", p)
		}
		again, err := parseURI(fmt.Sprintf("'u' %s_%s_%s.deb %d SHA256:%s", p.Name, strings.NewReplacer("%", "%25", ":", "%3a", "_", "%5f", " ", "%20", "\n", "%0a").Replace(p.Version), p.Architecture, p.SizeBytes, p.SHA256.Hex()))
		if err == nil && again != p {
			t.Errorf("read again: %+v, first %+v", again, p)
		}
	})
}

func TestFirstTakesEssentialAndPreDependencies(t *testing.T) {
	all := []control{
		parseControl("Package: dpkg\nEssential: yes\nPre-Depends: libc6 (>= 2.15), zlib1g:any\nDepends: tar (>= 1.28-1)\n"),
		parseControl("Package: libc6\n"), parseControl("Package: zlib1g\n"), parseControl("Package: tar\n"),
		parseControl("Package: server\nPre-Depends: debconf (>= 0.5) | debconf-2.0\nDepends: client\n"),
		parseControl("Package: cdebconf\nProvides: debconf-2.0\nDepends: newt\n"), parseControl("Package: newt\n"),
		parseControl("Package: client\n"),
	}
	var got []string
	for name := range first(all) {
		got = append(got, name)
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"cdebconf", "dpkg", "libc6", "newt", "tar", "zlib1g"}, got); diff != "" {
		t.Errorf("first (-want +got):\n%s", diff)
	}
}

func TestReleaseDateIsRead(t *testing.T) {
	got, ok := releaseDate("Origin: Debian\nDate: Sat, 11 Jul 2026 10:16:37 UTC\nSHA256:\n")
	if want := time.Date(2026, 7, 11, 10, 16, 37, 0, time.UTC); !ok || !got.Equal(want) {
		t.Errorf("releaseDate = %v, %v; want %v", got, ok, want)
	}
}

func TestOnlyTheWayToTheSourcesIsKept(t *testing.T) {
	got := keepAcquire("APT::Update::Post-Invoke:: \"rm x\";\nAcquire::http::Proxy \"p\";\nDir::Bin::methods \"m\";\nAcquire::IndexTargets::x \"y\";\nDPkg::Pre-Invoke:: \"z\";\n")
	if want := "Acquire::http::Proxy \"p\";\nDir::Bin::methods \"m\";\n"; got != want {
		t.Errorf("kept %q, want %q", got, want)
	}
}

func TestAPackageThatIsGoneIsNamed(t *testing.T) {
	for said, want := range map[string]string{
		"E: Version '1.2-3' for 'nginx' was not found\n":                        "package nginx 1.2-3",
		"E: Unable to locate package nginx\n":                                   "package nginx",
		"E: Can't find a source to download version '1.2-3' of 'nginx:amd64'\n": "package nginx:amd64 1.2-3",
	} {
		err := downloadError(&aptError{errors.New("exit status 100"), said})
		if !errors.Is(err, fault.NotFound) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", said, err, want)
		}
	}
	if err := downloadError(&aptError{errors.New("exit status 100"), "E: Failed to fetch\n"}); !errors.Is(err, fault.Unavailable) {
		t.Errorf("failed fetch: %v", err)
	}
}

func TestDebThatIsNotLockedIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.deb")
	if err := os.WriteFile(file, []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := image.LockedPackage{Name: "a", Version: "1", SHA256: digest.Of([]byte("content")), SizeBytes: 7}
	if err := checkDeb(file, p); err != nil {
		t.Error(err)
	}
	p.SHA256 = digest.Of([]byte("c0ntent"))
	if err := checkDeb(file, p); !errors.Is(err, fault.Corrupt) {
		t.Errorf("checkDeb: %v, want corrupt", err)
	}
}

func write(t *testing.T, root, name, content string) {
	t.Helper()
	file := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestScrubKeepsNoTraceOfTheInstallation(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"etc/machine-id", "etc/passwd", "etc/passwd-", "var/log/apt/history.log", "var/cache/ldconfig/aux-cache",
		"usr/share/doc/a/copyright", "usr/share/doc/a/README", "usr/share/man/man1/a.1", "etc/ssl/certs/ssl-cert-snakeoil.pem", "etc/ssl/certs/real.pem", servicePolicy} {
		write(t, root, name, name)
	}
	for link, to := range map[string]string{"0.0": "ssl-cert-snakeoil.pem", "1.0": "real.pem"} {
		if err := os.Symlink(to, filepath.Join(root, "etc/ssl/certs", link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := scrub(root); err != nil {
		t.Fatal(err)
	}
	var left []string
	filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(root, p)
			left = append(left, rel)
		}
		return err
	})
	want := []string{"etc/passwd", "etc/ssl/certs/1.0", "etc/ssl/certs/real.pem", "usr/share/doc/a/copyright"}
	if diff := cmp.Diff(want, left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestPackDependsOnContentAlone(t *testing.T) {
	date := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	var tars [2]bytes.Buffer
	for i := range tars {
		root := t.TempDir()
		names := []string{"b/2", "b/1", "a"}
		if i == 1 {
			slices.Reverse(names)
		}
		for _, n := range names {
			write(t, root, n, n)
		}
		if err := os.Link(filepath.Join(root, "a"), filepath.Join(root, "b/link")); err != nil {
			t.Fatal(err)
		}
		if err := pack(t.Context(), root, date, &tars[i]); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(tars[0].Bytes(), tars[1].Bytes()) {
		t.Error("the tars differ")
	}
	var got []string
	for tr := tar.NewReader(&tars[0]); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.Equal(date) {
			t.Errorf("%s has the time %v", h.Name, h.ModTime)
		}
		got = append(got, fmt.Sprintf("%s %c %s", h.Name, h.Typeflag, h.Linkname))
	}
	want := []string{"a 0 ", "b/ 5 ", "b/1 0 ", "b/2 0 ", "b/link 1 a"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

// Another build's workspace is left alone while it is in use, whatever time a package gave its root.
func TestWorkspaceInUseIsNotStale(t *testing.T) {
	dir := t.TempDir()
	old := time.Now().AddDate(-2, 0, 0)
	if err := os.Chtimes(dir, old, old); err != nil {
		t.Fatal(err)
	}
	if isStale(dir, time.Now()) {
		t.Error("a directory that was just made is stale")
	}
	if !isStale(dir, time.Now().Add(25*time.Hour)) {
		t.Error("a directory that nothing happened to for a day is not stale")
	}
	removeStale(dir)
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("it was removed: %v", err)
	}
}
