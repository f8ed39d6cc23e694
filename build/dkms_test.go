package build

import (
	"bytes"
	"debug/elf"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kmodctl/internal/kernel"
)

// dkmsSource has what is hard about packages for DKMS: a PRE_BUILD with arguments, a MAKE that builds in /usr/src and
// moves what it made, modules in folders, and a POST_BUILD that cleans up.
func dkmsSource() (*Manifest, map[string]string) {
	m := &Manifest{
		Name: "odd", Version: "1.0~2+git",
		Modules: []Module{{Name: "one", Dir: "out", As: "other-name", Place: "updates/dkms"}, {Name: "two", Dir: "src/", Whole: true}},
		Build:   Recipe{Patches: []Patch{{File: "patches/two.patch"}}},
		DKMS: &DKMS{
			Make: `mkdir out; make -C /lib/modules/` + AnyRelease + `/build M=/usr/src/odd-1.0~2+git/src ONE=1 && mv -v /usr/src/odd-1.0~2+git/src/one.ko out/` +
				` && (cd src && "$CC" --version >compiler && make -C /lib/modules/` + AnyRelease + `/build M=/var/lib/dkms/odd/1.0~2+git/build/src)`,
			PreBuild:  "configure --with 'a  b'",
			PostBuild: "clean.sh",
		},
	}
	return m, map[string]string{
		"configure":         "#!/bin/sh\nprintf '#define WORDS %d\\n' $# >src/config.h\n",
		"clean.sh":          "#!/bin/bash\nfind . -name '*.ko' -delete\n",
		"patches/two.patch": "--- a/src/two.c\n+++ b/src/two.c\n@@ -1 +1,2 @@\n+#include \"config.h\"\n #define WANT 3\n",
		"src/Kbuild":        "ifdef ONE\nobj-m := one.o\nelse\nobj-m := two.o\n$(info KERNELRELEASE=$(KERNELRELEASE) CC=$(CC) MAKEFLAGS=$(MAKEFLAGS))\nendif\n",
		"src/one.c":         helloSource,
		"src/two.c":         "#define WANT 3\n#if WORDS != WANT\n#error what PRE_BUILD wrote is not here\n#endif\n" + helloSource,
	}
}

func dkmsJob(t *testing.T, k kernel.Release, m *Manifest, files map[string]string) (Job, *bytes.Buffer) {
	t.Helper()
	if err := m.Valid(); err != nil {
		t.Fatal(err)
	}
	_, chain, err := inputs(m, "source", k, toolIdentity)
	if err != nil {
		t.Fatal(err)
	}
	log := &bytes.Buffer{}
	return Job{Manifest: m, Kernel: k, Source: tree(t, files), Pristine: tree(t, files), Toolchain: chain, Log: log}, log
}

// A package is built as its dkms.conf says: where DKMS builds, though DKMS's folders are not there, and nothing
// is left of them. Without namespaces the same bytes come out.
func TestRunDKMS(t *testing.T) {
	for _, prefix := range []string{"6.1.", "6.12."} {
		k := series(t, prefix)
		m, files := dkmsSource()
		made := map[string][]byte{}
		for _, level := range []string{LevelStrict, LevelLandlock} {
			t.Run(prefix+level, func(t *testing.T) {
				if level != LevelStrict {
					grantLevel(t, level)
				}
				j, log := dkmsJob(t, k, m, files)
				open(t, j.Source)
				open(t, j.Pristine)
				built, isolation, err := Run(t.Context(), j)
				if err != nil || isolation.Level() != level || len(built) != 2 {
					t.Fatalf("built %v at level %s: %v\n%s", built, isolation.Level(), err, log)
				}
				one, two := built[0], built[1]
				if one.Name != "other_name" || one.As != "other-name.ko" || one.Place != "updates/dkms" || two.Name != "two" || two.As != "two.ko" {
					t.Errorf("built %+v", built)
				}
				if hasDebug(t, one.File) || !hasDebug(t, two.File) {
					t.Errorf("debug sections: in one %v, in two, which keeps them, %v", hasDebug(t, one.File), hasDebug(t, two.File))
				}
				if compiler, err := os.ReadFile(filepath.Join(j.Source, "src/compiler")); err != nil || !strings.HasPrefix(string(compiler), j.Toolchain.Identity) {
					t.Errorf("MAKE's $CC is %q, %v", compiler, err)
				}
				for _, b := range built {
					text, err := os.ReadFile(b.File)
					if err != nil {
						t.Fatal(err)
					}
					if first, ok := made[b.Name]; ok && b.Name != "two" && !bytes.Equal(first, text) { // debug sections have other paths
						t.Errorf("%s is other bytes without namespaces", b.Name)
					}
					made[b.Name] = text
				}
			})
		}
	}
	for _, left := range []string{"/var/lib/dkms/odd", "/usr/src/odd-1.0~2+git"} {
		if _, err := os.Lstat(left); err == nil {
			t.Errorf("%s was left on this machine", left)
		}
	}
}

func hasDebug(t *testing.T, file string) bool {
	t.Helper()
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return f.Section(".debug_info") != nil
}

// A MAKE that begins with make is given KERNELRELEASE and the jobserver, another one neither; a script that is not
// executable is passed over; a dkms.conf without MAKE is built by kbuild's command. All are told what the packages that it
// needs export.
func TestRunDKMSMake(t *testing.T) {
	k := series(t, "6.1.")
	files := map[string]string{"Kbuild": "$(info release <$(origin KERNELRELEASE)> jobs <$(findstring jobserver,$(shell echo $$MAKEFLAGS))> symvers <$(KBUILD_EXTRA_SYMBOLS)>)\nobj-m := hello.o\n", "hello.c": helloSource, "x.symvers": ""}
	tree := "-C /lib/modules/" + k.Name + "/build M=/var/lib/dkms/hello/1/build"
	for text, want := range map[string]string{
		"":                        "release <command line> jobs <jobserver>",
		"make " + tree:            "release <command line> jobs <jobserver>",
		"true; make " + tree:      "release <environment> jobs <>",
		"'make' -j2 " + tree:      "release <environment> jobs <jobserver>", // its own
		"make " + tree + " || :;": "release <command line> jobs <jobserver>",
	} {
		m := &Manifest{Name: "hello", Version: "1", Modules: []Module{{Name: "hello"}}, DKMS: &DKMS{Make: text, PreBuild: "hello.c -v"}}
		j, log := dkmsJob(t, k, m, files)
		if err := os.Chmod(filepath.Join(j.Source, "hello.c"), 0o644); err != nil {
			t.Fatal(err)
		}
		jobs := jobserver(t, 2)
		j.Jobserver, j.Symvers = jobs, []string{"x.symvers"}
		if _, _, err := Run(t.Context(), j); err != nil {
			t.Fatalf("MAKE %q: %v\n%s", text, err, log)
		}
		if !strings.Contains(log.String(), want+" symvers </var/lib/dkms/hello/1/build/x.symvers>\n") {
			t.Errorf("MAKE %q: the log lacks %q:\n%s", text, want, log)
		}
	}
}

// What is wrong is told though MAKE ends well.
func TestRunDKMSFails(t *testing.T) {
	k := series(t, "6.1.")
	kbuild := "make -C /lib/modules/" + k.Name + "/build M=/var/lib/dkms/hello/1/build"
	files := map[string]string{"Kbuild": "obj-m := hello.o\n", "hello.c": "int x = nothing;\n", "no": "#!/bin/sh\necho it is not there >&2; exit 7\n", "ok.c": helloSource}
	for name, c := range map[string]struct {
		dkms       DKMS
		step, want string
	}{
		"MAKE ends well": {DKMS{Make: kbuild + "; true"}, "collect", "hello.c:1:9: error: "},
		"PRE_BUILD":      {DKMS{PreBuild: "no"}, "prepare", "exit status 7"},
		"POST_BUILD":     {DKMS{Make: "mv ok.c hello.c && " + kbuild, PostBuild: "no --x"}, "post_build", "exit status 7"},
	} {
		m := &Manifest{Name: "hello", Version: "1", Modules: []Module{{Name: "hello"}}, DKMS: &c.dkms}
		j, log := dkmsJob(t, k, m, files)
		_, _, err := Run(t.Context(), j)
		failed, ok := err.(*Error)
		if !ok || failed.Step != c.step || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v\n%s", name, failed, err, log)
		}
	}
}
