package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestConfFaultAlone: a dkms.conf that cannot be read fails its own package, and the others are built and
// installed. DKMS's autoinstall ends at the first such.
func TestConfFaultAlone(t *testing.T) {
	rel := releases(t)[0]
	root := newRoot(t, rel)
	for _, name := range []string{"aaa", "bbb"} {
		dir := t.TempDir()
		write(t, dir, "dkms.conf", "PACKAGE_NAME="+name+"\nPACKAGE_VERSION=1\nDEST_MODULE_LOCATION=/updates\nAUTOINSTALL=yes\n")
		write(t, dir, "Kbuild", "obj-m := "+name+".o\n")
		write(t, dir, name+".c", oddSource)
		if r := kmodctl(t, "--root", root, "add", dir); r.code != 0 {
			t.Fatalf("add: %s", r.stderr)
		}
	}
	admin := filepath.Join(root, "etc/dkms")
	if err := os.MkdirAll(admin, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, admin, "aaa.conf", "DEST_MODULE_LOCATION=/opt\n")
	r := kmodctl(t, "--root", root, "build")
	if r.code != exitPartly {
		t.Errorf("exit %d, want %d: %s", r.code, exitPartly, r.stderr)
	}
	says(t, r.stderr, `DEST_MODULE_LOCATION[0] is "/opt": it begins with /kernel, /updates or /extra`)
	if _, err := os.Stat(filepath.Join(root, "lib/modules", rel, "updates/dkms/bbb.ko")); err != nil {
		t.Error(err)
	}
}

// TestConfEachModule: of two modules the one that the kernel is for is built. To DKMS 3.4 what the first module's
// BUILD_EXCLUSIVE_KERNEL says is everybody's, and it builds neither.
func TestConfEachModule(t *testing.T) {
	rel := releases(t)[0]
	root, dir := newRoot(t, rel), t.TempDir()
	write(t, dir, "dkms.conf", `PACKAGE_NAME=pair
PACKAGE_VERSION=1
BUILT_MODULE_NAME[0]=old
BUILT_MODULE_NAME[1]=new
DEST_MODULE_LOCATION[0]=/updates
DEST_MODULE_LOCATION[1]=/updates
BUILD_EXCLUSIVE_KERNEL[0]='^5\.'
BUILD_EXCLUSIVE_KERNEL[1]='^6\.'
`)
	write(t, dir, "Kbuild", "obj-m := new.o\n")
	write(t, dir, "new.c", oddSource)
	if r := kmodctl(t, "--root", root, "build", dir); r.code != 0 {
		t.Fatalf("exit %d: %s", r.code, r.stderr)
	}
	found, err := filepath.Glob(filepath.Join(root, "lib/modules", rel, "updates/dkms/*"))
	if err != nil || len(found) != 1 || filepath.Base(found[0]) != "new.ko" {
		t.Errorf("%v, %v", found, err)
	}
}
