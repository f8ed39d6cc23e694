package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"kmodctl/internal/kernel"
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

// TestStatusOfBareKernel: a kernel that runs and is not this machine's own, as in a container, is told of once and not by
// each package; one that has an installed module of it, or whose headers are here, is told of in full.
func TestStatusOfBareKernel(t *testing.T) {
	const bare, own = "6.18.0-provider", "6.1.0-1-amd64"
	s := statusReader{kernels: []kernel.Release{{Name: own, Modules: "/lib/modules/" + own}, {Name: bare, Running: true}}}
	packages := []packageStatus{
		{Name: "a", Kernels: []kernelStatus{{Release: own, State: stateSkipped}, {Release: bare, State: stateSkipped}}},
		{Name: "b", Kernels: []kernelStatus{{Release: own, State: stateInstalled}, {Release: bare, State: stateDamaged}}},
	}
	if got := s.leaveOutBare(packages); !slices.Equal(got, []string{bare}) {
		t.Errorf("kernels that are bare: %q", got)
	}
	var left []string
	for _, p := range packages {
		for _, k := range p.Kernels {
			left = append(left, p.Name+" "+k.Release)
		}
	}
	if want := []string{"a " + own, "b " + own, "b " + bare}; !slices.Equal(left, want) {
		t.Errorf("left are %q, want %q", left, want)
	}
}
