package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk puts a filesystem of so many bytes in the place of dir, with its content.
func smallDisk(t testing.TB, dir string, bytes int) {
	t.Helper()
	aside := t.TempDir()
	copyTo := func(to, from string) {
		if out, err := exec.Command("cp", "-a", from+"/.", to).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
	}
	check(t, os.MkdirAll(dir, 0o755))
	copyTo(aside, dir)
	if err := unix.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=755", bytes)); err != nil {
		t.Fatalf("mount tmpfs (this test needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	copyTo(dir, aside)
}

// leave fills the filesystem of dir until so many pages are free, and returns what makes
// room again.
func leave(t testing.TB, dir string, pages int) (room func()) {
	t.Helper()
	filler := filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	check(t, err)
	defer f.Close()
	page := make([]byte, os.Getpagesize())
	n := 0
	for err == nil {
		_, err = f.Write(page)
		n++
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	check(t, f.Truncate(int64(max(0, n-1-pages)*len(page))))
	return func() { check(t, os.Remove(filler)) }
}

// disks are where a disk can be full or read-only, and of how many bytes it is made.
var disks = map[string]int{"var/lib/kmodctl": 2 << 20, "lib/modules": 1 << 20}

// onDisk readies a scenario on a machine of which one folder is a disk of its own, and
// tells the facts before and after the command.
func (s scenario) onDisk(t *testing.T, base machine, disk string) (m machine, before, after facts) {
	t.Helper()
	m = base.copyOf(t)
	for _, args := range s.before {
		m.must(t, args...)
	}
	if s.spoil != nil {
		s.spoil(t, m)
	}
	before = m.facts(t)
	undisturbed := m.copyOf(t)
	undisturbed.must(t, s.args...)
	after = undisturbed.facts(t)
	smallDisk(t, filepath.Join(m.root, disk), disks[disk])
	return m, before, after
}

// TestTortureDiskFull runs every command with no room, with room for one page, and so on,
// until there is enough: told plainly, the state before, and success once there is room.
func TestTortureDiskFull(t *testing.T) {
	base := newTortureBase(t)
	for _, s := range scenarios {
		for disk := range disks {
			t.Run(s.name+" "+disk, func(t *testing.T) { diskFull(t, base, s, disk) })
		}
	}
}

func diskFull(t *testing.T, base machine, s scenario, disk string) {
	step := 7
	if full {
		step = 1
	}
	m, before, after := s.onDisk(t, base, disk)
	dir := filepath.Join(m.root, disk)
	known := before.digests()
	for d := range after.digests() {
		known[d] = true
	}
	failed := 0
	for pages := 0; ; pages += step {
		room := leave(t, dir, pages)
		r := m.run(t, s.args)
		bad := &failures{TB: t, what: fmt.Sprintf("%v with %d pages", s.args, pages), said: r}
		if r.code != 0 {
			failed++
			if !strings.Contains(r.stderr, "no space left on device") || !strings.Contains(r.stderr, "make room") {
				bad.Errorf("it does not say what is amiss")
			}
		}
		if !s.broken {
			m.checkAlways(bad, known)
		}
		room()
		if r.code == 0 {
			break
		}
		m.must(t, "repair") // what was begun and could not be taken back, without room
		if now := m.facts(t); !now.among(before, after) {
			bad.Errorf("a state that never was:\n%v\nbefore:\n%v", now, before)
		}
		if s.once && !m.facts(t).among(before) { // what is done cannot be tried again
			return
		}
		if pages > 400 {
			bad.Fatalf("there is never enough room")
		}
	}
	if now := m.facts(t); !now.among(after) {
		t.Errorf("with room enough, it left\n%v", now)
	}
	m.checkClean(t)
	t.Logf("it failed %d times for want of room", failed)
}

// TestTortureReadOnly runs every command on disks that are mounted read-only.
func TestTortureReadOnly(t *testing.T) {
	base := newTortureBase(t)
	for _, s := range scenarios {
		for disk := range disks {
			t.Run(s.name+" "+disk, func(t *testing.T) { readOnly(t, base, s, disk) })
		}
	}
}

func readOnly(t *testing.T, base machine, s scenario, disk string) {
	m, before, after := s.onDisk(t, base, disk)
	dir := filepath.Join(m.root, disk)
	check(t, unix.Mount("none", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	r := m.run(t, s.args)
	bad := &failures{TB: t, what: fmt.Sprint(s.args), said: r}
	if r.code == 0 {
		if disk != "lib/modules" || !m.facts(t).among(after) {
			bad.Errorf("it said yes")
		}
	} else if !strings.Contains(r.stderr, "read-only file system") || !strings.Contains(r.stderr, "read-write") {
		bad.Errorf("it does not say what is amiss")
	}
	if status := m.run(t, []string{"status"}); status.code != 0 {
		bad.Errorf("status: exit %d: %s", status.code, status.stderr)
	}
	check(t, unix.Mount("none", dir, "", unix.MS_REMOUNT, ""))
	if now := m.facts(t); !now.among(before, after) {
		bad.Errorf("a state that never was:\n%v", now)
	}
	if !s.once || r.code != 0 {
		m.must(t, s.args...)
	}
	if now := m.facts(t); !now.among(after) {
		bad.Errorf("given again, it left\n%v", now)
	}
	m.checkClean(t)
}
