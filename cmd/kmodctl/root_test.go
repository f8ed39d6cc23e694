package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kmodctl/internal/kernel"
)

// series are the kernel series that the tests run on, as Debian 12 has them.
var series = []string{"6.1.", "6.12."}

// releases finds one installed kernel of each series.
func releases(t testing.TB) (out []string) {
	t.Helper()
	all, err := kernel.Find("/")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range series {
		found := ""
		for _, k := range all {
			if strings.HasPrefix(k.Name, s) && k.Tree != nil && k.Image != "" {
				found = k.Name
			}
		}
		if found == "" {
			t.Fatalf("no %s* kernel with headers and image is installed: .ci/setup test", s)
		}
		out = append(out, found)
	}
	return out
}

// someModules are the in-tree modules that a test's root has: few, since depmod
// reads them all, and with a dependency among them (vfat needs fat).
var someModules = []string{"kernel/fs/fat", "kernel/drivers/net/dummy.ko*"}

// newRoot is a machine in a folder: real headers, a few real modules and the real
// image of each release, laid out as Debian does.
func newRoot(t testing.TB, releases ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"usr/src", "usr/lib/modules", "boot", "etc", "var/lib"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("usr/lib", filepath.Join(root, "lib")); err != nil {
		t.Fatal(err)
	}
	put(t, root, "/etc/os-release")
	put(t, root, "/usr/lib/os-release") // which it links to
	headers, _ := filepath.Glob("/usr/src/linux-headers-*")
	kbuild, _ := filepath.Glob("/usr/lib/linux-kbuild-*")
	for _, dir := range append(headers, kbuild...) {
		put(t, root, dir)
	}
	for _, release := range releases {
		put(t, root, "/boot/vmlinuz-"+release)
		base := "/lib/modules/" + release
		for _, pattern := range append(slices.Clone(someModules), "build", "modules.order", "modules.builtin", "modules.builtin.modinfo") {
			found, _ := filepath.Glob(filepath.Join(base, pattern))
			if len(found) == 0 {
				t.Fatalf("%s/%s is missing: .ci/setup test", base, pattern)
			}
			for _, path := range found {
				put(t, root, path)
			}
		}
		if out, err := exec.Command("depmod", "-b", root, release).CombinedOutput(); err != nil {
			t.Fatalf("depmod: %v: %s", err, out)
		}
	}
	return root
}

// put copies path to the same place below root: by hard links where it can.
func put(t testing.TB, root, path string) {
	t.Helper()
	to := filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if exec.Command("cp", "-al", path, to).Run() == nil {
		return
	}
	os.RemoveAll(to)
	if out, err := exec.Command("cp", "-a", path, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}

// exampleDirs are the folders of examples/, and the modules that each makes.
var exampleDirs = map[string][]string{
	"hello": {"hello"}, "params": {"params"}, "stack": {"stack", "stack_user"},
	"chardev": {"chardev"}, "procfs": {"procfs"}, "sysfs": {"sysfs"},
}

// examplePaths are copies of the examples, each a folder that a test may change.
func examplePaths(t testing.TB) (dir string, paths []string) {
	t.Helper()
	dir = t.TempDir()
	for name := range exampleDirs {
		to := filepath.Join(dir, name)
		if err := os.CopyFS(to, os.DirFS(filepath.Join("../../examples", name))); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, to)
	}
	slices.Sort(paths)
	return dir, paths
}
