package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// onDisks runs a test of every scenario on every disk. At the small size the first build is
// left out: the next one does all that it does.
func onDisks(t *testing.T, test func(t *testing.T, st staged, disk string)) {
	all := newBases(t)
	for _, s := range scenarios {
		if s.name == "build" && !full {
			continue
		}
		for _, disk := range slices.Sorted(maps.Keys(disks)) {
			t.Run(s.name+" "+disk, func(t *testing.T) {
				st, _ := s.stage(t, all)
				smallDisk(t, filepath.Join(st.ready.root, disk), disks[disk])
				test(t, st, disk)
			})
		}
	}
}

// TestTortureDiskFull runs every command with no room, with room for one page, and so on,
// until there is enough: told plainly, the state before, and success once there is room.
func TestTortureDiskFull(t *testing.T) { onDisks(t, diskFull) }

func diskFull(t *testing.T, s staged, disk string) {
	step := 7
	switch {
	case s.builds && disk == "var/lib/kmodctl" && !full: // each time something is built
		step = 40
	case s.builds && disk == "var/lib/kmodctl":
		step = 2
	case full:
		step = 1
	}
	recovers := "repair"
	if s.builds {
		recovers = "gc" // repair would build what is stale
	}
	m := s.ready
	dir := filepath.Join(m.root, disk)
	failed := 0
	for pages := 0; ; pages += step {
		if s.damage != nil && pages > 0 { // what was mended is damaged again
			kept, _ := filepath.Glob(m.state() + "/registry.db.damaged-*")
			for _, path := range kept { // the disk is small
				check(t, os.Remove(path))
			}
			s.damage(t, m)
		}
		room := leave(t, dir, pages)
		r := m.run(t, s.args)
		bad := &failures{TB: t, what: fmt.Sprintf("%v with %d pages", s.args, pages), said: r}
		if r.code != 0 {
			failed++
			said := strings.ToLower(r.stderr) // a compiler says it in the C library's words
			if !strings.Contains(said, "no space left on device") || !strings.Contains(said, "make room") {
				bad.Errorf("it does not say what is amiss")
			}
		}
		s.checkAlways(bad, m)
		room()
		if r.code == 0 {
			break
		}
		m.must(t, recovers) // what was begun and could not be taken back, without room
		if now := m.facts(t); !now.among(s.states...) {
			bad.Errorf("a state that never was:\n%v\nbefore:\n%v", now, s.before)
		}
		if s.once && !m.facts(t).among(s.before) { // what is done cannot be tried again
			return
		}
		if pages > 400 {
			bad.Fatalf("there is never enough room")
		}
	}
	if now := m.facts(t); !now.among(s.after) {
		t.Errorf("with room enough, it left\n%v", now)
	}
	m.checkClean(t)
	t.Logf("it failed %d times for want of room", failed)
}

// TestTortureReadOnly runs every command on disks that are mounted read-only.
func TestTortureReadOnly(t *testing.T) { onDisks(t, readOnly) }

func readOnly(t *testing.T, s staged, disk string) {
	m := s.ready
	dir := filepath.Join(m.root, disk)
	check(t, unix.Mount("none", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	r := m.run(t, s.args)
	bad := &failures{TB: t, what: fmt.Sprint(s.args), said: r}
	if r.code == 0 {
		if disk != "lib/modules" || !m.facts(t).among(s.after) {
			bad.Errorf("it said yes")
		}
	} else if !strings.Contains(r.stderr, "read-only file system") || !strings.Contains(r.stderr, "read-write") {
		bad.Errorf("it does not say what is amiss")
	}
	if status := m.run(t, []string{"status"}); status.code != 0 && s.damage == nil {
		bad.Errorf("status: exit %d: %s", status.code, status.stderr)
	} else if s.damage == nil && strings.Contains(status.out, "unfinished: ") { // it would be done behind one's back
		bad.Errorf("it left something begun: %s", status.out)
	}
	check(t, unix.Mount("none", dir, "", unix.MS_REMOUNT, ""))
	if s.damage == nil || r.code == 0 {
		if now := m.facts(t); !now.among(s.states...) {
			bad.Errorf("a state that never was:\n%v", now)
		}
	}
	if !s.once || r.code != 0 {
		m.must(t, s.args...)
	}
	if now := m.facts(t); !now.among(s.after) {
		bad.Errorf("given again, it left\n%v", now)
	}
	m.checkClean(t)
}
