package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

// TestOriginals builds modules that have the names of the kernel's own: they shadow
// those while they are installed and no longer, by modprobe's word; one that is older
// than the kernel's own is installed by force only.
func TestOriginals(t *testing.T) {
	rel := releases(t)[0]
	root := newRoot(t, rel)
	base := filepath.Join(root, "lib/modules", rel)
	put(t, root, "/lib/modules/"+rel+"/kernel/net/ipv4/tcp_illinois.ko") // it has a version: 1.0
	if out, err := exec.Command("depmod", "-b", root, rel).CombinedOutput(); err != nil {
		t.Fatalf("depmod: %v: %s", err, out)
	}
	km := inRoot(t, root)
	modprobe := func(name, want string) {
		t.Helper()
		out, err := exec.Command("modprobe", "-d", root, "-S", rel, "--show-depends", name).CombinedOutput()
		if err != nil || !strings.Contains(string(out), filepath.Join("/lib/modules", rel, want)) {
			t.Errorf("modprobe would load %q for %s, want %s (%v)", out, name, want, err)
		}
	}
	source := func(name, version string) string {
		dir := filepath.Join(t.TempDir(), name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, dir, "kmod.toml", "name = \""+name+"\"\nversion = \""+version+"\"\n\n[[module]]\nname = \""+name+"\"\n")
		write(t, dir, "Kbuild", "obj-m := "+name+".o\n")
		write(t, dir, name+".c", "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\nMODULE_VERSION(\""+version+"\");\n")
		return dir
	}
	modprobe("dummy", "kernel/drivers/net/dummy.ko")
	says(t, km(0, "build", source("dummy", "1"), "-k", rel).stderr, "installed dummy 1 for "+rel+", shadows kernel/drivers/net/dummy.ko")
	modprobe("dummy", "updates/kmodctl/dummy.ko")

	// The kernel's package is removed under us, and comes back.
	away := filepath.Join(t.TempDir(), "away")
	if err := os.Rename(base, away); err != nil {
		t.Fatal(err)
	}
	says(t, km(0, "status", "dummy").out, "dummy.ko is missing") // its headers are still here
	if out, err := exec.Command("cp", "-a", away, base).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	if err := os.RemoveAll(filepath.Join(base, "updates")); err != nil { // which a fresh package has not
		t.Fatal(err)
	}
	if out, err := exec.Command("depmod", "-b", root, rel).CombinedOutput(); err != nil {
		t.Fatalf("depmod: %v: %s", err, out)
	}
	says(t, km(0, "status", "dummy").out, "damaged", "dummy.ko is missing")
	says(t, km(0, "build", "-q").stderr, "installed dummy 1 for "+rel)
	modprobe("dummy", "updates/kmodctl/dummy.ko")

	says(t, km(0, "uninstall", "dummy").stderr, "uninstalled dummy for "+rel+", modprobe finds again kernel/drivers/net/dummy.ko")
	modprobe("dummy", "kernel/drivers/net/dummy.ko")

	// The kernel's own is newer.
	says(t, km(0, "build", source("tcp_illinois", "0.9"), "-k", rel).stderr,
		"tcp_illinois 0.9 for "+rel+" is built and not installed", "kernel/net/ipv4/tcp_illinois.ko has version 1.0, ours is 0.9")
	modprobe("tcp_illinois", "kernel/net/ipv4/tcp_illinois.ko")
	says(t, km(exitRefused, "install", "tcp_illinois").stderr, "has version 1.0", "kmodctl install tcp_illinois@0.9 -k "+rel+" --force")
	km(0, "install", "tcp_illinois", "--force")
	modprobe("tcp_illinois", "updates/kmodctl/tcp_illinois.ko")
	says(t, km(0, "install", "tcp_illinois").stderr, "nothing to do") // once is enough
}

// TestOriginalsOfOneKernel: a kernel whose folder cannot be looked at keeps no other
// from its modules, and a module that comes with a new version is compared too.
func TestOriginalsOfOneKernel(t *testing.T) {
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	root := t.TempDir()
	broken, sound := "6.1.0-1-amd64", "6.1.0-2-amd64"
	object, err := filepath.Glob("/lib/modules/6.1.*/kernel/net/ipv4/tcp_illinois.ko") // its version is 1.0
	ok(err)
	text, err := os.ReadFile(object[0])
	ok(err)
	file := filepath.Join(t.TempDir(), "x.ko")
	ok(os.WriteFile(file, text, 0o644))
	for _, release := range []string{broken, sound} {
		dir := filepath.Join(root, "lib/modules", release, "kernel")
		ok(os.MkdirAll(dir, 0o755))
		ok(os.WriteFile(filepath.Join(dir, "tcp_illinois.ko"), text, 0o644))
		for _, name := range []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"} {
			ok(os.WriteFile(filepath.Join(dir, "..", name), nil, 0o644))
		}
	}
	ok(os.WriteFile(filepath.Join(root, "lib/modules", broken, "updates"), nil, 0o644))
	put := func(version string, modules ...string) {
		t.Helper()
		dir := t.TempDir()
		write(t, dir, "kmod.toml", "name = \"net\"\nversion = \""+version+"\"\n\n[[module]]\nname = \"net\"\n")
		write(t, dir, "Kbuild", "obj-m := net.o\n")
		must(t, "--root", root, "add", dir)
		reg, err := registry.OpenWriter(t.Context(), filepath.Join(root, "var/lib/kmodctl"), kernel.Root(root), registry.WriterOptions{})
		ok(err)
		for _, release := range []string{broken, sound} {
			art, files := registry.Artifact{Package: "net", Version: version, Release: release, InputHash: version}, map[string]string{}
			for _, m := range modules {
				art.Modules = append(art.Modules, registry.Module{Name: m, File: m + ".ko", Version: "0.9"})
				files[m] = file
			}
			_, err := reg.PutArtifact(t.Context(), art, files)
			ok(err)
		}
		ok(reg.Close())
	}
	put("1", "net")
	r := kmodctl(t, "--root", root, "install", "net")
	says(t, r.stderr, "install net@1 for "+broken+": /lib/modules/"+broken+"/updates is not a folder", "installed net 1 for "+sound)
	if r.code != exitPartly {
		t.Errorf("exit %d", r.code)
	}
	put("2", "net", "tcp_illinois")
	says(t, kmodctl(t, "--root", root, "install", "net", "-k", sound).stderr, "kernel/tcp_illinois.ko has version 1.0, ours is 0.9")
	if got := versionsOf(t, root); got[sound] != "1" {
		t.Errorf("installed: %v", got)
	}
}
