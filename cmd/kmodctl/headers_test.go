package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kmodctl/internal/ko"
)

// otherRelease is a kernel of which nothing is installed anywhere.
const otherRelease = "6.1.0-99-other"

// packDeb makes a .deb of what lay puts below a root. Its scripts must not be run.
func packDeb(t *testing.T, name, compression string, lay func(root string)) string {
	t.Helper()
	root := t.TempDir()
	lay(root)
	control := "Package: " + name + "\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: test\n"
	ran := root + "/a-script-was-run"
	plant(t, root, map[string]string{"DEBIAN/control": control, "DEBIAN/preinst": "#!/bin/sh\ntouch " + ran, "DEBIAN/postinst": "#!/bin/sh\ntouch " + ran})
	t.Cleanup(func() {
		if _, err := os.Stat(ran); err == nil {
			t.Errorf("a script of %s was run", name)
		}
	})
	deb := filepath.Join(t.TempDir(), name+".deb")
	if out, err := exec.Command("dpkg-deb", "-z1", "-Z"+compression, "-b", root, deb).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v: %s", err, out)
	}
	return deb
}

// plant writes files that may be run; "-> x" is a link to x.
func plant(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if to, link := strings.CutPrefix(text, "-> "); link {
			err = errors.Join(err, os.RemoveAll(path), os.Symlink(to, path))
		} else {
			err = errors.Join(err, os.WriteFile(path, []byte(text), 0o755))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// otherPackages are the three packages that Debian would have the headers of otherRelease in:
// those of this machine's kernel 6.1 under other names, and with another CRC of _printk. So what is
// built with them was built with nothing of this machine's.
func otherPackages(t *testing.T) []string {
	t.Helper()
	real := releases(t)[0]
	tree := "/usr/src/linux-headers-" + real
	makefile, err := os.ReadFile(tree + "/Makefile")
	if err != nil {
		t.Fatal(err)
	}
	common := filepath.Dir(strings.TrimPrefix(strings.TrimSpace(string(makefile)), "include "))
	scripts, err := filepath.EvalSymlinks(tree + "/scripts")
	if err != nil {
		t.Fatal(err)
	}
	rename := func(path string, pairs ...string) {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		changed := strings.NewReplacer(pairs...).Replace(string(text))
		if changed == string(text) {
			t.Fatalf("%s has none of %q", path, pairs)
		}
		if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte(changed), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	copyTree := func(from, to string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if exec.Command("cp", "-al", from, to).Run() == nil {
			return
		}
		os.RemoveAll(to)
		if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
	}
	const src, kbuild = "/usr/src/linux-headers-", "linux-kbuild-6.1-other"
	parts := map[string]string{"scripts": "-> ../../lib/" + kbuild + "/scripts", "tools": "-> ../../lib/" + kbuild + "/tools"}
	return []string{
		packDeb(t, "linux-headers-"+otherRelease, "xz", func(root string) {
			to := root + src + otherRelease
			copyTree(tree, to)
			rename(to+"/Makefile", common, src+"6.1.0-99-common")
			rename(to+"/.kernelvariables", real, otherRelease)
			rename(to+"/include/generated/utsrelease.h", real, otherRelease)
			rename(to+"/Module.symvers", realCRC(t, to, "_printk"), "0x12345678\t_printk\t")
			plant(t, to, parts)
			plant(t, root, map[string]string{"lib/modules/" + otherRelease + "/build": "-> " + src + otherRelease})
		}),
		packDeb(t, "linux-headers-6.1.0-99-common", "zstd", func(root string) {
			for _, part := range []string{"Makefile", "include", "arch/x86"} {
				copyTree(filepath.Join(common, part), filepath.Join(root+src+"6.1.0-99-common", part))
			}
			plant(t, root+src+"6.1.0-99-common", parts)
		}),
		packDeb(t, kbuild, "gzip", func(root string) { copyTree(filepath.Dir(scripts), root+"/usr/lib/"+kbuild) }),
	}
}

// realCRC is the beginning of the line of a symbol in Module.symvers.
func realCRC(t *testing.T, tree, symbol string) string {
	t.Helper()
	text, err := os.ReadFile(tree + "/Module.symvers")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if crc, rest, _ := strings.Cut(line, "\t"); strings.HasPrefix(rest, symbol+"\t") {
			return crc + "\t" + symbol + "\t"
		}
	}
	t.Fatalf("no %s in %s", symbol, tree)
	return ""
}

// given puts --headers before each file.
func given(files ...string) (args []string) {
	for _, f := range files {
		args = append(args, "--headers", f)
	}
	return args
}

// places lists all names of a root but those of the registry.
func places(t *testing.T, root string) (names []string) {
	t.Helper()
	out, err := exec.Command("find", root, "-path", root+"/var/lib/kmodctl", "-prune", "-o", "-print").Output()
	if err != nil {
		t.Fatal(err)
	}
	names = strings.Fields(string(out))
	slices.Sort(names)
	return names
}

func TestHeaders(t *testing.T) {
	packages := otherPackages(t)
	for name, test := range map[string]func(*testing.T, []string){
		"build": testBuildWithHeaders, "killed": testHeadersKilled, "in a folder": testHeadersInAFolder,
	} {
		t.Run(name, func(t *testing.T) { test(t, slices.Clone(packages)) })
	}
}

// Modules for a kernel that is not here are built with its packages alone, and kept; the packages
// are not installed. Once the kernel comes, they are only installed.
func testBuildWithHeaders(t *testing.T, packages []string) {
	root := newRoot(t, releases(t)[0])
	in := func(args ...string) []string { return append([]string{"--root", root}, args...) }
	before := places(t, root)
	r := must(t, in(append([]string{"build", "../../examples/hello", "--dry-run"}, given(packages...)...)...)...)
	if !strings.Contains(r.out, "build hello 1.0.0 for "+otherRelease) || !slices.Equal(places(t, root), before) {
		t.Errorf("dry run: %s", r.out)
	}
	r = must(t, in(append([]string{"build", "../../examples/hello"}, given(packages...)...)...)...)
	_, path, _ := strings.Cut(r.stderr, "hello.ko: ")
	path, _, _ = strings.Cut(path, "\n")
	info, err := ko.Open(path)
	if err != nil {
		t.Fatal(err, r.stderr)
	}
	printk := func(i ko.Import) bool { return i.Name == "_printk" && i.CRC == 0x12345678 }
	if info.Release() != otherRelease || !slices.ContainsFunc(info.Imports, printk) {
		t.Errorf("built for %q, with the symbols %+v", info.Vermagic, info.Imports)
	}
	if after := places(t, root); !slices.Equal(after, before) {
		t.Errorf("something was installed: %q, before: %q", after, before)
	}

	// The same packages, in another order, are neither unpacked nor used again.
	slices.Reverse(packages)
	if r := must(t, in(append([]string{"build", "hello"}, given(packages...)...)...)...); r.stderr != "nothing to do: 1 artifact current\n" {
		t.Errorf("again: %s", r.stderr)
	}
	// What is done each night knows nothing of that kernel, and takes nothing of its artifact.
	if r := must(t, in("build")...); strings.Contains(r.stderr, otherRelease) || !strings.Contains(r.stderr, "installed hello") {
		t.Errorf("a night's build: %s", r.stderr)
	}
	must(t, in("verify")...)
	if r := must(t, in("repair")...); strings.Contains(r.stderr, otherRelease) {
		t.Errorf("repair: %s", r.stderr)
	}
	if r := must(t, in("gc", "--grace", "0s")...); !strings.Contains(r.stderr, "removed headers ") || strings.Contains(r.stderr, "removed hello") {
		t.Errorf("gc: %s", r.stderr)
	}
	if left, err := os.ReadDir(filepath.Join(root, "var/lib/kmodctl/headers")); err != nil || len(left) > 0 {
		t.Errorf("unpacked headers are left: %v %v", left, err)
	}

	// The kernel comes, by its packages.
	for _, p := range packages {
		if out, err := exec.Command("dpkg-deb", "--fsys-tarfile", p).Output(); err != nil {
			t.Fatal(err)
		} else if err := untar(root, out); err != nil {
			t.Fatal(err)
		}
	}
	modules := filepath.Join(root, "lib/modules", otherRelease)
	if err := os.CopyFS(modules+"/kernel", os.DirFS(filepath.Join("/lib/modules", releases(t)[0], "kernel/lib/crypto"))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"} {
		if err := os.WriteFile(filepath.Join(modules, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r = must(t, in("build")...)
	installed, err := os.ReadFile(filepath.Join(modules, "updates/kmodctl/hello.ko"))
	if err != nil || strings.Contains(r.stderr, "built hello") {
		t.Fatalf("%v\n%s", err, r.stderr)
	}
	if kept, err := os.ReadFile(path); err != nil || !bytes.Equal(kept, installed) {
		t.Errorf("what is installed is not what was built: %v", err)
	}
}

// untar unpacks a tar archive as dpkg would.
func untar(root string, archive []byte) error {
	cmd := exec.Command("tar", "-x", "--keep-directory-symlink", "-C", root)
	cmd.Stdin = bytes.NewReader(archive)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("tar: %w: %s", err, out)
	}
	return nil
}

// What is missing of a kernel's headers is named, and no half of them is kept.
func TestHeadersThatAreIncomplete(t *testing.T) {
	const tree, common = "usr/src/linux-headers-" + otherRelease, "usr/src/linux-headers-6.1.0-99-common"
	var packages []string
	for _, p := range []struct {
		name  string
		files map[string]string
	}{
		{"linux-headers-" + otherRelease, map[string]string{
			tree + "/Makefile": "include /" + common + "/Makefile\n", tree + "/.config": "CONFIG_X86_64=y\n", tree + "/Module.symvers": "",
			tree + "/scripts": "-> ../../lib/linux-kbuild-6.1-other/scripts"}},
		{"linux-headers-6.1.0-99-common", map[string]string{common + "/Makefile": ""}},
		{"linux-kbuild-6.1-other", map[string]string{"usr/lib/linux-kbuild-6.1-other/scripts/basic/fixdep": ""}},
	} {
		packages = append(packages, packDeb(t, p.name, "gzip", func(root string) { plant(t, root, p.files) }))
	}
	root := t.TempDir()
	must(t, "--root", root, "add", "../../examples/hello")
	for _, tt := range []struct {
		files []string
		code  int
		want  []string
	}{
		{packages[:2], exitFailed, []string{"/usr/lib/linux-kbuild-6.1-other/scripts does not exist", "try:  --headers FILE too, the package linux-kbuild-6.1-other"}},
		{[]string{packages[0], packages[2]}, exitFailed, []string{"/usr/src/linux-headers-6.1.0-99-common/Makefile does not exist", "try:  --headers FILE too, the package linux-headers-6.1.0-99-common"}},
		{packages[1:], exitFailed, []string{"find kernels: none in /lib/modules or /usr/src of linux-headers-6.1.0-99-common.deb, linux-kbuild-6.1-other.deb"}},
		{[]string{"headers_test.go"}, exitFailed, []string{"headers_test.go: is neither a .deb nor an .rpm"}},
		{[]string{"nowhere.deb"}, exitFailed, []string{"nowhere.deb: no such file or directory"}},
	} {
		r := kmodctl(t, append([]string{"--root", root, "build", "hello"}, given(tt.files...)...)...)
		if r.code != tt.code {
			t.Errorf("%q: exit %d: %s", tt.files, r.code, r.stderr)
		}
		for _, want := range tt.want {
			if !strings.Contains(r.stderr, want) {
				t.Errorf("%q: no %q in:\n%s", tt.files, want, r.stderr)
			}
		}
		for _, dir := range []string{"headers", "work"} {
			if left, err := os.ReadDir(filepath.Join(root, "var/lib/kmodctl", dir)); len(left) > 0 {
				t.Errorf("%q: %s has %v, %v", tt.files, dir, left, err)
			}
		}
	}
	r := kmodctl(t, append([]string{"--root", root, "build", "hello", "-k", "6.1.0-98-other"}, given(packages...)...)...)
	if r.code != exitNotFound || !strings.Contains(r.stderr, otherRelease) {
		t.Errorf("another release: exit %d: %s", r.code, r.stderr)
	}
}

// Killed while it unpacks, a build leaves nothing that is taken for headers.
func testHeadersKilled(t *testing.T, packages []string) {
	root := t.TempDir()
	must(t, "--root", root, "add", "../../examples/hello")
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{"--root", root, "build", "hello"}, given(packages...)...)
	cmd := exec.Command(program, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	unpacking := filepath.Join(root, "var/lib/kmodctl/work/headers-*/usr/src/*/Makefile")
	for found := []string(nil); len(found) == 0; {
		found, _ = filepath.Glob(unpacking)
		if kept, _ := filepath.Glob(filepath.Join(root, "var/lib/kmodctl/headers/*")); len(kept) > 0 {
			t.Fatal("it was never seen unpacking")
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	if kept, _ := filepath.Glob(filepath.Join(root, "var/lib/kmodctl/headers/*")); len(kept) > 0 {
		t.Errorf("half of them is kept: %v", kept)
	}
	if r := must(t, args...); !strings.Contains(r.stderr, "recovered: removed work folder headers-") || !strings.Contains(r.stderr, "built hello") {
		t.Errorf("the next build: %s", r.stderr)
	}
}

// The headers may lie in a folder: the root of another machine, or a build tree by itself.
func testHeadersInAFolder(t *testing.T, packages []string) {
	root, machine := t.TempDir(), t.TempDir()
	for _, p := range packages {
		if out, err := exec.Command("dpkg-deb", "-x", p, machine).CombinedOutput(); err != nil {
			t.Fatalf("dpkg-deb: %v: %s", err, out)
		}
	}
	r := must(t, append([]string{"--root", root, "build", "../../examples/hello"}, given(machine)...)...)
	if !strings.Contains(r.stderr, "built hello 1.0.0 for "+otherRelease) {
		t.Errorf("a root: %s", r.stderr)
	}
	// Of the same headers the same artifact: a tree needs no root around it.
	tree := filepath.Join(t.TempDir(), "tree")
	build, err := filepath.EvalSymlinks(filepath.Join("/lib/modules", releases(t)[0], "build"))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", build, tree).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	for _, part := range []string{"scripts", "tools"} {
		to, err := filepath.EvalSymlinks(filepath.Join(build, part))
		if err := errors.Join(err, os.Remove(filepath.Join(tree, part)), os.Symlink(to, filepath.Join(tree, part))); err != nil {
			t.Fatal(err)
		}
	}
	r = must(t, append([]string{"--root", root, "build", "hello"}, given(tree)...)...)
	if !strings.Contains(r.stderr, "built hello 1.0.0 for "+releases(t)[0]) {
		t.Errorf("a tree: %s", r.stderr)
	}
	if r := kmodctl(t, append([]string{"--root", root, "build", "hello"}, given(machine, machine)...)...); r.code != exitUsage {
		t.Errorf("the same twice: exit %d: %s", r.code, r.stderr)
	}
}
