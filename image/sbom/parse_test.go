package sbom

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestStatusNamesWhatIsInstalled(t *testing.T) {
	got := parseStatus(`Package: libc6
Status: install ok installed
Source: glibc (2.36-9)
Architecture: amd64
Version: 2.36-9+deb12u10
Description: GNU C Library
 Version: 9, in a description
 .

Package: gone
Status: deinstall ok config-files
Version: 1

Package: half
Status: install ok half-installed
Version: 1

Package: two words
Version: 1

Package: static
Version: 2
Source: static
`)
	want := []debPackage{
		{name: "libc6", version: "2.36-9+deb12u10", architecture: "amd64", source: "glibc", sourceVersion: "2.36-9"},
		{name: "static", version: "2"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(debPackage{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestInstalledNamesPackagesOfAlpine(t *testing.T) {
	got := parseInstalled("P:a\nV:1\nL:MIT\n\nP:no-version\n\nV:2\nP:b\nZ\n:\nA:x86_64\no:b-src")
	want := []apkPackage{{name: "a", version: "1", license: "MIT"}, {name: "b", version: "2", architecture: "x86_64", origin: "b-src"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(apkPackage{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCopyrightGivesLicensesOfFiles(t *testing.T) {
	got, ok := parseCopyright(`Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: x

Files: *
Copyright: someone
License: GPL-2+ or Artistic, and BSD-3-clause
 text

Files: debian/*
License: GPL-2+ with OpenSSL exception

License: MPL-2.0
 a text that files refer to
`)
	if want := []string{"GPL-2+", "Artistic", "BSD-3-clause", "GPL-2+ with OpenSSL exception"}; !ok || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, ok, want)
	}
	if _, ok := parseCopyright("This package was debianized by someone.\n\nLicense: GPL\n"); ok {
		t.Error("a text for people is machine-readable")
	}
}

func TestLicensesHaveTheNamesOfSPDX(t *testing.T) {
	for name, want := range map[string]string{
		"GPL-2+": "GPL-2.0-or-later", "GPL-2": "GPL-2.0-only", "GPL-3.0+": "GPL-3.0-or-later", "LGPL-2.1+": "LGPL-2.1-or-later", "LGPL-2": "LGPL-2.0-only",
		"GFDL-1.3+": "GFDL-1.3-or-later", "AGPL-3.0-only": "AGPL-3.0-only", "Expat": "MIT", "BSD-3-clause": "BSD-3-Clause", "apache-2.0": "Apache-2.0",
		"public-domain": "", "GPL": "", "GPL-9": "", "GPL-2+ with OpenSSL exception": "", "": "",
	} {
		if got := spdxID(name); got != want {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
	}
}

func TestPackageURLsEscapeWhatTheyMust(t *testing.T) {
	got := purl{kind: "deb", namespace: "debian", name: "libstdc++6", version: "1:12.2.0-14~x+y", qualifiers: [][2]string{{"arch", ""}, {"upstream", "gcc-12@12 2"}}}.String()
	if want := "pkg:deb/debian/libstdc%2B%2B6@1:12.2.0-14~x%2By?upstream=gcc-12%4012%202"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for module, want := range map[string]string{
		"github.com/CycloneDX/cyclonedx-go": "pkg:golang/github.com/cyclonedx/cyclonedx-go@v1", "stdlib": "pkg:golang/stdlib@v1", "a.b/c?d/e": "pkg:golang/a.b/c%3Fd/e@v1",
	} {
		if got := goPurl(module, "v1"); got != want {
			t.Errorf("%s: %s, want %s", module, got, want)
		}
	}
}

// What the parsers read of foreign files names things in words, and reading it again gives the same.
func FuzzParseStatus(f *testing.F) {
	f.Add("Package: a\nStatus: install ok installed\nVersion: 1\nSource: b (2)\n\nPackage: c\nVersion: 3\n x\n")
	f.Add(":\n\n \n#\nPackage:a\n\tb\nversion: 1")
	f.Fuzz(func(t *testing.T, text string) {
		var again strings.Builder
		all := parseStatus(text)
		for _, p := range all {
			if p.name == "" || p.version == "" || strings.ContainsAny(p.name+p.version+p.architecture, " \t\n") {
				t.Errorf("package %+v", p)
			}
			again.WriteString("Package: " + p.name + "\nVersion: " + p.version + "\nArchitecture: " + p.architecture + "\n\n")
		}
		second := parseStatus(again.String())
		if len(second) != len(all) {
			t.Fatalf("%d packages, then %d", len(all), len(second))
		}
		for i, p := range second {
			if p.name != all[i].name || p.version != all[i].version || p.architecture != all[i].architecture {
				t.Errorf("%+v, then %+v", all[i], p)
			}
		}
	})
}

func FuzzParseInstalled(f *testing.F) {
	f.Add("C:x\nP:a\nV:1\nA:x86_64\nL:MIT\no:b\n\nP:c\nV:2\r\n")
	f.Add("P\n:\n\nP:\nV:")
	f.Fuzz(func(t *testing.T, text string) {
		var again strings.Builder
		all := parseInstalled(text)
		for _, p := range all {
			if p.name == "" || p.version == "" || strings.Contains(p.name+p.version, "\n") {
				t.Errorf("package %+v", p)
			}
			again.WriteString("P:" + p.name + "\nV:" + p.version + "\nA:" + p.architecture + "\nL:" + p.license + "\no:" + p.origin + "\n\n")
		}
		if diff := cmp.Diff(all, parseInstalled(again.String()), cmp.AllowUnexported(apkPackage{})); diff != "" {
			t.Errorf("(-first +second):\n%s", diff)
		}
	})
}

func FuzzParseCopyright(f *testing.F) {
	f.Add("Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: GPL-2+ and/or (MIT | X), Y\n")
	f.Fuzz(func(t *testing.T, text string) {
		names, ok := parseCopyright(text)
		if !ok && names != nil {
			t.Errorf("licenses %q of a file that is not machine-readable", names)
		}
		for _, n := range names {
			if n == "" || len(n) > maxLicenseName || strings.TrimSpace(n) != n {
				t.Errorf("license %q", n)
			}
		}
		if l := licenses(names); l != nil && len(*l) > len(names) {
			t.Errorf("%d licenses of %d names", len(*l), len(names))
		}
	})
}

func FuzzParseOSRelease(f *testing.F) {
	f.Add("ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME='Debian'\n")
	f.Fuzz(func(t *testing.T, text string) {
		if s := parseOSRelease(text); strings.ContainsAny(s.id+s.version+s.name, "\n") {
			t.Errorf("got %+v", s)
		}
	})
}

func FuzzParseProvenance(f *testing.F) {
	b := Build{}
	b.Image.Name, b.Image.Ref = "cache", "oci:x"
	raw, err := statement(b, contents{}, "sha256:"+"00", endorsement("bank", b, contents{}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := ParseProvenance(raw)
		if err != nil {
			return
		}
		p.SBOM()
		p.About("sha256:")
	})
}

func FuzzSummarize(f *testing.F) {
	f.Add([]byte(`{"bomFormat":"CycloneDX","specVersion":"1.6","components":[{"type":"library","name":"a","licenses":[{"expression":"MIT"}]}],"compositions":[{"aggregate":"complete","assemblies":["image"]}]}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		if s, err := Summarize(doc); err == nil && s.Unlicensed > s.Packages {
			t.Errorf("%+v", s)
		}
	})
}
