package registry

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// An install that was cut off, and that depmod's configuration does not allow any more, is
// taken back: it must not wait for ever and hold up every package of that kernel.
func TestCutOffAndExcluded(t *testing.T) {
	root, dir := newRoot(t), t.TempDir()
	r := writer(t, dir, root)
	_, err := r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", "1", "net=1")}, nil)
	must(t, err)
	mustPut(t, r, "net", "2", "net=2")
	disk := mustPut(t, r, "disk", "1", "disk=1")
	must(t, r.Close())
	bin := tree(t, "depmod!=#!/bin/bash\n[ \"${@: -1}\" = -n ] && exec /usr/sbin/depmod \"$@\"\nkill -9 $PPID\n")
	if err := helper("rollback", dir, string(root), bin, "2").Run(); err == nil {
		t.Fatal("it was not killed")
	}
	base := filepath.Join(string(root), modulesPath(release))
	must(t, os.WriteFile(filepath.Join(base, "kernel/net.ko"), mustObject(t, "own"), 0o644))
	conf := filepath.Join(string(root), "etc/depmod.d")
	must(t, os.MkdirAll(conf, 0o755))
	must(t, os.WriteFile(filepath.Join(conf, "x.conf"), []byte("override net * kernel\n"), 0o644))
	r = writer(t, dir, root)
	if got := r.Recovered(); !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "undid rollback") }) {
		t.Errorf("recovered: %q", got)
	}
	if what, _, err := r.Unfinished(); err != nil || len(what) > 0 {
		t.Errorf("unfinished: %q, %v", what, err)
	}
	_, err = r.Install(t.Context(), release, []Artifact{disk}, nil)
	must(t, err)
	equal(t, "rows", rowsOf(t, r), []string{"disk=1 " + release, "net=1 " + release})
	drifts, err := r.Verify(t.Context(), root)
	if must(t, err); len(drifts) != 1 || drifts[0].Kind != DriftUnindexed || drifts[0].Module != "net" {
		t.Errorf("verify: %+v", drifts)
	}
}

// Where nothing can be renamed, an uninstall fails and is over: nothing of it is left for the
// next command to carry out.
func TestUninstallRefused(t *testing.T) {
	root, dir := newRoot(t), t.TempDir()
	r := writer(t, dir, root)
	_, err := r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", "1", "net=1")}, nil)
	must(t, err)
	base := filepath.Join(string(root), modulesPath(release))
	must(t, unix.Mount(base, base, "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(base, unix.MNT_DETACH) })
	must(t, unix.Mount("", base, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if _, err := r.Uninstall(t.Context(), release, []string{"net"}); err == nil {
		t.Fatal("it said yes")
	}
	if what, _, err := r.Unfinished(); err != nil || len(what) > 0 {
		t.Errorf("unfinished: %q, %v", what, err)
	}
	as, err := r.Attempts("net", release, 1)
	if must(t, err); as[0].Op != OpUninstall || as[0].Outcome != OutcomeFailed {
		t.Errorf("attempt: %+v", as[0])
	}
	must(t, unix.Unmount(base, unix.MNT_DETACH))
	must(t, r.Close())
	equal(t, "installed", installed(t, writer(t, dir, root), root), []string{"net=1"})
}

// On a machine without a registry there is something to verify: files in our folders.
func TestVerifyWithoutRegistry(t *testing.T) {
	root := newRoot(t)
	ours := filepath.Join(string(root), modulesPath(release), ourDir)
	must(t, os.MkdirAll(ours, 0o755))
	must(t, os.WriteFile(filepath.Join(ours, "net.ko"), nil, 0o644))
	drifts, err := reader(t, filepath.Join(t.TempDir(), "none")).Verify(t.Context(), root)
	if must(t, err); len(drifts) != 1 || drifts[0].Kind != DriftForeign {
		t.Errorf("verify: %+v", drifts)
	}
}

// A link that leads nowhere, as weak-updates leaves them, is nothing that is shadowed, and keeps
// no repair from its work.
func TestRepairBesideDanglingLink(t *testing.T) {
	root := newRoot(t)
	r := writer(t, t.TempDir(), root)
	_, err := r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", "1", "net=1")}, nil)
	must(t, err)
	base := filepath.Join(string(root), modulesPath(release))
	must(t, os.Mkdir(filepath.Join(base, "weak-updates"), 0o755))
	must(t, os.Symlink("/gone/net.ko", filepath.Join(base, "weak-updates/net.ko")))
	must(t, r.refresh(release))
	originals, err := r.Originals()
	if must(t, err); len(originals) > 0 {
		t.Errorf("originals: %+v", originals)
	}
}

// A kernel that cannot be looked at is not gone: nothing of it is forgotten.
func TestKernelOnFailingDisk(t *testing.T) {
	root := newRoot(t)
	base := filepath.Join(string(root), modulesPath(release))
	for _, name := range kernelFiles {
		must(t, os.RemoveAll(filepath.Join(base, name)))
	}
	if kernelHere(root, release) {
		t.Error("nothing of it is left, and it is here")
	}
	must(t, os.Symlink("kernel", filepath.Join(base, "kernel"))) // ELOOP stands for EIO
	if !kernelHere(root, release) {
		t.Error("it is taken for gone")
	}
}

// What was uninstalled and lies there again, as from a backup, is foreign: not the database has
// lost a row.
func TestUninstalledFileIsBack(t *testing.T) {
	root := newRoot(t)
	r := writer(t, t.TempDir(), root)
	a := mustPut(t, r, "net", "1", "net=1")
	_, err := r.Install(t.Context(), release, []Artifact{a}, nil)
	must(t, err)
	file := filepath.Join(string(root), modulesPath(release), ourDir, "net.ko")
	text, err := os.ReadFile(file)
	must(t, err)
	_, err = r.Uninstall(t.Context(), release, []string{"net"})
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(file), 0o755))
	must(t, os.WriteFile(file, text, 0o644))
	drifts, err := r.Verify(t.Context(), root)
	if must(t, err); len(drifts) != 1 || drifts[0].Kind != DriftForeign || drifts[0].Object != ObjectInstalled {
		t.Errorf("verify: %+v", drifts)
	}
}
