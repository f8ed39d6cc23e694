package build

import (
	"strings"

	"kmodctl/internal/kernel"
)

// What a Step does.
const (
	ActionBuild   = "build"   // run kbuild
	ActionCurrent = "current" // an artifact of the same inputs exists
	ActionSkip    = "skip"    // this kernel is not one to build for
	ActionFail    = "fail"    // cannot be built: Reason says why
)

// Step is one package for one kernel: what a build has to do there, and why.
type Step struct {
	Package   string `json:"package"`
	Version   string `json:"version"`
	Release   string `json:"release"`
	Action    string `json:"action"` // build, current, skip or fail
	Reason    string `json:"reason"`
	InputHash string `json:"input_hash,omitempty"`

	Inputs    []Input        `json:"-"`
	Manifest  *Manifest      `json:"-"`
	Kernel    kernel.Release `json:"-"`
	Toolchain *Toolchain     `json:"-"` // nil when skipped or failed
	Err       error          `json:"-"` // what Reason says of a fail: an *exec.Error for a compiler that is not installed
}

// Decide plans one package for one kernel. built is what the newest artifact of
// that package for that kernel was made from, nil when there is none; tool is as
// for Inputs. It starts no process, and reads only the build tree's
// configuration and Module.symvers. A kernel that cannot be built for is a Step like
// any other, so that it stops no other kernel's.
func Decide(m *Manifest, sourceDigest string, k kernel.Release, built []Input, tool func(path string) (string, error)) Step {
	s := Step{Package: m.Name, Version: m.Version, Release: k.Name, Manifest: m, Kernel: k}
	if ok, why := m.Applies(k); !ok {
		s.Action, s.Reason = ActionSkip, why
		return s
	}
	inputs, chain, err := Inputs(m, sourceDigest, k, tool)
	if err != nil {
		s.Action, s.Reason, s.Err = ActionFail, err.Error(), err
		return s
	}
	s.Inputs, s.InputHash, s.Toolchain = inputs, Hash(inputs), chain
	switch {
	case built == nil:
		s.Action, s.Reason = ActionBuild, "not built yet"
	case Hash(built) == s.InputHash:
		s.Action, s.Reason = ActionCurrent, "already built"
	default:
		s.Action, s.Reason = ActionBuild, strings.Join(Changed(built, inputs), ", ")+" changed"
	}
	return s
}
