package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A module of the kernel's own, and one of another package, are recorded when ours
// shadow them, not touched, and named again when ours go: with an index before and
// without, and through an upgrade.
func TestOriginals(t *testing.T) {
	for _, indexed := range []bool{true, false} {
		root, dir := newRoot(t), t.TempDir()
		mods := filepath.Join(string(root), modulesPath(release))
		must(t, os.MkdirAll(filepath.Join(mods, "extra"), 0o755))
		must(t, os.WriteFile(filepath.Join(mods, "kernel/net-core.ko"), mustObject(t, "in-tree"), 0o644))
		must(t, os.WriteFile(filepath.Join(mods, "extra/disk.ko"), mustObject(t, "another package's"), 0o644))
		r := writer(t, dir, root)
		if indexed { // as a kernel's package leaves it
			m, err := openModules(root, release)
			must(t, err)
			cmd, err := depmodCommand(root, m)
			must(t, err)
			must(t, cmd.Run())
			must(t, m.Close())
		}
		before := snapshot(t, filepath.Join(mods, "kernel")) + snapshot(t, filepath.Join(mods, "extra"))
		net1, disk := mustPut(t, r, "net", "1", "net_core=1"), mustPut(t, r, "disk", "1", "disk=1", "other=1")
		res, err := r.Install(t.Context(), release, []Artifact{net1, disk}, nil)
		must(t, err)
		want := []string{"net_core shadows kernel/net-core.ko", "disk shadows extra/disk.ko", "other shadows "}
		equal(t, "shadowed", changedOriginals(t, res), want)

		_, err = r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", "2", "net_core=2")}, nil)
		must(t, err)
		known, err := reader(t, dir).Originals()
		must(t, err)
		var got []string
		for _, o := range known {
			text, err := os.ReadFile(filepath.Join(string(root), o.Path))
			must(t, err)
			if sum := sha256.Sum256(text); o.Digest != hex.EncodeToString(sum[:]) || o.Size != int64(len(text)) {
				t.Errorf("original: %+v", o)
			}
			got = append(got, o.Module+" "+o.Path)
		}
		equal(t, "recorded", got, []string{"disk " + modulesPath(release) + "/extra/disk.ko", "net_core " + modulesPath(release) + "/kernel/net-core.ko"})

		res, err = r.Uninstall(t.Context(), release, []string{"net", "disk"})
		must(t, err)
		found := changedOriginals(t, res)
		slices.Sort(found)
		slices.Sort(want)
		equal(t, "found again", found, want)
		if now := snapshot(t, filepath.Join(mods, "kernel")) + snapshot(t, filepath.Join(mods, "extra")); now != before {
			t.Error("the originals were touched")
		}
		if known, err := r.Originals(); err != nil || len(known) > 0 {
			t.Errorf("left after uninstall: %+v %v", known, err)
		}
	}
}

// changedOriginals tells what each change says of another file's module.
func changedOriginals(t *testing.T, res Result) (out []string) {
	t.Helper()
	for _, c := range res.Changes {
		file, err := filepath.Rel(modulesPath(release), c.Original)
		if err != nil {
			file = ""
		}
		out = append(out, c.Module+" shadows "+file)
	}
	return out
}

// A link to another release's module, as weak-updates has them, is shadowed like a file.
func TestOriginalIsALink(t *testing.T) {
	root, dir := newRoot(t), t.TempDir()
	mods, other := filepath.Join(string(root), modulesPath(release)), filepath.Join(string(root), modulesPath("9.9.8"))
	text := mustObject(t, "built for the release before")
	must(t, os.MkdirAll(filepath.Join(other, "extra"), 0o755))
	must(t, os.WriteFile(filepath.Join(other, "extra/disk.ko"), text, 0o644))
	must(t, os.Mkdir(filepath.Join(mods, "weak-updates"), 0o755))
	must(t, os.Symlink(modulesPath("9.9.8")+"/extra/disk.ko", filepath.Join(mods, "weak-updates/disk.ko")))
	must(t, os.WriteFile(filepath.Join(mods, "modules.dep"), []byte("weak-updates/disk.ko:\n"), 0o644))
	r := writer(t, dir, root)
	_, err := r.Install(t.Context(), release, []Artifact{mustPut(t, r, "disk", "1", "disk=1")}, nil)
	must(t, err)
	known, err := r.Originals()
	must(t, err)
	want := Original{Release: release, Module: "disk", Path: modulesPath(release) + "/weak-updates/disk.ko", Digest: hexOf(text), Size: int64(len(text))}
	if len(known) != 1 || known[0] != want {
		t.Errorf("originals: %+v", known)
	}
}

// The kernel's package upgrades or removes what ours shadows: the next install records that.
func TestOriginalChanges(t *testing.T) {
	root, dir := newRoot(t), t.TempDir()
	file := filepath.Join(string(root), modulesPath(release), "kernel/net.ko")
	must(t, os.WriteFile(file, mustObject(t, "in-tree"), 0o644))
	r := writer(t, dir, root)
	install := func(version string) []Original {
		t.Helper()
		_, err := r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", version, "net="+version)}, nil)
		must(t, err)
		known, err := r.Originals()
		must(t, err)
		return known
	}
	install("1")
	must(t, os.WriteFile(file, mustObject(t, "upgraded"), 0o644))
	if known := install("2"); len(known) != 1 || known[0].Digest != hexOf(mustObject(t, "upgraded")) {
		t.Errorf("upgraded: %+v", known)
	}
	must(t, os.Remove(file))
	if known := install("3"); len(known) != 0 {
		t.Errorf("removed: %+v", known)
	}
}
