package registry

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tree writes files given as path=content; a path that ends in ! is executable,
// one with -> is a symbolic link.
func tree(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range files {
		if name, target, ok := strings.Cut(f, "->"); ok {
			must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
			must(t, os.Symlink(target, filepath.Join(dir, name)))
			continue
		}
		name, text, _ := strings.Cut(f, "=")
		mode := os.FileMode(0o640)
		if name, ok := strings.CutSuffix(name, "!"); ok {
			mode = 0o700
			f = name
		} else {
			f = name
		}
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, f)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, f), []byte(text), mode))
	}
	return dir
}

func TestDigestDependsOnContentAlone(t *testing.T) {
	a := tree(t, "Kbuild=obj-m := a.o", "a.c=int a;", "sub/gen!=#!/bin/sh", "sub/link->../a.c", "later->built.c")
	b := tree(t, "later->built.c", "sub/link->../a.c", "sub/gen!=#!/bin/sh", "a.c=int a;", "Kbuild=obj-m := a.o",
		// version control, and what kbuild left
		".git/config=x", "sub/.svn/x=x", ".a.o.cmd=x", "a.o=x", "a.ko=x", "a.mod=x", "a.mod.c=x", "modules.order=x",
		"Module.symvers=x", ".tmp_versions/a.mod=x", "sub/..made.cmd=x", "sub/.made=x")
	must(t, os.Chtimes(filepath.Join(b, "a.c"), time.Unix(5, 0), time.Unix(5, 0)))
	must(t, os.Chmod(filepath.Join(b, "a.c"), 0o666))
	must(t, os.Mkdir(filepath.Join(b, "empty"), 0o755))
	da, files, err := Digest(t.Context(), a)
	must(t, err)
	db, _, err := Digest(t.Context(), b)
	must(t, err)
	if da != db {
		t.Errorf("digests of equal sources differ: %s, %s", da, db)
	}
	var got []string
	for _, f := range files {
		got = append(got, f.Path)
	}
	equal(t, "files", got, []string{"Kbuild", "a.c", "later", "sub/gen", "sub/link"})
	// It must not change with the Go release: every source would look changed.
	if want := "27d1d044c723aa92ff3cd5a2c7c2eee6f0986bb916a3c3fdf6d404252a1b4b84"; da != want {
		t.Errorf("digest %s, want %s", da, want)
	}
	for _, change := range []func() error{
		func() error { return os.WriteFile(filepath.Join(b, "a.c"), []byte("int b;"), 0o644) },
		func() error { return os.Chmod(filepath.Join(b, "Kbuild"), 0o755) },
		func() error { return os.Rename(filepath.Join(b, "a.c"), filepath.Join(b, "b.c")) },
	} {
		must(t, change())
		next, _, err := Digest(t.Context(), b)
		must(t, err)
		if next == db {
			t.Error("a change did not change the digest")
		}
		db = next
	}
}

// fewReads is cancelled after so many looks at it.
type fewReads struct {
	context.Context
	left int
}

func (c *fewReads) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// One big file must not keep Ctrl-C waiting.
func TestDigestCancelled(t *testing.T) {
	dir := tree(t, "image="+strings.Repeat("x", 1<<20))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Digest(&fewReads{ctx, 5}, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("error: %v", err)
	}
}

func TestDigestRefuses(t *testing.T) {
	pipe := tree(t, "a.c=")
	must(t, unix.Mkfifo(filepath.Join(pipe, "pipe"), 0o644))
	big := tree(t, "sub/disk.img=")
	must(t, os.Truncate(filepath.Join(big, "sub/disk.img"), 1<<30+1))
	tests := []struct{ dir, want string }{
		{big, "sub/disk.img is too big for a source file: 1073741825 bytes"},
		{pipe, "pipe is neither a file"},
		{filepath.Join(t.TempDir(), "absent"), "no such file"},
	}
	for _, tt := range tests {
		if _, _, err := Digest(t.Context(), tt.dir); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error %v, want %q", err, tt.want)
		}
	}
}

// Links out of a source are not followed, and are no part of it.
func TestDigestLeavesOutLinks(t *testing.T) {
	want, _, err := Digest(t.Context(), tree(t, "a.c=int a;", "a/b/top->../.."))
	must(t, err)
	got, files, err := Digest(t.Context(), tree(t, "a.c=int a;", "etc->/etc/passwd", "sub/up->../../x", "a/b/top->../..", "a/b/l->top/../x"))
	must(t, err)
	if got != want {
		t.Errorf("files %+v", files)
	}
}

func TestAddExtract(t *testing.T) {
	dir := t.TempDir()
	r := writer(t, dir, "/")
	origin := tree(t, "kmod.toml=name", "a.c=int a;", "sub/gen!=#!/bin/sh", "sub/link->../a.c")
	src, changed, err := r.AddSource(t.Context(), origin, "a", "1.0", "name")
	must(t, err)
	if !changed {
		t.Error("new source, not changed")
	}
	wal := size(t, filepath.Join(dir, "registry.db-wal"))
	if _, changed, err = r.AddSource(t.Context(), origin, "a", "1.0", "name"); err != nil || changed {
		t.Errorf("same again: changed %v, %v", changed, err)
	}
	if size(t, filepath.Join(dir, "registry.db-wal")) != wal {
		t.Error("adding the same again wrote to the database")
	}
	for _, spoil := range []func(){func() { flipBit(t, r.BlobPath(src.Digest)) }, func() { must(t, os.Remove(r.BlobPath(src.Digest))) }} {
		spoil()
		_, _, err = r.AddSource(t.Context(), origin, "a", "1.0", "name")
		must(t, err)
		must(t, r.checkBlob(t.Context(), src.Digest))
	}
	must(t, os.RemoveAll(origin))
	got, err := reader(t, dir).Source("a", "")
	must(t, err)
	if got.Digest != src.Digest || got.Manifest != "name" || len(got.Files) != 4 {
		t.Errorf("source: %+v", got)
	}
	out := t.TempDir()
	must(t, r.Extract(got, out))
	digest, _, err := Digest(t.Context(), out)
	must(t, err)
	if digest != src.Digest {
		t.Error("extracted files differ from those added")
	}
	gen, err := os.Stat(filepath.Join(out, "sub/gen"))
	must(t, err)
	c, err := os.Stat(filepath.Join(out, "a.c"))
	must(t, err)
	if gen.Mode() != 0o755 || !gen.ModTime().Equal(c.ModTime()) {
		t.Errorf("mode %v, mtimes %v %v", gen.Mode(), gen.ModTime(), c.ModTime())
	}
	flipBit(t, r.BlobPath(src.Digest))
	var damaged *CorruptError
	if err := r.Extract(got, t.TempDir()); !errors.As(err, &damaged) {
		t.Errorf("extract of a damaged archive: %v", err)
	}
}

// What is kept as the manifest is what the copy holds, or nothing is kept.
// A row that tells of other files or another manifest than the archive has builds nothing.
func TestExtractOfAGarbledRow(t *testing.T) {
	r := writer(t, t.TempDir(), "/")
	src, _, err := r.AddSource(t.Context(), tree(t, "kmod.toml=x", "a.c=1"), "net", "1", "x")
	must(t, err)
	must(t, r.Extract(src, t.TempDir()))
	for _, query := range []string{`UPDATE source SET files = replace(files, 'a.c', 'b.c')`, `UPDATE source SET manifest = 'y'`, `UPDATE source SET files = '{'`} {
		garble(t, r, "SAVEPOINT s; "+query)
		src, err := r.Source("net", "1")
		if err == nil {
			err = r.Extract(src, t.TempDir())
		}
		if !isDamaged(err) {
			t.Errorf("%s: %v", query, err)
		}
		garble(t, r, "ROLLBACK TO s; RELEASE s")
	}
}

func TestAddChangedManifest(t *testing.T) {
	r := writer(t, t.TempDir(), "/")
	for _, files := range [][]string{{"kmod.toml=new"}, {"kmod.toml=new", "sub/kmod.toml=read"}, {"a.c=", "link->a.c"}, {}} {
		_, _, err := r.AddSource(t.Context(), tree(t, files...), "a", "1", "read")
		if err == nil || err.Error() != "add a@1: the manifest changed while it was read" {
			t.Errorf("%q: error %v", files, err)
		}
	}
	srcs, err := r.Sources()
	must(t, err)
	names, err := readNames(r.tree, blobDir)
	must(t, err)
	if len(srcs) > 0 || len(names) > 0 {
		t.Errorf("sources: %+v, blobs: %q", srcs, names)
	}
	_, _, err = r.AddSource(t.Context(), tree(t, "kmod.toml->conf/a.toml", "conf/a.toml=read"), "a", "1", "read")
	must(t, err)
}

func TestSourcesSortAndAreFound(t *testing.T) {
	r := writer(t, t.TempDir(), "/")
	for _, v := range []string{"1.10", "1.9", "1.10-beta1", "1.10-rc1"} {
		_, _, err := r.AddSource(t.Context(), tree(t, "v="+v), "hello", v, v)
		must(t, err)
	}
	srcs, err := r.Sources()
	must(t, err)
	var got []string
	for _, s := range srcs {
		got = append(got, s.Version)
	}
	equal(t, "versions", got, []string{"1.9", "1.10-beta1", "1.10-rc1", "1.10"})
	newest, err := r.Source("hello", "")
	must(t, err)
	if newest.Version != "1.10" {
		t.Errorf("newest: %s", newest.Version)
	}
	var e *NotFoundError
	if _, err := r.Source("helo", ""); !errors.As(err, &e) {
		t.Fatalf("error: %v", err)
	}
	equal(t, "near helo", e.Near, []string{"hello"})
	if _, err := r.Source("hello", "2"); !errors.As(err, &e) {
		t.Fatalf("error: %v", err)
	}
	equal(t, "versions of hello", e.Near, []string{"1.10", "1.10-rc1", "1.10-beta1", "1.9"})
}

func TestRemoveSource(t *testing.T) {
	root := newRoot(t)
	r := writer(t, t.TempDir(), root)
	_, _, err := r.AddSource(t.Context(), tree(t, "a.c=1"), "net", "1", "1")
	must(t, err)
	_, _, err = r.AddSource(t.Context(), tree(t, "a.c=2"), "net", "1", "2") // replaces
	must(t, err)
	log, _, err := r.PutBlob(t.Context(), strings.NewReader("the log"))
	must(t, err)
	at, err := r.BeginAttempt(Attempt{Op: "build", Package: "net", Version: "1", Release: release})
	must(t, err)
	at.Outcome, at.Log = "ok", log
	must(t, r.FinishAttempt(at))
	a := mustPut(t, r, "net", "1", "net=shared", "own=1")
	kept := mustPut(t, r, "other", "1", "net=shared")
	_, err = r.Install(t.Context(), release, []Artifact{a}, nil)
	must(t, err)

	var used *InUseError
	if err := r.RemoveSource("net", "1"); !errors.As(err, &used) || len(used.Releases) != 1 {
		t.Fatalf("remove while installed: %v", err)
	}
	_, err = r.Uninstall(t.Context(), release, []string{"net"})
	must(t, err)
	must(t, r.RemoveSource("net", "1"))
	if _, ok, err := r.Artifact("net", "1", release); ok || err != nil {
		t.Errorf("artifact after remove: %v %v", ok, err)
	}
	as, err := r.Attempts("net", "", 0)
	must(t, err)
	if len(as) != 3 { // build, install, uninstall
		t.Errorf("history: %+v", as)
	}
	names, err := readNames(r.tree, blobDir)
	must(t, err)
	if len(names) != 3 { // the log, the other record, the shared module
		t.Errorf("blobs: %q", names)
	}
	for _, d := range []string{log, kept.Digest, kept.Modules[0].Digest} {
		f, err := r.Blob(d)
		must(t, err)
		_, err = io.Copy(io.Discard, f)
		must(t, errors.Join(err, f.Close()))
	}
	var absent *NotFoundError
	if err := r.RemoveSource("net", "1"); !errors.As(err, &absent) {
		t.Errorf("remove twice: %v", err)
	}
}

// TestForget: a history goes with its logs and inputs, and takes nothing of another package or version along.
func TestForget(t *testing.T) {
	r := writer(t, t.TempDir(), newRoot(t))
	tried := func(pkg, version, input string) {
		t.Helper()
		log, _, err := r.PutBlob(t.Context(), strings.NewReader("log of "+pkg+version))
		must(t, err)
		at, err := r.BeginAttempt(Attempt{Op: OpBuild, Package: pkg, Version: version, Release: release, InputHash: input, Inputs: []Input{{Name: input}}})
		must(t, err)
		at.Outcome, at.Log = OutcomeFailed, log
		must(t, r.FinishAttempt(at))
	}
	tried("net", "1", "alone")
	tried("net", "1", "shared")
	tried("net", "2", "second")
	tried("wifi", "1", "shared")
	_, _, err := r.AddSource(t.Context(), tree(t, "kmod.toml="), "wifi", "1", "")
	must(t, err)
	forget := func(name, version string, want int64, blobs int, inputs ...string) {
		t.Helper()
		n, err := r.Forget(name, version)
		must(t, err)
		names, err := readNames(r.tree, blobDir)
		must(t, err)
		if n != want || len(names) != blobs {
			t.Errorf("forget %s %s: %d attempts, %d blobs left; want %d, %d", name, version, n, len(names), want, blobs)
		}
		for _, hash := range []string{"alone", "shared", "second"} {
			in, err := r.Inputs(hash)
			must(t, err)
			if (len(in) > 0) != slices.Contains(inputs, hash) {
				t.Errorf("forget %s %s: inputs %s: %v", name, version, hash, in)
			}
		}
	}
	if _, err := r.Forget("wifi", ""); err == nil {
		t.Error("the history of what is registered went")
	}
	forget("net", "1", 2, 3, "shared", "second") // the logs of net 2 and wifi 1, and a source
	forget("net", "", 1, 2, "shared")
	forget("net", "", 0, 2, "shared")
	must(t, r.RemoveSource("wifi", "1"))
	forget("wifi", "1", 1, 0)
}

func TestAddCancelled(t *testing.T) {
	r := writer(t, t.TempDir(), "/")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := r.AddSource(ctx, tree(t, "a.c="), "a", "1", ""); !errors.Is(err, context.Canceled) {
		t.Errorf("error: %v", err)
	}
	if names, _ := readNames(r.tree, blobDir); len(names) > 0 {
		t.Errorf("blobs: %q", names)
	}
}

// Whatever an archive holds, nothing is written outside of the folder.
func FuzzUnpack(f *testing.F) {
	seed := func(hs ...tar.Header) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range hs {
			h.Mode = 0o644
			w.WriteHeader(&h)
		}
		w.Close()
		f.Add(b.Bytes())
	}
	seed(tar.Header{Name: "a.c"}, tar.Header{Name: "sub/b.c"})
	seed(tar.Header{Name: "../x"})
	seed(tar.Header{Name: "up", Linkname: "..", Typeflag: tar.TypeSymlink}, tar.Header{Name: "up/x"})
	f.Fuzz(func(t *testing.T, text []byte) {
		outer := t.TempDir()
		dir := filepath.Join(outer, "dir")
		must(t, os.Mkdir(dir, 0o755))
		root, err := os.OpenRoot(dir)
		must(t, err)
		defer root.Close()
		_, _ = unpack(bytes.NewReader(text), root, time.Unix(1e9, 0))
		if names, err := os.ReadDir(outer); err != nil || len(names) != 1 {
			t.Errorf("outside: %v %v", names, err)
		}
	})
}

// An uninstall that waits for one kernel keeps no other work from being done, and
// no name at all means no package.
func TestSourcesBesideAnIntent(t *testing.T) {
	r := writer(t, t.TempDir(), newRoot(t))
	mustPut(t, r, "net", "1", "net=1")
	must(t, r.begin(&intent{Op: OpUninstall, Release: release, Packages: []string{"net"}}, nil))
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "kmod.toml"), []byte("x"), 0o644))
	if _, _, err := r.AddSource(t.Context(), dir, "other", "1", "x"); err != nil {
		t.Error(err)
	}
	if err := r.RemoveSource("other", "1"); err != nil {
		t.Error(err)
	}
	for _, version := range []string{"", "1"} {
		if src, err := r.Source("", version); err == nil {
			t.Errorf("no name means %s", src.Name)
		}
	}
}
