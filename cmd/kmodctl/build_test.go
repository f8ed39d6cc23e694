package main

import (
	"strings"
	"testing"
)

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
