package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDKMS is a life of a module by the commands of DKMS: what each leaves, what status says of it, and the exit codes, which
// are those of DKMS 3.4 for the same cause.
func TestDKMS(t *testing.T) {
	rel := releases(t)[0]
	root := newRoot(t, rel)
	tree := filepath.Join(root, "var/lib/dkms")
	ko := filepath.Join(root, "lib/modules", rel, "updates/dkms/one.ko")
	dkms := func(code int, line string) result {
		t.Helper()
		return dkmsRuns(t, root, code, strings.Fields(line)...)
	}
	is := func(want ...string) {
		t.Helper()
		dkmsStatusIs(t, root, want...)
	}
	exists := func(name string, want bool) {
		t.Helper()
		if _, err := os.Stat(name); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", name, err, want)
		}
	}

	if r := dkms(0, "status"); r.out != "" {
		t.Errorf("an empty machine has %s", r.out)
	}
	dkms(0, "--version")
	dkms(2, "")
	dkms(2, "add one/1.0") // there is no /usr/src/one-1.0
	dkms(3, "remove one/1.0 --all")
	exists(tree, false)

	dir := dkmsSource(t, root, "one", "1.0")
	says(t, dkms(0, "add one/1.0 --dry-run").out, "add one 1.0")
	is("")
	dkms(0, "add -m one -v 1.0")
	is("one/1.0: added")
	dkms(3, "add one/1.0")
	dkms(5, "add one/1.0 --all")
	dkms(21, "build one/1.0 -k 9.9.9-none")
	dkms(12, "build one/1.0 -k "+rel+"/aarch64") // DKMS builds for this machine and says that it is the other
	is("one/1.0: added")

	dkms(0, "build one/1.0 -k "+rel)
	is("one/1.0, " + rel + ", x86_64: built")
	exists(ko, false)
	exists(filepath.Join(tree, "one/1.0", rel, "x86_64/log/make.log"), true)
	says(t, dkms(0, "build one/1.0 -k "+rel).stderr, "already")
	dkms(0, "install one/1.0 -k "+rel)
	is("one/1.0, " + rel + ", x86_64: installed")
	exists(ko, true)
	exists(filepath.Join(tree, "one/kernel-"+rel+"-x86_64/module/one.ko"), true)
	dkms(0, "install one/1.0 -k "+rel)

	// A build that fails takes nothing away: DKMS forgets the build before, and leaves the file for ever.
	text, err := os.ReadFile(filepath.Join(dir, "one.c"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "one.c", "nonsense\n")
	says(t, dkms(10, "build one/1.0 -k "+rel+" --force").stderr, "one.c:1")
	is("one/1.0, " + rel + ", x86_64: installed")
	exists(ko, true)
	exists(filepath.Join(tree, "one/1.0/build/make.log"), true)
	// What is changed in /usr/src is what is built.
	write(t, dir, "one.c", strings.Replace(string(text), "GPL", "Dual MIT/GPL", 1))
	dkms(0, "build one/1.0 -k "+rel)
	is("one/1.0, " + rel + ", x86_64: installed (Differences between built and installed modules)")
	exists(filepath.Join(tree, "one/1.0/build"), false)
	dkms(0, "install one/1.0 -k "+rel)
	is("one/1.0, " + rel + ", x86_64: installed")

	// What the package no longer has goes: DKMS leaves it for ever.
	write(t, dir, "Makefile", "obj-m := one.o two.o\n")
	write(t, dir, "two.c", string(text))
	write(t, dir, "dkms.conf", "PACKAGE_NAME=one\nPACKAGE_VERSION=1.0\nBUILT_MODULE_NAME[0]=one\nBUILT_MODULE_NAME[1]=two\nDEST_MODULE_LOCATION[0]=/extra\nDEST_MODULE_LOCATION[1]=/extra\n")
	dkms(0, "install one/1.0 -k "+rel)
	exists(strings.Replace(ko, "one.ko", "two.ko", 1), true)
	dkmsSource(t, root, "one", "1.0")
	dkms(0, "install one/1.0 -k "+rel)
	exists(strings.Replace(ko, "one.ko", "two.ko", 1), false)
	is("one/1.0, " + rel + ", x86_64: installed")

	dkms(0, "uninstall one/1.0 -k "+rel)
	dkms(0, "uninstall one/1.0 -k "+rel)
	is("one/1.0, " + rel + ", x86_64: built")
	exists(ko, false)
	dkms(0, "unbuild one/1.0 --all")
	is("one/1.0: added")
	dkms(0, "match --templatekernel 9.9.9 -k "+rel)
	dkms(0, "kernel_postinst -k "+rel)
	is("one/1.0, " + rel + ", x86_64: installed")
	dkms(0, "remove one/1.0 --all --dry-run")
	dkms(0, "remove one/1.0 -k "+rel)
	is("")
	exists(dir, true)
	exists(filepath.Join(tree, "one"), false)
	exists(filepath.Dir(filepath.Dir(ko)), false)

	// A folder is copied to /usr/src first.
	away := filepath.Join(t.TempDir(), "away")
	if err := os.Rename(dir, away); err != nil {
		t.Fatal(err)
	}
	dkms(0, "install "+away+" -k "+rel)
	exists(dir, true)
	is("one/1.0, " + rel + ", x86_64: installed")
}

// oneBadConf is an autoinstall where one module's dkms.conf cannot be read and one does not build: the others are installed.
func oneBadConf(t *testing.T) {
	rel := releases(t)[0]
	root := newRoot(t, rel)
	for _, name := range []string{"good", "mute", "bad", "fails", "other", "needy", "prepares"} {
		dir := dkmsSource(t, root, name, "1.0")
		switch name {
		case "mute":
			write(t, dir, "dkms.conf", "PACKAGE_NAME=mute\nPACKAGE_VERSION=1.0\nBUILT_MODULE_NAME=mute\nDEST_MODULE_LOCATION=/extra\n")
		case "fails":
			write(t, dir, "fails.c", "nonsense\n")
		case "needy":
			dkmsSource(t, root, name, "1.0", "BUILD_DEPENDS[0]=absent")
		case "prepares":
			dkmsSource(t, root, name, "1.0", "PRE_BUILD=\"prepare.sh now\"")
			if err := os.WriteFile(filepath.Join(dir, "prepare.sh"), []byte("#!/bin/sh\n[ $1 = now ] && exit 42\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		case "other":
			write(t, dir, "dkms.conf", "PACKAGE_NAME=other\nPACKAGE_VERSION=1.0\nBUILT_MODULE_NAME=other\nDEST_MODULE_LOCATION=/extra\nAUTOINSTALL=yes\nBUILD_EXCLUSIVE_KERNEL='^2\\.4'\n")
		}
		dkmsRuns(t, root, 0, "add", name+"/1.0")
	}
	if err := os.MkdirAll(filepath.Join(root, "etc/dkms"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "etc/dkms"), "bad.conf", "BUILT_MODULE_NAME[0]=bad.ko\n")
	r := dkmsRuns(t, root, 11, "autoinstall", "-k", rel)
	says(t, r.stderr, "installed good 1.0", "bad/1.0", "fails.c:1")
	dkmsStatusIs(t, root, "bad/1.0: added", "fails/1.0: added", "good/1.0, "+rel+", x86_64: installed", "mute/1.0: added", "needy/1.0: added", "other/1.0: added", "prepares/1.0: added")
	dkmsRuns(t, root, 13, "build", "needy/1.0", "-k", rel)
	dkmsRuns(t, root, 42, "build", "prepares/1.0", "-k", rel)
	dkmsRuns(t, root, 21, "build", "mute/1.0", "-k", rel, "--kernelsourcedir", "/usr/src")
	dkmsRuns(t, root, 0, "install", "mute/1.0", "-k", rel, "--kernelsourcedir", "/lib/modules/"+rel+"/build")
	dkmsRuns(t, root, 77, "build", "other/1.0", "-k", rel)
	dkmsRuns(t, root, 8, "build", "bad/1.0", "-k", rel)
	write(t, filepath.Join(root, "etc/dkms"), "no-autoinstall", "")
	dkmsRuns(t, root, 0, "autoinstall", "-k", rel)
}

// upgradeOfOneKernel is a package that is upgraded as Debian's tools do it, where the new version is installed for one of two
// kernels: the other keeps the old one until it gets the new one too. DKMS leaves that one without.
func upgradeOfOneKernel(t *testing.T) {
	rels := releases(t)
	root := newRoot(t, rels...)
	old := dkmsSource(t, root, "one", "1.0")
	dkmsRuns(t, root, 0, "install", "one/1.0", "-k", rels[0], "-k", rels[1])
	if r := dkmsScript(t, root, "one-dkms.prerm", "remove -m one -v 1.0 --all", "upgrade", "1.1-1"); r.code != 0 {
		t.Fatalf("prerm: exit %d\n%s", r.code, r.stderr)
	}
	dkmsStatusIs(t, root, "one/1.0, "+rels[0]+", x86_64: installed", "one/1.0, "+rels[1]+", x86_64: installed")
	// The same version again: its postinst removes and adds it, which builds nothing.
	postinst := func(code int, args ...string) result {
		t.Helper()
		cmd := dkmsCommand(t, root, args...)
		cmd.Env = append(cmd.Env, "DPKG_MAINTSCRIPT_NAME=postinst")
		r := command(t, cmd)
		if r.code != code {
			t.Fatalf("postinst: dkms %v: exit %d, want %d\n%s", args, r.code, code, r.stderr)
		}
		return r
	}
	postinst(0, "remove", "one/1.0", "--all")
	postinst(0, "add", "one/1.0")
	says(t, postinst(0, "build", "one/1.0", "-k", rels[0]).stderr, "already")
	dkmsStatusIs(t, root, "one/1.0, "+rels[0]+", x86_64: installed", "one/1.0, "+rels[1]+", x86_64: installed")
	os.RemoveAll(old)
	dkmsSource(t, root, "one", "1.1")
	dkmsRuns(t, root, 0, "add", "one/1.1")
	dkmsRuns(t, root, 0, "install", "one/1.1", "-k", rels[0])
	dkmsStatusIs(t, root, "one/1.0, "+rels[0]+", x86_64: built", "one/1.0, "+rels[1]+", x86_64: installed", "one/1.1, "+rels[0]+", x86_64: installed")
	dkmsRuns(t, root, 0, "autoinstall", "-k", rels[1])
	dkmsStatusIs(t, root, "one/1.1, "+rels[0]+", x86_64: installed", "one/1.1, "+rels[1]+", x86_64: installed")

	// The kernel goes, and with it what is for it, index included.
	dkmsRuns(t, root, 0, "kernel_prerm", "-k", rels[1])
	dkmsStatusIs(t, root, "one/1.1, "+rels[0]+", x86_64: installed")
	if text, err := os.ReadFile(filepath.Join(root, "lib/modules", rels[1], "modules.dep")); err != nil || strings.Contains(string(text), "one.ko") {
		t.Errorf("modules.dep has one.ko (%v)", err)
	}
	dkmsRuns(t, root, 0, "remove", "one/1.1", "--all")
	for _, dir := range []string{"var/lib/dkms/one", "var/lib/dkms/.kmodctl", "lib/modules/" + rels[0] + "/updates"} {
		if _, err := os.Stat(filepath.Join(root, dir)); err == nil {
			t.Errorf("%s is still there", dir)
		}
	}
}

// dkmsScript runs a script of a Debian package, of one line, as dpkg does.
func dkmsScript(t *testing.T, root, name, line string, args ...string) result {
	t.Helper()
	cmd := dkmsCommand(t, root)
	dir := t.TempDir()
	write(t, dir, name, "set -e\n"+cmd.Path+" "+line+"\n:\n")
	sh := exec.Command("/bin/sh", append([]string{filepath.Join(dir, name)}, args...)...)
	sh.Env = append(cmd.Env, "DPKG_MAINTSCRIPT_NAME="+strings.TrimPrefix(filepath.Ext(name), "."))
	return command(t, sh)
}

// tarballOfTwo carries what was built for two kernels to a machine that has neither headers nor compiler; DKMS loads
// one of the two.
func tarballOfTwo(t *testing.T) {
	rels := releases(t)
	root := newRoot(t, rels...)
	dkmsSource(t, root, "one", "1.0")
	dkmsRuns(t, root, 3, "mktarball", "one/1.0", "-k", rels[0])
	dkmsRuns(t, root, 0, "build", "one/1.0", "-k", rels[0])
	dkmsRuns(t, root, 6, "mktarball", "one/1.0", "-k", rels[1])
	dkmsRuns(t, root, 0, "build", "one/1.0", "-k", rels[1])
	file := filepath.Join(t.TempDir(), "one.dkms.tar.gz")
	bare := filepath.Join(t.TempDir(), "bare.dkms.tar")
	dkmsRuns(t, root, 0, "mktarball", "one/1.0", "--all", "--archive", file)
	dkmsRuns(t, root, 0, "mktarball", "one/1.0", "--all", "--binaries-only", "--archive="+bare)
	dkmsRuns(t, root, 8, "ldtarball", file)
	want := []string{"one/1.0, " + rels[0] + ", x86_64: built", "one/1.0, " + rels[1] + ", x86_64: built"}
	for _, archive := range []string{file, bare} {
		other := newRoot(t, rels...)
		for _, dir := range []string{"usr/src", "usr/lib/modules/" + rels[0] + "/build", "usr/lib/modules/" + rels[1] + "/build"} {
			if err := os.RemoveAll(filepath.Join(other, dir)); err != nil {
				t.Fatal(err)
			}
		}
		dkmsRuns(t, other, 0, "ldtarball", archive)
		dkmsStatusIs(t, other, want...)
		dkmsRuns(t, other, 0, "install", "one/1.0", "-k", rels[1])
		dkmsStatusIs(t, other, want[0], strings.Replace(want[1], "built", "installed", 1))
	}
	dkmsRuns(t, root, 2, "ldtarball", "--archive", "/no/such")
	write(t, filepath.Dir(bare), "text", "no archive at all")
	dkmsRuns(t, root, 7, "ldtarball", filepath.Join(filepath.Dir(bare), "text"))
}

// TestDKMSScripts runs the scripts of a package that change the machine: only when they are switched on, and when
// nobody but root could have written them. The script is kmodctl itself, for the machine has no shell.
func TestDKMSScripts(t *testing.T) {
	rel := releases(t)[0]
	root := newRoot(t, rel)
	dir := dkmsSource(t, root, "one", "1.0", `PRE_INSTALL="tool version"`, `POST_INSTALL="tool new made"`)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", path, filepath.Join(dir, "tool")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	made := func(want bool) {
		t.Helper()
		if _, err := os.Stat(filepath.Join(dir, "made/kmod.toml")); (err == nil) != want {
			t.Errorf("POST_INSTALL: %v, want it run: %v", err, want)
		}
		os.RemoveAll(filepath.Join(dir, "made"))
	}
	again := func(code int, args ...string) result {
		t.Helper()
		dkmsRuns(t, root, 0, "uninstall", "one/1.0", "-k", rel)
		return dkmsRuns(t, root, code, append([]string{"install", "one/1.0", "-k", rel}, args...)...)
	}
	says(t, dkmsRuns(t, root, 0, "install", "one/1.0", "-k", rel).stderr, "not run: POST_INSTALL of one/1.0, tool new made: scripts of packages are switched off")
	made(false)
	if err := os.MkdirAll(filepath.Join(root, "etc/kmodctl"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "etc/kmodctl"), "config.toml", "[dkms]\nscripts = true\n")
	dkmsRuns(t, root, 0, "uninstall", "one/1.0", "-k", rel)
	says(t, dkmsRuns(t, root, 0, "install", "one/1.0", "-k", rel, "--dry-run").out, "run as root POST_INSTALL of one/1.0, tool new made")
	made(false)
	says(t, again(0).stderr, "running as root POST_INSTALL of one/1.0, tool new made")
	made(true)

	if err := os.Chmod(filepath.Join(dir, "one.c"), 0o666); err != nil {
		t.Fatal(err)
	}
	says(t, again(0).stderr, "others than root may write to")
	made(false)
	if err := os.Chmod(filepath.Join(dir, "one.c"), 0o644); err != nil {
		t.Fatal(err)
	}
	dkmsSource(t, root, "one", "1.0", `PRE_INSTALL="tool nonsense"`, `POST_INSTALL="tool new made"`)
	again(101)
	made(false)
	dkmsStatusIs(t, root, "one/1.0, "+rel+", x86_64: built")
	dkmsRuns(t, root, 0, "install", "one/1.0", "-k", rel, "--force")
	made(true)
	dkmsStatusIs(t, root, "one/1.0, "+rel+", x86_64: installed")
}
