package registry

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestInstallReplaceUninstall(t *testing.T) {
	root := newRoot(t)
	empty := snapshot(t, string(root))
	r := writer(t, t.TempDir(), root)
	net1 := mustPut(t, r, "net", "1", "net_core=1", "net_old=1")
	disk := mustPut(t, r, "disk", "1", "disk=1")
	res, err := r.Install(t.Context(), release, []Artifact{net1, disk}, nil)
	must(t, err)
	if len(res.Changes) != 3 || !res.Depmod {
		t.Errorf("first install: %+v", res)
	}
	equal(t, "installed", installed(t, r, root), []string{"disk=1", "net_core=1", "net_old=1"})
	info, err := os.Stat(filepath.Join(string(root), modulesPath(release), "updates/kmodctl/net-core.ko"))
	must(t, err)
	if info.Mode() != 0o644 {
		t.Errorf("mode of net-core.ko: %v", info.Mode())
	}

	net2 := mustPut(t, r, "net", "2", "net_core=2", "net_new=2")
	res, err = r.Install(t.Context(), release, []Artifact{net2, disk}, nil)
	must(t, err)
	var actions []string
	for _, c := range res.Changes {
		actions = append(actions, c.Action+" "+c.Module)
	}
	equal(t, "changes", actions, []string{"replace net_core", "install net_new", "remove net_old"})
	equal(t, "installed", installed(t, r, root), []string{"disk=1", "net_core=2", "net_new=2"})
	as, err := r.Attempts("disk", release, 0)
	must(t, err)
	if len(as) != 1 || as[0].Outcome != "ok" {
		t.Errorf("disk did not change the second time, its attempts: %+v", as)
	}

	_, err = r.Uninstall(t.Context(), release, []string{"net", "unknown"})
	must(t, err)
	equal(t, "installed", installed(t, r, root), []string{"disk=1"})
	_, err = r.Uninstall(t.Context(), release, []string{"disk"})
	must(t, err)
	equal(t, "installed", installed(t, r, root), nil)
	for _, name := range indexFiles {
		os.Remove(filepath.Join(string(root), modulesPath(release), name))
	}
	if now := snapshot(t, string(root)); now != empty {
		t.Errorf("more than the index changed:\n%s\nbefore:\n%s", now, empty)
	}
}

func TestInstallOfTheSameDoesNothing(t *testing.T) {
	root, dir := newRoot(t), t.TempDir()
	r := writer(t, dir, root)
	a := mustPut(t, r, "net", "1", "net=1")
	_, err := r.Install(t.Context(), release, []Artifact{a}, nil)
	must(t, err)
	before, wal := snapshot(t, string(root)), size(t, filepath.Join(dir, "registry.db-wal"))
	res, err := r.Install(t.Context(), release, []Artifact{a}, nil)
	must(t, err)
	if len(res.Changes) != 0 || res.Depmod {
		t.Errorf("second install: %+v", res)
	}
	if _, err := r.Uninstall(t.Context(), release, []string{"unknown"}); err != nil {
		t.Error(err)
	}
	if snapshot(t, string(root)) != before || size(t, filepath.Join(dir, "registry.db-wal")) != wal {
		t.Error("something was written")
	}
	// What somebody broke since is repaired.
	must(t, os.Remove(filepath.Join(string(root), modulesPath(release), "modules.dep")))
	res, err = r.Install(t.Context(), release, []Artifact{a}, nil)
	must(t, err)
	if !res.Depmod {
		t.Error("modules.dep was gone and depmod did not run")
	}
	must(t, os.WriteFile(filepath.Join(string(root), a.path()), []byte("x"), 0o644))
	_, err = r.Install(t.Context(), release, []Artifact{a}, nil)
	must(t, err)
	equal(t, "installed", installed(t, r, root), []string{"net=1"})
}

func (a Artifact) path() string {
	return filepath.Join(modulesPath(a.Release), ourDir, a.Modules[0].File)
}

// A new artifact with the same .ko needs a row, but neither file nor depmod.
func TestInstallOfTheSameFile(t *testing.T) {
	root := newRoot(t)
	r := writer(t, t.TempDir(), root)
	_, err := r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", "1", "net=same")}, nil)
	must(t, err)
	res, err := r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", "2", "net=same")}, nil)
	must(t, err)
	if res.Depmod || len(res.Changes) != 1 || res.Changes[0].Action != "record" {
		t.Errorf("result: %+v", res)
	}
	equal(t, "installed", installed(t, r, root), []string{"net=2"})
}

func TestInstallRefuses(t *testing.T) {
	other := "/etc/kmodctl-registry-test" // never made; only named by links
	tests := []struct {
		name  string
		setup func(t *testing.T, root string, r *Registry)
		want  func(error) bool
	}{
		{"a module of another package", func(t *testing.T, root string, r *Registry) {
			_, err := r.Install(t.Context(), release, []Artifact{mustPut(t, r, "first", "1", "net=0")}, nil)
			must(t, err)
		}, func(err error) bool {
			var e *OwnedError
			return errors.As(err, &e) && e.Module == "net" && e.Owner == "first"
		}},
		{"a foreign file in the way", func(t *testing.T, root string, r *Registry) {
			must(t, os.MkdirAll(filepath.Join(root, modulesPath(release), ourDir), 0o755))
			must(t, os.WriteFile(filepath.Join(root, modulesPath(release), ourDir, "net.ko"), []byte("by hand"), 0o644))
		}, func(err error) bool {
			var e *ForeignError
			return errors.As(err, &e) && strings.HasSuffix(e.Path, "/net.ko")
		}},
		{"a kernel that is not there", func(t *testing.T, root string, r *Registry) {
			must(t, os.RemoveAll(filepath.Join(root, modulesPath(release))))
		}, func(err error) bool { var e *NoModulesError; return errors.As(err, &e) && e.Release == release }},
		{"updates as a link out", func(t *testing.T, root string, r *Registry) {
			must(t, os.Symlink("/etc", filepath.Join(root, modulesPath(release), "updates")))
		}, func(err error) bool { return err != nil && strings.Contains(err.Error(), "updates is not a folder") }},
		{"kmodctl as a link", func(t *testing.T, root string, r *Registry) {
			must(t, os.Mkdir(filepath.Join(root, modulesPath(release), "updates"), 0o755))
			must(t, os.Symlink("../kernel", filepath.Join(root, modulesPath(release), ourDir)))
		}, func(err error) bool {
			return err != nil && strings.Contains(err.Error(), "updates/kmodctl is not a folder")
		}},
		{"an absolute /lib link", func(t *testing.T, root string, r *Registry) {
			must(t, os.Mkdir(filepath.Join(root, "usr"), 0o755))
			must(t, os.Rename(filepath.Join(root, "lib"), filepath.Join(root, "usr/lib")))
			must(t, os.Symlink("/usr/lib", filepath.Join(root, "lib")))
		}, func(err error) bool { var e *LinkError; return errors.As(err, &e) }},
		{"an absolute link to the release", func(t *testing.T, root string, r *Registry) {
			must(t, os.Rename(filepath.Join(root, modulesPath(release)), filepath.Join(root, "real")))
			must(t, os.Symlink("/real", filepath.Join(root, modulesPath(release))))
		}, func(err error) bool { var e *LinkError; return errors.As(err, &e) }},
		{"a link out of the root", func(t *testing.T, root string, r *Registry) {
			must(t, os.RemoveAll(filepath.Join(root, modulesPath(release))))
			must(t, os.Symlink("../../../../../../../.."+other, filepath.Join(root, modulesPath(release))))
		}, func(err error) bool { var e *NoModulesError; return errors.As(err, &e) }},
		{"a damaged blob", func(t *testing.T, root string, r *Registry) {
			a := mustPut(t, r, "net", "1", "net=1")
			flipBit(t, r.BlobPath(a.Modules[0].Digest))
		}, func(err error) bool { var e *CorruptError; return errors.As(err, &e) }},
		{"a row with another record", func(t *testing.T, root string, r *Registry) {
			mustPut(t, r, "disk", "1", "net=evil")
			garble(t, r, `UPDATE artifact SET record = replace((SELECT record FROM artifact WHERE package = 'disk'), 'disk', 'net') WHERE package = 'net'`)
		}, isDamaged},
		{"a row of another kernel", func(t *testing.T, root string, r *Registry) {
			garble(t, r, `UPDATE artifact SET release = '9.9.8'`)
		}, isDamaged},
		{"no depmod", func(t *testing.T, root string, r *Registry) {
			depmodIn(t, t.TempDir())
		}, func(err error) bool { return errors.Is(err, ErrNoDepmod) }},
		{"a depmod that fails", func(t *testing.T, root string, r *Registry) {
			fakeDepmod(t, "echo 'depmod: ERROR: out of luck' >&2; exit 1")
		}, func(err error) bool { return err != nil && strings.Contains(err.Error(), "out of luck") }},
		{"a depmod that leaves half an index", func(t *testing.T, root string, r *Registry) {
			fakeDepmod(t, "echo half > "+filepath.Join(root, modulesPath(release), "modules.dep")+".1.2.3; mv "+
				filepath.Join(root, modulesPath(release), "modules.dep")+"{.1.2.3,}; kill -9 $$")
		}, func(err error) bool { return err != nil && strings.Contains(err.Error(), "killed") }},
		{"a module that depmod.d excludes", func(t *testing.T, root string, r *Registry) {
			must(t, os.MkdirAll(filepath.Join(root, "etc/depmod.d"), 0o755))
			must(t, os.WriteFile(filepath.Join(root, "etc/depmod.d/x.conf"), []byte("search built-in\n"), 0o644))
			must(t, os.WriteFile(filepath.Join(root, modulesPath(release), "kernel/net.ko"), mustObject(t, "in-tree"), 0o644))
		}, func(err error) bool {
			return err != nil && strings.Contains(err.Error(), "out of modules.dep") && errors.As(err, new(*PackageError))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := newRoot(t)
			dir := t.TempDir()
			r := writer(t, dir, root)
			a := mustPut(t, r, "net", "1", "net=1")
			tt.setup(t, string(root), r)
			before, rows := snapshot(t, string(root)), mustInstalls(t, r)
			_, err := r.Install(t.Context(), release, []Artifact{a}, nil)
			if !tt.want(err) {
				t.Fatalf("error: %v", err)
			}
			t.Log(err)
			if now := snapshot(t, string(root)); now != before {
				t.Errorf("the root changed:\n%s\nbefore:\n%s", now, before)
			}
			if len(mustInstalls(t, r)) != len(rows) {
				t.Error("the rows changed")
			}
			if what, _, err := r.Unfinished(); err != nil || len(what) > 0 {
				t.Errorf("unfinished: %q %v", what, err)
			}
		})
	}
}

// A package that cannot be installed is named before anything is done, and the
// others go in without it.
func TestInstallWithoutTheRefused(t *testing.T) {
	root := newRoot(t)
	r := writer(t, t.TempDir(), root)
	_, err := r.Install(t.Context(), release, []Artifact{mustPut(t, r, "first", "1", "taken=0")}, nil)
	must(t, err)
	ours := filepath.Join(string(root), modulesPath(release), ourDir)
	must(t, os.WriteFile(filepath.Join(ours, "byhand.ko"), nil, 0o644))
	damaged, lost := mustPut(t, r, "damaged", "1", "a=a", "b=b"), mustPut(t, r, "lost", "1", "c=c")
	flipBit(t, r.BlobPath(damaged.Modules[1].Digest))
	must(t, os.Remove(r.BlobPath(lost.Modules[0].Digest)))
	unknown := lost
	unknown.Package, unknown.Digest = "unknown", strings.Repeat("0", 64)
	as := []Artifact{
		damaged, lost, unknown, mustPut(t, r, "owned", "1", "taken=1"),
		mustPut(t, r, "foreign", "1", "byhand=1"), mustPut(t, r, "fine", "1", "fine=1"),
	}
	refused := map[string]error{}
	for len(as) > 0 {
		before := snapshot(t, string(root))
		_, err := r.Install(t.Context(), release, as, nil)
		if err == nil {
			break
		}
		var one *PackageError
		if !errors.As(err, &one) || refused[one.Package] != nil {
			t.Fatalf("error: %v", err)
		}
		if snapshot(t, string(root)) != before {
			t.Fatalf("the root changed after: %v", err)
		}
		t.Log(err)
		refused[one.Package] = err
		as = slices.DeleteFunc(as, func(a Artifact) bool { return a.Package == one.Package })
	}
	var corrupt *CorruptError
	var owned *OwnedError
	var foreign *ForeignError
	if !errors.As(refused["damaged"], &corrupt) || !errors.Is(refused["lost"], os.ErrNotExist) || refused["unknown"] == nil ||
		!errors.As(refused["owned"], &owned) || !errors.As(refused["foreign"], &foreign) || len(refused) != 5 {
		t.Errorf("refused: %v", refused)
	}
	if drifts, err := r.Look(root); err != nil || len(drifts) != 1 || drifts[0].Kind != "foreign" {
		t.Errorf("drifts: %+v %v", drifts, err)
	}
	if rows := mustInstalls(t, r); len(rows) != 2 || rows[0].Package != "fine" || rows[1].Package != "first" {
		t.Errorf("installed: %+v", rows)
	}
	history, err := r.Attempts("", "", 0)
	must(t, err)
	if len(history) != 2 { // of first and fine
		t.Errorf("attempts: %+v", history)
	}
}

// A failure in the middle brings back the files and the index of before.
func TestInstallRollsBack(t *testing.T) {
	root := newRoot(t)
	r := writer(t, t.TempDir(), root)
	_, err := r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", "1", "net=1", "old=1")}, nil)
	must(t, err)
	before := snapshot(t, string(root))
	next := mustPut(t, r, "net", "2", "net=2", "fresh=2")
	dep := filepath.Join(string(root), modulesPath(release), "modules.dep")
	fakeDepmod(t, "echo half > "+dep+".new && mv "+dep+".new "+dep+"; exit 3")
	if _, err := r.Install(t.Context(), release, []Artifact{next}, nil); err == nil {
		t.Fatal("a failing depmod was no error")
	}
	if now := snapshot(t, string(root)); now != before {
		t.Errorf("the root changed:\n%s\nbefore:\n%s", now, before)
	}
	equal(t, "installed", installed(t, r, root), []string{"net=1", "old=1"})
	as, err := r.Attempts("net", "", 1)
	must(t, err)
	if as[0].Outcome != "failed" || !strings.Contains(as[0].Error, "depmod") {
		t.Errorf("attempt: %+v", as[0])
	}
}

func TestInstallCancelled(t *testing.T) {
	root := newRoot(t)
	r := writer(t, t.TempDir(), root)
	a := mustPut(t, r, "net", "1", "net=1")
	before := snapshot(t, string(root))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Install(ctx, release, []Artifact{a}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error: %v", err)
	}
	if snapshot(t, string(root)) != before {
		t.Error("the root changed")
	}
}

func TestUninstallAfterTheKernelIsGone(t *testing.T) {
	root := newRoot(t)
	r := writer(t, t.TempDir(), root)
	_, err := r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", "1", "net=1")}, nil)
	must(t, err)
	must(t, os.RemoveAll(filepath.Join(string(root), modulesPath(release))))
	drifts, err := r.Look(root)
	must(t, err)
	if len(drifts) != 1 || drifts[0].Kind != "missing" {
		t.Errorf("drifts: %+v", drifts)
	}
	res, err := r.Uninstall(t.Context(), release, []string{"net"})
	must(t, err)
	if len(res.Changes) != 1 || len(mustInstalls(t, r)) != 0 {
		t.Errorf("result: %+v", res)
	}
}

func TestLook(t *testing.T) {
	root, dir := newRoot(t), t.TempDir()
	r := writer(t, dir, root)
	_, err := r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", "1", "gone=1", "changed=1", "fine=1", "hidden=1")}, nil)
	must(t, err)
	ours := filepath.Join(string(root), modulesPath(release), ourDir)
	must(t, os.Remove(filepath.Join(ours, "gone.ko")))
	must(t, os.WriteFile(filepath.Join(ours, "changed.ko"), []byte("x"), 0o644))
	must(t, os.WriteFile(filepath.Join(ours, "mine.txt"), nil, 0o644))
	dep := filepath.Join(string(root), modulesPath(release), "modules.dep")
	text, err := os.ReadFile(dep)
	must(t, err)
	must(t, os.WriteFile(dep, []byte(strings.ReplaceAll(string(text), "hidden", "other")), 0o644))
	drifts, err := reader(t, dir).Look(root)
	must(t, err)
	var got []string
	for _, d := range drifts {
		got = append(got, d.Kind+" "+filepath.Base(d.Path))
	}
	equal(t, "drifts", got, []string{"modified changed.ko", "missing gone.ko", "unindexed hidden.ko", "foreign mine.txt"})
}

func FuzzReadIndex(f *testing.F) {
	f.Add("updates/kmodctl/a.ko: kernel/b.ko\nkernel/c.ko:\n")
	f.Add("updates/kmodctl/a.ko:")
	f.Add(":\n\x00")
	f.Fuzz(func(t *testing.T, text string) {
		names, err := readIndex(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		for name, file := range names {
			if moduleName(file) != name || !strings.Contains(text, file+":") {
				t.Errorf("%q of %q is not in the text", name, file)
			}
		}
	})
}

// The index is readable by everyone whatever the umask is, and PATH names no
// depmod.
func TestIndexIsForEveryone(t *testing.T) {
	root := newRoot(t)
	r := writer(t, t.TempDir(), root)
	a := mustPut(t, r, "net", "1", "net=1")
	bin := tree(t, "depmod!=#!/bin/sh\nexit 1\n")
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	defer unix.Umask(unix.Umask(0o077))
	_, err := r.Install(t.Context(), release, []Artifact{a}, nil)
	must(t, err)
	found := 0
	for _, name := range indexFiles {
		info, err := os.Stat(filepath.Join(string(root), modulesPath(release), name))
		if errors.Is(err, os.ErrNotExist) {
			continue // not every depmod writes them all
		}
		must(t, err)
		found++
		if info.Mode() != 0o644 {
			t.Errorf("%s: %v", name, info.Mode())
		}
	}
	if found < 4 {
		t.Errorf("%d files of an index", found)
	}
}

// depmod gets the lock, and no descriptor that our caller forgot to close.
func TestDepmodInheritsTheLockAlone(t *testing.T) {
	root, dir, seen := newRoot(t), t.TempDir(), filepath.Join(t.TempDir(), "seen")
	r := writer(t, dir, root)
	mustPut(t, r, "net", "1", "net=1")
	must(t, r.Close())
	forgotten, err := os.Create(filepath.Join(t.TempDir(), "forgotten"))
	must(t, err)
	defer forgotten.Close()
	bin := fakeDepmod(t, `for fd in /proc/$$/fd/*; do readlink $fd; done >`+seen+`; exec /usr/sbin/depmod "$@"`)
	cmd := helper("install", dir, string(root), bin)
	cmd.ExtraFiles = []*os.File{forgotten, forgotten} // 3 will be the lock
	must(t, cmd.Run())
	text, err := os.ReadFile(seen)
	must(t, err)
	if strings.Contains(string(text), "forgotten") || !strings.Contains(string(text), filepath.Join(dir, lockFile)+"\n") {
		t.Errorf("depmod's files:\n%s", text)
	}
}

// fakeDepmod has a shell script run in place of depmod, and returns its folder.
func fakeDepmod(t *testing.T, script string) string {
	t.Helper()
	look := `[ "${@: -1}" = -n ] && exec /usr/sbin/depmod "$@"` // what would be indexed
	dir := tree(t, "depmod!=#!/bin/bash\n"+look+"\n"+script+"\n")
	depmodIn(t, dir)
	return dir
}

// depmodIn has depmod looked for in dir alone.
func depmodIn(t *testing.T, dir string) {
	places := depmodPlaces
	depmodPlaces = []string{dir}
	t.Cleanup(func() { depmodPlaces = places })
}

func mustInstalls(t *testing.T, r *Registry) []Install {
	t.Helper()
	rows, err := r.Installs()
	must(t, err)
	return rows
}

func mustObject(t *testing.T, mark string) []byte {
	t.Helper()
	text, err := object(mark, 0)
	must(t, err)
	return text
}

// garble changes rows as a bad disk would.
func garble(t *testing.T, r *Registry, query string) {
	t.Helper()
	_, err := r.db.Exec(query)
	must(t, err)
}

func isDamaged(err error) bool { var e *DamagedError; return errors.As(err, &e) }

func flipBit(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	text[len(text)/2] ^= 4
	must(t, os.WriteFile(file, text, 0o444))
}

func size(t *testing.T, file string) int64 {
	t.Helper()
	info, err := os.Stat(file)
	must(t, err)
	return info.Size()
}

// A file of the module's name at the top of the release is not ours.
func TestCovers(t *testing.T) {
	m := &modules{inside: modulesPath(release)}
	rows := []Install{{Module: "net", Path: m.path("updates/kmodctl/net.ko")}}
	for file, want := range map[string]bool{"updates/kmodctl/net.ko": true, "net.ko": false, "kmodctl/net.ko": false, "kernel/net.ko": false, "": false} {
		if got := m.covers(map[string]string{"net": file}, rows); got != want {
			t.Errorf("%q: %v", file, got)
		}
	}
}
