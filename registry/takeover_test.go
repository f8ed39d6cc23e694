package registry

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ulikunitz/xz"
)

// TestTakeOver makes rows of a module that another program has installed, compressed: nothing of it is touched, verify finds
// nothing, and it goes like any other. What is not there as it was said is refused, and leaves no row.
func TestTakeOver(t *testing.T) {
	root, dir := newRoot(t), filepath.Join(t.TempDir(), "registry")
	r := writer(t, dir, root)
	base := filepath.Join(string(root), modulesPath(release))
	text, err := object("there", 0)
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(base, "updates/dkms"), 0o755))
	f, err := os.Create(filepath.Join(base, "updates/dkms/a.ko.xz"))
	must(t, err)
	z, err := xz.NewWriter(f)
	must(t, err)
	_, err = z.Write(text)
	must(t, errors.Join(err, z.Close(), f.Close()))

	must(t, os.MkdirAll(filepath.Join(base, "kernel"), 0o755))
	must(t, os.WriteFile(filepath.Join(base, "kernel/a.ko"), text, 0o644))
	if out, err := exec.Command("depmod", "-b", string(root), release).CombinedOutput(); err != nil {
		t.Fatalf("depmod: %v: %s", err, out)
	}

	a := Artifact{Package: "pkg", Version: "1", Release: release, InputHash: "1", Modules: []Module{{Name: "a", File: "a.ko", Place: "updates/dkms"}}}
	plain := filepath.Join(t.TempDir(), "a.ko")
	must(t, os.WriteFile(plain, text, 0o600))
	a, err = r.PutArtifact(t.Context(), a, map[string]string{"a": plain})
	must(t, err)
	m, err := openModules(root, release)
	must(t, err)
	defer m.Close()
	sum, err := digestFile(m.tree, "updates/dkms/a.ko.xz")
	must(t, err)
	row := Install{Module: "a", Path: modulesPath(release) + "/updates/dkms/a.ko.xz", Digest: sum}
	original := Original{Release: release, Module: "a", Path: modulesPath(release) + "/kernel/a.ko", Digest: a.Modules[0].Digest, Size: int64(len(text))}

	var other *CorruptError
	wrong := row
	wrong.Digest = a.Modules[0].Digest
	if err := r.TakeOver(t.Context(), a, []Install{wrong}, nil); !errors.As(err, &other) {
		t.Errorf("a file that is another one: %v", err)
	}
	wrong = row
	wrong.Path = modulesPath(release) + "/updates/dkms/../../../../../../etc/passwd"
	if err := r.TakeOver(t.Context(), a, []Install{wrong}, nil); err == nil {
		t.Error("a file outside was taken over")
	}
	if rows, err := r.Installs(); err != nil || len(rows) > 0 {
		t.Fatalf("rows after errors: %v (%v)", rows, err)
	}

	before := snapshot(t, base)
	must(t, r.TakeOver(t.Context(), a, []Install{row}, []Original{original}))
	if after := snapshot(t, base); after != before {
		t.Error("something in /lib/modules changed")
	}
	b := mustPut(t, r, "other", "1", "a=b")
	var owned *OwnedError
	if err := r.TakeOver(t.Context(), b, []Install{row}, nil); !errors.As(err, &owned) {
		t.Errorf("a module of another package: %v", err)
	}
	drifts, err := r.Verify(t.Context(), root)
	must(t, err)
	if len(drifts) > 0 {
		t.Errorf("verify: %+v", drifts)
	}
	shadowed, err := r.Originals()
	must(t, err)
	if len(shadowed) != 1 || shadowed[0] != original {
		t.Errorf("originals: %+v", shadowed)
	}
	var used *InUseError
	if err := r.RemoveArtifacts("pkg", "1", release); !errors.As(err, &used) {
		t.Errorf("the artifacts of what is installed: %v", err)
	}
	_, err = r.Uninstall(t.Context(), release, []string{"pkg"})
	must(t, err)
	must(t, r.RemoveArtifacts("pkg", "1", release))
	if _, ok, err := r.Artifact("pkg", "1", release); ok || err != nil {
		t.Errorf("the artifact is still there (%v)", err)
	}
	for _, digest := range []string{a.Digest, a.Modules[0].Digest} {
		if _, err := os.Stat(r.BlobPath(digest)); err == nil {
			t.Errorf("blob %s is left", digest)
		}
	}
	equal(t, "installed", installed(t, r, root), nil)
}

// TestPutBack never writes over a file, nor outside of the release.
func TestPutBack(t *testing.T) {
	root := newRoot(t)
	own := modulesPath(release) + "/kernel/drivers/a.ko"
	for i, want := range []bool{true, false} {
		put, err := PutBack(root, release, own, strings.NewReader([]string{"first", "second"}[i]))
		if put != want || err != nil {
			t.Errorf("put back %v, want %v (%v)", put, want, err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(string(root), own)); string(text) != "first" {
		t.Errorf("it is %q (%v)", text, err)
	}
	for _, bad := range []string{"/etc/passwd", modulesPath(release) + "/../8.8.8/a.ko", modulesPath(release) + "/modules.dep", "a.ko"} {
		if _, err := PutBack(root, release, bad, strings.NewReader("")); err == nil {
			t.Errorf("%s was written", bad)
		}
	}
}
