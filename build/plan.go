package build

import (
	"slices"
	"strings"
	"sync"

	"kmodctl/internal/kernel"
)

// What a Step does.
const (
	ActionBuild   = "build"   // run kbuild
	ActionReuse   = "reuse"   // take the modules that were built for another release, From; never Decide's word
	ActionCurrent = "current" // an artifact of the same inputs exists
	ActionSkip    = "skip"    // this kernel is not one to build for
	ActionFail    = "fail"    // cannot be built: Reason says why
)

// Step is one package for one kernel: what a build has to do there, and why.
type Step struct {
	Package   string `json:"package"`
	Version   string `json:"version"`
	Release   string `json:"release"`
	Action    string `json:"action"` // build, reuse, current, skip or fail
	Reason    string `json:"reason"`
	InputHash string `json:"input_hash,omitempty"`

	From       string `json:"from,omitempty"`        // of a reuse: the release that the modules were built for
	PassedOver string `json:"passed_over,omitempty"` // why a build is not a reuse, where that is wished for

	Inputs    []Input        `json:"-"` // of a build
	Manifest  *Manifest      `json:"-"`
	Kernel    kernel.Release `json:"-"`
	Toolchain *Toolchain     `json:"-"` // nil when skipped or failed
	Err       error          `json:"-"` // what Reason says of a fail: an *exec.Error for a compiler that is not installed
}

// Planner decides what is to be done. It asks once for what every package of a kernel
// shares, so keep one for a command; several goroutines may use it.
type Planner struct {
	// FileFact returns what ask says of a file or, as long as the file is the same, what it
	// said before; what names the question. A caller who remembers starts no process and reads no
	// large file when nothing changed. nil asks each time.
	FileFact func(path, what string, ask func(path string) (string, error)) (string, error)

	mu      sync.Mutex
	facts   map[*kernel.Tree]*facts
	digests map[*Manifest]string
}

// Made is what the newest artifact of a package for a kernel was made from; zero when
// there is none.
type Made struct {
	Hash   string                  // as Hash makes it
	Inputs func() ([]Input, error) // asked for only when Hash is another than today's
}

// Decide plans one package for one kernel; needs are the inputs of the packages that its manifest
// says it needs. It asks for the compiler's version, and for digests of the build
// tree's configuration and Module.symvers. A kernel that cannot be built for is a Step like
// any other, so that it stops no other kernel's.
func (p *Planner) Decide(m *Manifest, sourceDigest string, k kernel.Release, needs []Input, made Made) Step {
	s := Step{Package: m.Name, Version: m.Version, Release: k.Name, Manifest: m, Kernel: k}
	ok, why, err := m.Applies(k)
	if err == nil && !ok {
		s.Action, s.Reason = ActionSkip, why
		return s
	}
	var f *facts
	var manifest string
	if err == nil {
		f, manifest, err = p.shared(m, k)
	}
	if err != nil {
		return s.fail(err)
	}
	own := f.inputs(manifest, sourceDigest, k.Name)
	inputs := append(own[:], needs...)
	s.InputHash, s.Toolchain = Hash(inputs), f.chain
	if made.Hash == s.InputHash {
		s.Action, s.Reason = ActionCurrent, "already built"
		return s
	}
	s.Inputs = slices.Clone(inputs)
	s.Action, s.Reason = ActionBuild, "not built yet"
	if made.Hash != "" {
		old, err := made.Inputs()
		if err != nil {
			return s.fail(err)
		}
		s.Reason = strings.Join(Changed(old, s.Inputs), ", ") + " changed"
	}
	return s
}

func (s Step) fail(err error) Step {
	s.Action, s.Reason, s.Err = ActionFail, err.Error(), err
	return s
}

// shared are the facts of a kernel and the digest of a manifest, found once.
func (p *Planner) shared(m *Manifest, k kernel.Release) (f *facts, manifest string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.facts == nil {
		p.facts, p.digests = map[*kernel.Tree]*facts{}, map[*Manifest]string{}
	}
	if f = p.facts[k.Tree]; f == nil {
		f = factsOf(k, p.asker())
		p.facts[k.Tree] = f
	}
	if f.err != nil {
		return nil, "", f.err
	}
	manifest, ok := p.digests[m]
	if !ok {
		if manifest, err = m.digest(); err != nil {
			return nil, "", err
		}
		p.digests[m] = manifest
	}
	return f, manifest, nil
}

// asker asks about files by the planner's FileFact.
func (p *Planner) asker() asker {
	know := p.FileFact
	if know == nil {
		know = func(path, _ string, ask func(string) (string, error)) (string, error) { return ask(path) }
	}
	return asker{
		tool:   func(path string) (string, error) { return know(path, "version", toolIdentity) },
		digest: func(path string) (string, error) { return know(path, "sha256", DigestFile) },
	}
}
