package vm

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Without its PVH note a kernel would still boot, slower by its own unpacking.
func TestInstalledKernelsBootUnpacked(t *testing.T) {
	for _, series := range []string{"6.1", "6.12"} {
		_, image := release(t, series)
		f, err := openKernel(image)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if f.Name() == image || !hasPVH(f) {
			t.Errorf("%s is booted as %s", image, f.Name())
		}
	}
}

func TestUnpackedKernelIsKept(t *testing.T) {
	_, image := release(t, "6.12")
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	unused := filepath.Join(cache, "kmodctl", "vmlinux-unused")
	other := filepath.Join(cache, "kmodctl", "other")
	if err := os.Mkdir(filepath.Dir(unused), 0o755); err != nil {
		t.Fatal(err)
	}
	longAgo := time.Now().AddDate(0, 0, -31)
	for _, name := range []string{unused, other} {
		if err := os.WriteFile(name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, longAgo, longAgo); err != nil {
			t.Fatal(err)
		}
	}
	first, second := inode(t, image), inode(t, image)
	if !os.SameFile(first, second) {
		t.Error("the kernel was unpacked again")
	}
	kept, err := filepath.Glob(filepath.Join(cache, "kmodctl", "*"))
	if err != nil || len(kept) != 2 || kept[0] != other {
		t.Errorf("the cache holds %v; want the new kernel and what is not ours", kept)
	}

	t.Setenv("XDG_CACHE_HOME", filepath.Join(other, "no folder"))
	if unkept := inode(t, image); unkept.Size() != first.Size() {
		t.Errorf("without a cache it has %d bytes, with one %d", unkept.Size(), first.Size())
	}
}

func inode(t *testing.T, image string) os.FileInfo {
	t.Helper()
	f, err := openKernel(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info
}
