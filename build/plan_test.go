package build

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"kmodctl/internal/kernel"
)

func TestDecide(t *testing.T) {
	programs(t, "gcc-12")
	k := fakeKernel(t, "gcc-12 (Debian) 12.2.0", "CONFIG_NET=y\n")
	tool := identities(map[string]string{"gcc-12": "gcc-12 (Debian) 12.2.0"})
	m := &Manifest{Name: "hello", Version: "1"}
	decide := func(source string, built []Input, action, reason string) Step {
		t.Helper()
		made := Made{Inputs: func() ([]Input, error) { return built, nil }}
		if built != nil {
			made.Hash = Hash(built)
		}
		s := (&Planner{FileFact: answers(tool)}).Decide(m, source, k, nil, made)
		if s.Action != action || s.Reason != reason {
			t.Errorf("%s, %q; want %s, %q", s.Action, s.Reason, action, reason)
		}
		return s
	}
	first := decide("source", nil, ActionBuild, "not built yet")
	if first.Toolchain == nil || first.InputHash != Hash(first.Inputs) {
		t.Errorf("%+v", first)
	}
	decide("source", first.Inputs, ActionCurrent, "already built")
	if err := os.WriteFile(k.Tree.Symvers, []byte("0x2\tab\tvmlinux\tEXPORT_SYMBOL\t\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	decide("other", first.Inputs, ActionBuild, "source, Module.symvers changed")
	m.Kernel.Arch = []string{"riscv64"}
	decide("source", first.Inputs, ActionSkip, "arch x86_64 is not riscv64")

	m.Kernel.Arch = nil
	k.Tree.CC = "Debian clang version 14.0.6"
	failed := decide("source", nil, ActionFail, "find a compiler: the kernel was built with Debian clang version 14.0.6: exec: \"clang\": not installed")
	var absent *exec.Error
	if !errors.As(failed.Err, &absent) || absent.Name != "clang" || failed.Toolchain != nil {
		t.Errorf("%+v", failed)
	}

	k = kernel.Release{Name: "6.1", Missing: []kernel.Missing{{What: "headers for 6.1 are not installed"}}}
	decide("source", nil, ActionSkip, "headers for 6.1 are not installed")
}
