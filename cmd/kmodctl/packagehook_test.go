package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPackageHook is the life of a vendor's package: the arguments are those of deb-postinst(5), deb-prerm(5)
// and rpm's scriptlets.
func TestPackageHook(t *testing.T) {
	rels := releases(t)
	root := newRoot(t, rels...)
	h := hooked{t, root, rels}
	place := func(version, more string) {
		t.Helper()
		dir := filepath.Join(root, "usr/src/hello-"+version)
		if err := os.CopyFS(dir, os.DirFS("../../examples/hello")); err != nil {
			t.Fatal(err)
		}
		write(t, dir, "kmod.toml", "name = \"hello\"\nversion = \""+version+"\"\n"+more)
	}
	gone := func(version string) {
		t.Helper()
		if err := os.RemoveAll(filepath.Join(root, "usr/src/hello-"+version)); err != nil {
			t.Fatal(err)
		}
	}
	hook := func(code int, args ...string) result {
		t.Helper()
		r := kmodctl(t, append([]string{"--root", root, "package-hook"}, args...)...)
		if r.code != code {
			t.Errorf("package-hook %v: exit %d, want %d\n%s%s", args, r.code, code, r.out, r.stderr)
		}
		return r
	}
	version := func(want string) {
		t.Helper()
		for _, p := range statusOf(t, "--root", root).Packages {
			for _, k := range p.Kernels {
				if p.Version == want && k.Installed != want {
					t.Errorf("for %s %q is installed, want %s", k.Release, k.Installed, want)
				}
			}
		}
	}

	place("1", "")
	hook(0, "postinst", "hello", "1", "configure", "")
	h.has(rels...)
	silent(t, hook(0, "postinst", "hello", "1", "configure", "1"))
	silent(t, hook(0, "postinst", "hello", "1", "triggered", "x"))

	// An upgrade: the old modules stay until the new ones are there.
	place("2", "")
	silent(t, hook(0, "prerm", "hello", "1", "upgrade", "2"))
	h.has(rels...)
	gone("1")
	hook(0, "postinst", "hello", "2", "configure", "1")
	version("2")

	// One that does not build breaks nothing, unless the manifest says so.
	place("3", "")
	write(t, filepath.Join(root, "usr/src/hello-3"), "hello.c", "#include <linux/module.h>\nint f(void) { return no_such_thing; }\nMODULE_LICENSE(\"GPL\");\n")
	r := hook(0, "postinst", "hello", "3", "configure", "2")
	if says(t, r.stderr, "no_such_thing"); strings.Count(r.stderr, "\n") != len(rels) {
		t.Errorf("not one line for each kernel:\n%s", r.stderr)
	}
	version("2")
	text := "name = \"hello\"\nversion = \"3\"\nrequired = true\n"
	write(t, filepath.Join(root, "usr/src/hello-3"), "kmod.toml", text)
	hook(exitBuild, "postinst", "hello", "3", "configure", "2")
	gone("3")
	gone("2")

	// Removed with it goes what earlier versions left, and nothing else.
	other := t.TempDir()
	write(t, other, "kmod.toml", "name = \"hello\"\nversion = \"9\"\n")
	write(t, other, "Kbuild", "obj-m := hello.o\n")
	must(t, "--root", root, "add", other)
	hook(0, "prerm", "hello", "3", "deconfigure", "in-favour", "x", "1")
	version("2")
	hook(0, "prerm", "hello", "3", "remove")
	h.has()
	if left := statusOf(t, "--root", root).Packages; len(left) != 1 || left[0].Version != "9" {
		t.Errorf("left: %v", left)
	}
	silent(t, hook(0, "prerm", "hello", "3", "remove"))

	// rpm: 1 is an install, 2 an upgrade; 1 package left is an upgrade, 0 the end.
	must(t, "--root", root, "remove", "hello")
	place("4", "")
	hook(0, "postinst", "hello", "4", "1")
	silent(t, hook(0, "prerm", "hello", "4", "1"))
	h.has(rels...)
	hook(0, "prerm", "hello", "4", "0")
	h.has()

	// No headers yet: the package is known, and the hook of the headers builds it.
	src := filepath.Join(root, "usr/src/linux-headers-")
	for _, release := range rels {
		if err := os.Rename(src+release, src+release+".away"); err != nil {
			t.Fatal(err)
		}
	}
	says(t, hook(0, "postinst", "hello", "4", "configure").stderr, "not built for "+rels[0])
	for _, release := range rels {
		if err := os.Rename(src+release+".away", src+release); err != nil {
			t.Fatal(err)
		}
	}
	must(t, "--root", root, "hook", "headers", rels[0])
	h.has(rels[0])

	hook(exitUsage, "postinst", "hello")
	hook(exitUsage, "preinst", "hello", "4")
	hook(exitFailed, "postinst", "hello", "5", "configure")
}
