package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestUninstallNames: each kernel that is named is looked at before any is changed.
func TestUninstallNames(t *testing.T) {
	m := newMachine(t)
	m.must(t, "install", "net@1.0")
	r := m.run(t, []string{"uninstall", "net", "-k", tortured[0], "-k", "9.9.7-typo"})
	if r.code != exitNotFound || versionsOf(t, m.root)[tortured[0]] != "1.0" {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	check(t, os.RemoveAll(filepath.Join(m.root, "lib/modules", tortured[1])))
	says(t, m.must(t, "uninstall", "net", "-k", tortured[1]).stderr, "uninstalled net for "+tortured[1])
}

// TestBuildFinishes: status names build as what finishes work that was cut off; it does so on
// a machine without headers too.
func TestBuildFinishes(t *testing.T) {
	m := newMachine(t)
	m.must(t, "install", "net@1.0")
	m.must(t, "install", "net@1.1")
	m.failRenames(t, tortured[1], "signal=KILL")
	says(t, m.must(t, "status").out, "unfinished: rollback for "+tortured[1])
	r := m.run(t, []string{"build"})
	if r.code != exitFailed {
		t.Errorf("exit %d without headers", r.code)
	}
	says(t, r.stderr, "recovered: finished rollback for "+tortured[1], "headers")
	if out := m.must(t, "status").out; strings.Contains(out, "unfinished") {
		t.Errorf("after a build:\n%s", out)
	}
}
