package main

import (
	"bytes"
	"strings"
	"testing"
)

// Packages are judged at the same time: each gets its own lines, and no two goroutines write
// the same (make unit looks with the race detector).
func TestStatusOfManyPackages(t *testing.T) {
	const packages = 40
	root := newStore(t, packages, storeKernels)
	var out, said bytes.Buffer
	if code := run(t.Context(), []string{"kmodctl", "--root", root, "status"}, &out, &said); code != 0 {
		t.Fatalf("exit %d: %s", code, &said)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")[1:]
	if len(lines) != packages*storeKernels {
		t.Fatalf("%d lines:\n%s", len(lines), &out)
	}
	for i, line := range lines {
		f := strings.Fields(line)
		state := []string{stateInstalled, stateBuilt}[i/storeKernels%2]
		if f[0] != f[4] || f[3] != state || i > 0 && lines[i-1] >= line && i%storeKernels == 0 {
			t.Fatalf("line %d, which should be %s: %s", i, state, line)
		}
	}
}
