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

// Planner decides what is to be done. It asks once for what every package of a kernel
// shares, so keep one for a command.
type Planner struct {
	// Tool gives a program's version line. The planner starts no process, so that a caller
	// who remembers these lines starts none either.
	Tool func(path string) (identity string, err error)

	facts    map[*kernel.Tree]*facts
	manifest *Manifest // the last one
	digest   string    // its
}

// Made is what the newest artifact of a package for a kernel was made from; zero when
// there is none.
type Made struct {
	Hash   string                  // as Hash makes it
	Inputs func() ([]Input, error) // asked for only when Hash is another than today's
}

// Decide plans one package for one kernel. It starts no process, and reads only the build tree's
// configuration and Module.symvers. A kernel that cannot be built for is a Step like
// any other, so that it stops no other kernel's.
func (p *Planner) Decide(m *Manifest, sourceDigest string, k kernel.Release, made Made) Step {
	s := Step{Package: m.Name, Version: m.Version, Release: k.Name, Manifest: m, Kernel: k}
	if ok, why := m.Applies(k); !ok {
		s.Action, s.Reason = ActionSkip, why
		return s
	}
	inputs, chain, err := p.inputs(m, sourceDigest, k)
	if err != nil {
		s.Action, s.Reason, s.Err = ActionFail, err.Error(), err
		return s
	}
	s.Inputs, s.InputHash, s.Toolchain = inputs, Hash(inputs), chain
	switch made.Hash {
	case "":
		s.Action, s.Reason = ActionBuild, "not built yet"
	case s.InputHash:
		s.Action, s.Reason = ActionCurrent, "already built"
	default:
		old, err := made.Inputs()
		if err != nil {
			s.Action, s.Reason, s.Err = ActionFail, err.Error(), err
			return s
		}
		s.Action, s.Reason = ActionBuild, strings.Join(Changed(old, inputs), ", ")+" changed"
	}
	return s
}

// inputs lists everything that goes into the artifact of a package for k, in a
// fixed order, and the compiler that will make it. sourceDigest stands for the
// files of the source. It opens .config and Module.symvers of the build tree, once in a
// process while they stay the same.
func (p *Planner) inputs(m *Manifest, sourceDigest string, k kernel.Release) ([]Input, *Toolchain, error) {
	f := p.facts[k.Tree]
	if f == nil {
		if p.facts == nil {
			p.facts = map[*kernel.Tree]*facts{}
		}
		f = factsOf(k, p.Tool)
		p.facts[k.Tree] = f
	}
	if f.err != nil {
		return nil, nil, f.err
	}
	if p.manifest != m {
		var err error
		if p.digest, err = m.digest(); err != nil {
			return nil, nil, err
		}
		p.manifest = m
	}
	return f.inputs(p.digest, sourceDigest, k), f.chain, nil
}
