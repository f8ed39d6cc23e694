package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// realOne is another machine with the same folders aside: it has one kernel, a real
// release with its headers, and nothing is registered. Beside it are two folders of a
// package hello, which make different modules.
func (m machine) realOne(t testing.TB) machine {
	t.Helper()
	release := releases(t)[0]
	m.root, m.kernels = t.TempDir(), []string{release}
	m.headers = filepath.Join(m.root, "usr")
	m.putKernels(t)
	common := release[:strings.LastIndex(release, "-")] // 6.1.0-56-amd64 needs 6.1.0-56-common
	headers, _ := filepath.Glob("/usr/src/linux-headers-" + common + "*")
	kbuild, _ := filepath.Glob("/usr/lib/linux-kbuild-*")
	for _, path := range append(append(headers, kbuild...), "/lib/modules/"+release+"/build") {
		put(t, m.root, path)
	}
	for _, dir := range []string{"hello", "changed/hello"} {
		check(t, os.CopyFS(filepath.Join(m.aside, dir), os.DirFS("../../examples/hello")))
	}
	file := filepath.Join(m.aside, "changed/hello/hello.c")
	text, err := os.ReadFile(file)
	check(t, err)
	changed := strings.Replace(string(text), "module loaded", "another module loaded", 1)
	if changed == string(text) {
		t.Fatal("hello.c does not say that it was loaded")
	}
	check(t, os.WriteFile(file, []byte(changed), 0o644))
	return m
}

// mountHeaders lets a copy of a machine have the headers of the first one: some
// 17,000 files.
func (m machine) mountHeaders(t testing.TB) {
	t.Helper()
	if m.headers == "" {
		return
	}
	at := filepath.Join(m.root, "usr")
	check(t, os.Mkdir(at, 0o755))
	if err := unix.Mount(m.headers, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("mount headers (this test needs root): %v", err)
	}
	t.Cleanup(func() { m.unmountHeaders(t) })
}

func (m machine) unmountHeaders(t testing.TB) {
	err := unix.Unmount(filepath.Join(m.root, "usr"), unix.MNT_DETACH)
	if err != nil && err != unix.EINVAL && err != unix.ENOENT { // a trial's is gone by then
		t.Error(err)
	}
}

// remove takes a copy away before its test ends.
func (m machine) remove(t testing.TB) {
	if m.headers != "" {
		m.unmountHeaders(t)
	}
	os.RemoveAll(m.root)
}
