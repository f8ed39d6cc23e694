package main

import (
	"os"
	"path/filepath"
	"testing"

	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

// TestLoadPinned: of what is not installed, load takes what install would: the version
// or the one build that is pinned for the kernel, or for every kernel, else the newest.
func TestLoadPinned(t *testing.T) {
	reg, err := registry.OpenWriter(t.Context(), t.TempDir(), kernel.Root(t.TempDir()), registry.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	const here, other = "6.1.0-1-amd64", "6.12.0-1-amd64"
	added := map[string]bool{}
	build := func(pkg, version, release, text string) registry.Artifact {
		t.Helper()
		dir := t.TempDir()
		if !added[pkg+"@"+version] {
			added[pkg+"@"+version] = true
			manifest := write(t, dir, "kmod.toml", pkg+version)
			if _, _, err := reg.AddSource(t.Context(), dir, pkg, version, manifest); err != nil {
				t.Fatal(err)
			}
		}
		write(t, dir, "x.ko", text)
		art, err := reg.PutArtifact(t.Context(), registry.Artifact{Package: pkg, Version: version, Release: release,
			Modules: []registry.Module{{Name: pkg, File: pkg + ".ko"}}}, map[string]string{pkg: filepath.Join(dir, "x.ko")})
		if err != nil {
			t.Fatal(err)
		}
		return art
	}
	first := build("stack", "1.0", here, "stack 1.0, first build")
	build("stack", "1.0", here, "stack 1.0")
	build("stack", "1.1", here, "stack 1.1")
	build("stack", "1.1", other, "stack 1.1 there")
	build("stack", "1.2", other, "stack 1.2 there")
	build("user", "1", here, "user 1")
	build("user", "2", here, "user 2")
	for _, c := range []struct {
		pin         registry.Pin
		stack, user string // what is loaded here, "" when nothing is
		there       string // the stack of the other kernel
	}{
		{registry.Pin{}, "stack 1.1", "user 2", "stack 1.2 there"}, // 1.2 is not built here
		{registry.Pin{Package: "stack", Version: "1.0"}, "stack 1.0", "user 2", ""},
		{registry.Pin{Package: "stack", Version: "1.1", Release: other}, "stack 1.0", "user 2", "stack 1.1 there"},
		{registry.Pin{Package: "stack", Version: "1.0", Release: here, Artifact: first.Digest}, "stack 1.0, first build", "user 2", "stack 1.1 there"},
		{registry.Pin{Package: "user", Version: "1"}, "stack 1.0, first build", "user 1", "stack 1.1 there"},
		{registry.Pin{Package: "stack", Version: "1.2", Release: here}, "", "user 1", "stack 1.1 there"},
	} {
		if c.pin.Version != "" {
			if err := reg.SetPin(c.pin); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range []struct{ module, release, text string }{{"stack", here, c.stack}, {"user", here, c.user}, {"stack", other, c.there}} {
			k, err := (&env{root: "/"}).modulesOf(reg, want.release)
			if err != nil {
				t.Fatal(err)
			}
			text := ""
			if path, ok := k.find(want.module); ok {
				read, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				text = string(read)
			}
			if text != want.text {
				t.Errorf("after the pin %+v: of %s for %s %q is loaded, want %q", c.pin, want.module, want.release, text, want.text)
			}
		}
	}
}
