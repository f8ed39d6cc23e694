package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// scripted is a machine with a shell, two kernels, and a package one-1.0 in /usr/src that has each of the scripts
// that change the machine. They note that they were run.
type scripted struct {
	t    *testing.T
	root string
	rels []string
	dir  string
}

const scriptLines = `POST_ADD="note.sh post_add"
PRE_INSTALL="note.sh pre_install $kernelver"
POST_INSTALL="note.sh post_install $kernelver"
POST_REMOVE="note.sh post_remove $kernelver"`

func newScripted(t *testing.T) scripted {
	t.Helper()
	m := scripted{t: t, rels: releases(t)}
	m.root = newRoot(t, m.rels...)
	for _, file := range []string{"/bin/sh", "/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"} {
		to := filepath.Join(m.root, file)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("cp", "-L", file, to).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	m.switchTo(true)
	m.dir = m.source("1.0")
	return m
}

func (m scripted) switchTo(on bool) {
	m.t.Helper()
	dir := filepath.Join(m.root, "etc/kmodctl")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		m.t.Fatal(err)
	}
	text := ""
	if on {
		text = "[dkms]\nscripts = true\n"
	}
	write(m.t, dir, "config.toml", text)
}

// source puts a version of the package into /usr/src.
func (m scripted) source(version string) (dir string) {
	m.t.Helper()
	dir = dkmsSource(m.t, m.root, "one", version, scriptLines)
	m.script(dir, `echo "$@" >>/ran`)
	return dir
}

// script makes note.sh of a folder.
func (m scripted) script(dir, body string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "note.sh"), []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		m.t.Fatal(err)
	}
}

// km runs kmodctl, which must exit with code.
func (m scripted) km(code int, line string) result {
	m.t.Helper()
	r := kmodctl(m.t, append([]string{"--root", m.root}, strings.Fields(line)...)...)
	if r.code != code {
		m.t.Fatalf("kmodctl %s: exit %d, want %d\n%s%s", line, r.code, code, r.out, r.stderr)
	}
	return r
}

func (m scripted) dkms(code int, line string) result {
	m.t.Helper()
	return dkmsRuns(m.t, m.root, code, strings.Fields(line)...)
}

// ran holds the scripts that have run since the last call, with their arguments, to want; R stands for the first kernel. Those of
// several kernels may come in any order.
func (m scripted) ran(want ...string) {
	m.t.Helper()
	file := filepath.Join(m.root, "ran")
	text, _ := os.ReadFile(file)
	os.Remove(file)
	got := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(text) == 0 {
		got = nil
	}
	for i, w := range want {
		want[i] = strings.Replace(w, " R", " "+m.rels[0], 1)
	}
	if strings.Contains(strings.Join(want, ""), m.rels[1]) {
		slices.Sort(got)
		slices.Sort(want)
	}
	if !slices.Equal(got, want) {
		m.t.Errorf("scripts run: %q, want %q", got, want)
	}
}

func (m scripted) installed(want bool) {
	m.t.Helper()
	_, err := os.Stat(filepath.Join(m.root, "lib/modules", m.rels[0], "updates/dkms/one.ko"))
	if (err == nil) != want {
		m.t.Errorf("one.ko: %v, want it there: %v", err, want)
	}
}

// TestConfScripts goes every way by which a package comes and goes: each runs its scripts once.
func TestConfScripts(t *testing.T) {
	m := newScripted(t)
	rel := m.rels[0]
	both := func(ops ...string) (all []string) {
		for _, op := range ops {
			all = append(all, op+" "+m.rels[0], op+" "+m.rels[1])
		}
		return all
	}

	says(t, m.km(0, "add "+m.dir+" --dry-run").out, "run as root POST_ADD of one/1.0, note.sh post_add")
	m.ran()
	m.km(0, "add "+m.dir)
	m.ran("post_add")
	m.km(0, "add "+m.dir)
	m.ran()
	says(t, m.km(0, "build one --dry-run -k "+rel).out, "run as root PRE_INSTALL of one/1.0, note.sh pre_install "+rel, "run as root POST_INSTALL of one/1.0")
	m.ran()
	says(t, m.km(0, "build one -k "+rel).stderr, "running as root PRE_INSTALL", "running as root POST_INSTALL")
	m.ran("pre_install R", "post_install R")
	m.km(0, "build one -k "+rel)
	m.km(0, "install one -k "+rel)
	m.ran()
	says(t, m.km(0, "uninstall one --dry-run").out, "run as root POST_REMOVE of one/1.0")
	m.km(0, "uninstall one")
	m.ran("post_remove R")
	m.km(0, "install one -k "+rel)
	m.ran("pre_install R", "post_install R")
	says(t, m.km(0, "history one").out, "post_add", "pre_install", "post_install", "post_remove")

	// Another version, and back.
	next := m.source("1.1")
	m.km(0, "build "+next+" -k "+rel)
	m.ran("post_add", "pre_install R", "post_install R")
	says(t, m.km(0, "rollback one --dry-run").out, "run as root PRE_INSTALL of one/1.0", "run as root POST_INSTALL of one/1.0")
	m.ran()
	m.km(0, "rollback one")
	m.ran("pre_install R", "post_install R")
	says(t, m.km(0, "remove one --dry-run").out, "run as root POST_REMOVE of one/1.0")
	m.km(0, "remove one")
	m.ran("post_remove R")
	m.installed(false)
	os.RemoveAll(next)

	// The scripts of a vendor's package, and the hooks of kernels.
	m.km(0, "package-hook postinst one 1.0 configure")
	m.ran(append(both("pre_install", "post_install"), "post_add")...)
	m.km(0, "package-hook postinst one 1.0 configure 1.0")
	m.ran()
	m.km(0, "hook remove "+rel)
	m.ran("post_remove R")
	m.km(0, "hook add "+rel)
	m.ran("pre_install R", "post_install R")
	m.km(0, "hook add "+rel)
	m.ran()
	m.km(0, "package-hook prerm one 1.0 remove")
	m.ran(both("post_remove")...)

	// The commands of DKMS.
	says(t, m.dkms(0, "add one/1.0 --dry-run").out, "run as root POST_ADD of one/1.0")
	m.dkms(0, "add one/1.0")
	m.ran("post_add")
	m.dkms(0, "build one/1.0 -k "+rel)
	m.ran()
	m.dkms(0, "install one/1.0 -k "+rel)
	m.ran("pre_install R", "post_install R")
	m.dkms(0, "autoinstall -k "+rel)
	m.ran()
	m.dkms(0, "uninstall one/1.0 -k "+rel)
	m.ran("post_remove R")
	m.dkms(0, "autoinstall -k "+rel)
	m.ran("pre_install R", "post_install R")
	m.dkms(0, "kernel_prerm -k "+rel)
	m.ran("post_remove R")
	m.dkms(0, "install one/1.0 -k "+rel)
	m.ran("pre_install R", "post_install R")
	m.dkms(0, "remove one/1.0 --all")
	m.ran("post_remove R")
}

// TestConfScriptsRefused is what keeps scripts from being run: it is said, and the modules come all the same.
func TestConfScriptsRefused(t *testing.T) {
	m := newScripted(t)
	rel := m.rels[0]
	off := "scripts of packages are switched off"
	m.switchTo(false)
	says(t, m.km(0, "build "+m.dir+" --dry-run -k "+rel).out, "not run POST_ADD of one/1.0, note.sh post_add: "+off, "not run POST_INSTALL of one/1.0")
	says(t, m.km(0, "build "+m.dir+" -k "+rel).stderr, "not run: POST_ADD of one/1.0, note.sh post_add: "+off, "not run: PRE_INSTALL", "not run: POST_INSTALL")
	says(t, m.km(0, "hook remove "+rel).stderr, "not run: POST_REMOVE of one/1.0, note.sh post_remove "+rel+": "+off)
	says(t, m.dkms(0, "install one/1.0 -k "+rel).stderr, "not run: POST_INSTALL", off)
	m.installed(true)

	m.switchTo(true)
	note := filepath.Join(m.dir, "note.sh")
	again := func(why string) {
		t.Helper()
		m.km(0, "uninstall one")
		says(t, m.km(0, "hook add "+rel).stderr, "not run: POST_INSTALL of one/1.0, note.sh post_install "+rel+": "+why)
		m.installed(true)
	}
	change := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	change(os.Chown(filepath.Join(m.dir, "one.c"), 12345, 0))
	again("others than root may write to ")
	change(os.Chown(filepath.Join(m.dir, "one.c"), 0, 0))
	change(os.Chmod(filepath.Join(m.root, "usr/src"), 0o777))
	again("others than root may write to ")
	change(os.Chmod(filepath.Join(m.root, "usr/src"), 0o755))
	change(os.Chmod(note, 0o644))
	again("it is not executable")
	change(os.Remove(note))
	change(os.Symlink("/bin/sh", note))
	again("it leads out of /usr/src/one-1.0")
	change(os.Remove(note))
	again("it is not there")
	m.ran()
}

// TestConfScriptsFail is a PRE_INSTALL that says no, which keeps its package alone from being installed, and a
// POST_INSTALL that fails, which is told and recorded. Neither breaks a package manager.
func TestConfScriptsFail(t *testing.T) {
	m := newScripted(t)
	rel := m.rels[0]
	dkmsSource(t, m.root, "two", "1.0")
	m.script(m.dir, `echo too new for us; [ $1 != pre_install ]`)
	m.km(0, "add "+m.dir)
	m.km(0, "add "+filepath.Join(m.root, "usr/src/two-1.0"))
	says(t, m.km(0, "hook add "+rel).stderr, "run PRE_INSTALL of one/1.0, note.sh pre_install "+rel+": exit status 1: too new for us", "installed two 1.0")
	m.installed(false)
	says(t, m.km(0, "history one").out, "pre_install", "failed")
	m.km(exitFailed, "build one -k "+rel)
	m.dkms(101, "install one/1.0 -k "+rel)
	m.km(exitFailed, "hook add --strict "+rel)
	m.installed(false)
	m.dkms(0, "install one/1.0 --force -k "+rel)
	m.installed(true)

	m.km(0, "uninstall one")
	m.script(m.dir, `echo no such bus; [ $1 = pre_install ]`)
	says(t, m.km(0, "hook add "+rel).stderr, "installed one 1.0", "run POST_INSTALL of one/1.0, note.sh post_install "+rel+": exit status 1: no such bus")
	m.installed(true)
	says(t, m.km(0, "hook remove "+rel).stderr, "run POST_REMOVE of one/1.0")
	m.dkms(1, "install one/1.0 -k "+rel)
	m.installed(true)
	m.km(0, "package-hook prerm one 1.0 remove")
	says(t, m.km(0, "package-hook postinst one 1.0 configure").stderr, "run POST_ADD of one/1.0, note.sh post_add: exit status 1")
	m.installed(true)
}

// TestOwnFiles is an administrator's own patch and scripts in /etc/dkms/NAME, of DKMS 3.4: they go over those of the package, and a
// change of one builds anew.
func TestOwnFiles(t *testing.T) {
	m := newScripted(t)
	rel := m.rels[0]
	dkmsSource(t, m.root, "one", "1.0", scriptLines, `PATCH[0]="word.patch"`, `PRE_BUILD="prepare.sh"`)
	own := filepath.Join(m.root, "etc/dkms/one")
	for _, dir := range []string{own + "/patches", m.dir + "/patches"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	patch := func(word string) {
		t.Helper()
		write(t, own+"/patches", "word.patch", "--- a/one.c\n+++ b/one.c\n@@ -1,1 +1,2 @@\n #include <linux/module.h>\n+MODULE_INFO(word, \""+word+"\");\n")
	}
	write(t, m.dir+"/patches", "word.patch", "one that fits nothing\n")
	patch("first")
	if err := os.WriteFile(own+"/prepare.sh", []byte("#!/bin/sh\necho own prepare\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.script(own, `echo own "$1" >>/ran`)

	m.km(0, "build "+m.dir+" -k "+rel)
	m.ran("own post_add", "own pre_install", "own post_install")
	says(t, m.km(0, "log one").out, "own prepare")
	ko := filepath.Join(m.root, "lib/modules", rel, "updates/dkms/one.ko")
	word := func(want string) {
		t.Helper()
		if text, err := os.ReadFile(ko); err != nil || !strings.Contains(string(text), "word="+want) {
			t.Errorf("one.ko has no word=%s (%v)", want, err)
		}
	}
	word("first")
	m.km(0, "build one -k "+rel)
	m.ran()
	patch("second")
	m.km(0, "build one -k "+rel)
	word("second")
	m.ran("own pre_install", "own post_install")

	if err := os.Chown(own+"/note.sh", 12345, 0); err != nil {
		t.Fatal(err)
	}
	says(t, m.km(0, "uninstall one").stderr, "not run: POST_REMOVE", "others than root may write to ")
	m.ran()
}

// TestDKMSFramework is what an administrator of DKMS has beside the packages: post_transaction of framework.conf, directives on
// the command line, packages that are installed in any case; and what has no effect here is said.
func TestDKMSFramework(t *testing.T) {
	m := newScripted(t)
	rel := m.rels[0]
	etc := filepath.Join(m.root, "etc/dkms")
	force := filepath.Join(m.root, "usr/share/dkms/modules_to_force_install")
	for _, dir := range []string{etc, force} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, etc, "framework.conf", "post_transaction='echo transaction $kernelver >>/ran; echo done'\nsymlink_modules=y\nsource_tree=/usr/src\n")
	r := m.dkms(0, "install one/1.0 -k "+rel)
	says(t, r.stderr, "note: symlink_modules of framework.conf is passed over", "running as root post_transaction")
	if strings.Contains(r.stderr, "source_tree") {
		t.Errorf("a usual value is told:\n%s", r.stderr)
	}
	m.ran("post_add", "pre_install R", "post_install R", "transaction R")
	m.dkms(0, "install one/1.0 -k "+rel)
	m.ran()
	says(t, m.km(0, "uninstall one --dry-run").out, "run as root post_transaction of framework.conf for "+rel)
	m.km(0, "uninstall one")
	m.ran("post_remove R", "transaction R")
	if text, err := os.ReadFile(filepath.Join(m.root, "var/lib/dkms/post_transaction.log")); string(text) != "done\ndone\n" {
		t.Errorf("its log is %q, %v", text, err)
	}
	m.km(0, "hook add "+rel)
	m.ran("pre_install R", "post_install R", "transaction R")
	m.km(0, "hook remove "+rel) // the kernel goes: an initramfs of it would stay for ever
	m.ran("post_remove R")
	write(t, etc, "framework.conf", "")

	// A directive holds for the one command.
	make := "MAKE=make -C $kernel_source_dir M=${dkms_tree}/one/1.0/build KCFLAGS=-DSAID"
	dkmsRuns(t, m.root, 0, "build", "one/1.0", "-k", rel, "--directive", make)
	says(t, m.km(0, "log one").out, "KCFLAGS=-DSAID")
	m.dkms(0, "build one/1.0 -k "+rel)
	if text := m.km(0, "log one").out; strings.Contains(text, "SAID") {
		t.Errorf("it holds on:\n%s", text)
	}
	says(t, m.dkms(2, "build one/1.0 -k "+rel+" --directive BUILT_MODULE_NAMES=x").stderr, "BUILT_MODULE_NAMES is no directive of a dkms.conf (nearest: BUILT_MODULE_NAME)")

	// The kernel has a newer one.
	m.script(m.dir, `[ $1 != pre_install ]`)
	m.dkms(101, "install one/1.0 -k "+rel)
	write(t, force, "vendor", "other one\n")
	m.dkms(0, "install one/1.0 -k "+rel)
	m.installed(true)
	m.km(0, "uninstall one")
	m.script(m.dir, "")
	write(t, force, "vendor", "")
	older := filepath.Join(m.root, "lib/modules", rel, "updates/dkms/one.ko")
	m.dkms(0, "install one/1.0 -k "+rel)
	text, err := os.ReadFile(older)
	if err != nil {
		t.Fatal(err)
	}
	m.km(0, "uninstall one")
	place := filepath.Join(m.root, "lib/modules", rel, "extra")
	if err := os.MkdirAll(place, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, place, "one.ko", strings.Replace(string(text), "version=1.0", "version=9.0", 1))
	if out, err := exec.Command("depmod", "-b", m.root, rel).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m.dkms(6, "install one/1.0 -k "+rel)
	m.installed(false)
	write(t, force, "vendor", "one_version-override\n")
	says(t, m.dkms(0, "install one/1.0 -k "+rel).stderr, "has version 9.0, ours is 1.0")
	m.installed(true)
}
