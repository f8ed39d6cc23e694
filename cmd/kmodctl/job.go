package main

import (
	"errors"
	"slices"
	"sync"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

// job carries packages through build -> registry -> install, and passes plain
// values between them: the rooms do not know each other.
type job struct {
	*env
	reg    *registry.Registry
	tried  int              // steps that were begun
	errs   []error          // of the steps that failed: each has been reported
	failed map[target]error // builds that failed: what is installed stays
	willBe map[target]bool  // in a dry run, what would be built

	reused  map[target]registry.Artifact // what is reused, of another kernel
	force   bool                         // shadow newer modules too
	despite bool                         // PRE_INSTALL that fails keeps nothing from being installed
	anew    string                       // the package that is built even where nothing has changed
	signAll bool                         // what is installed is signed, whatever the configuration says

	directives []string // of the command line of dkms, which go over every dkms.conf
	directed   string   // the package that they are for; "" for all

	jobs    *build.Jobserver // of the builds that go on; nil is one compiler at a time
	options buildOptions     // of the command build; none for the others
	events  bool             // a line of JSON tells of each step of a build

	mu          sync.Mutex // of all that follows, and of tried, errs and failed: several builds go on at once
	installs    []installStep
	newest      map[artifactKey]*registry.Artifact // once read
	pins        registry.Pins                      // read with them
	only        []string                           // names of the packages that are asked for; all when there are none
	planner     build.Planner
	planning    sync.Once                  // of the planner's set-up
	named       map[string]bool            // packages of which the user named the version
	headers     []string                   // names of what the kernels' headers were given by; none when they are installed
	given       map[string]registry.Source // what the command is about, by name
	folders     map[string]string          // folders inside the root: their host paths
	confs       confs                      // of sources that have a dkms.conf
	postInstall map[target]script          // of what is about to be installed
	scripting   sync.Mutex                 // scripts of packages run one after the other
	weaker      sync.Once                  // to tell that builds are not isolated as well as can be
	configuring sync.Once                  // of the following
	admin       config
	adminErr    error
	dressing    sync.Once // of the following
	dresser     *dresser
	dresserErr  error
}

// know reads, once, what most steps of a command ask for: all newest artifacts, and
// the pins. A pinned artifact stands for the newest of its version.
func (j *job) know() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.newest != nil {
		return nil
	}
	all, err := j.reg.Newest(j.only...)
	if err != nil {
		return err
	}
	if j.pins, err = j.reg.Pins(); err != nil {
		return err
	}
	for _, p := range j.pins {
		if p.Artifact == "" {
			continue
		}
		if a, ok, err := j.reg.ArtifactByDigest(p.Artifact); err != nil {
			return err
		} else if ok {
			all = append(all, a)
		}
	}
	newest := make(map[artifactKey]*registry.Artifact, len(all))
	for i, a := range all {
		newest[artifactKey{a.Package, a.Version, a.Release}] = &all[i]
	}
	j.newest = newest
	return nil
}

// artifactKey is what an artifact is of and for.
type artifactKey struct{ pkg, version, release string }

// artifact is the pinned or the newest artifact of a source for a kernel.
func (j *job) artifact(src registry.Source, release string) (registry.Artifact, bool, error) {
	if err := j.know(); err != nil {
		return registry.Artifact{}, false, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	a, ok := j.newest[artifactKey{src.Name, src.Version, release}]
	if !ok {
		return registry.Artifact{}, false, nil
	}
	return *a, true, nil
}

// made puts an artifact that was just built in the place of the newest.
func (j *job) made(a registry.Artifact) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.newest != nil {
		j.newest[artifactKey{a.Package, a.Version, a.Release}] = &a
	}
}

// choice is a source, and the kernels that a command works on it for.
type choice struct {
	registry.Source
	kernels []kernel.Release
}

func (c choice) covers(release string) bool {
	return slices.ContainsFunc(c.kernels, func(k kernel.Release) bool { return k.Name == release })
}

// choose says for which kernels it is another version of a source: the pinned one,
// where there is a pin and the user has not named a version.
func (j *job) choose(sources []registry.Source, kernels []kernel.Release) (out []choice, err error) {
	if err := j.know(); err != nil {
		return nil, err
	}
	for _, src := range sources {
		first := len(out)
		for _, k := range kernels {
			chosen := src
			if p, ok := j.pins.For(src.Name, k.Name); ok && p.Version != src.Version && !j.named[src.Name] {
				var lost *registry.NotFoundError
				if chosen, err = j.reg.Source(src.Name, p.Version); errors.As(err, &lost) {
					chosen = registry.Source{Name: src.Name, Version: p.Version} // its artifact may be here still
				} else if err != nil {
					return nil, err
				}
			}
			i := slices.IndexFunc(out[first:], func(c choice) bool { return c.Version == chosen.Version })
			if i < 0 {
				i = len(out) - first
				out = append(out, choice{Source: chosen})
			}
			out[first+i].kernels = append(out[first+i].kernels, k)
		}
	}
	return out, nil
}

// target is a package and the kernel release that it is for.
type target struct{ pkg, release string }

// installStep is one package to be installed for one kernel, and how that went.
type installStep struct {
	Package string `json:"package"`
	Version string `json:"version"`
	Release string `json:"release"`
	Outcome string `json:"outcome,omitempty"` // installed, failed or kept (in the registry only); "" in a dry run
	Why     string `json:"why,omitempty"`

	Signer      string `json:"signer,omitempty"`      // fingerprint of the certificate of what was installed, or registry.SignerUnknown
	Compression string `json:"compression,omitempty"` // of it
}

// buildStep is a step of the plan, and how it went.
type buildStep struct {
	build.Step
	Outcome string `json:"outcome,omitempty"` // built, reused or failed; "" when nothing was to be done, and in a dry run
	Error   string `json:"error,omitempty"`

	Class       build.Class `json:"class,omitempty"`        // of a failed one
	LastRelease string      `json:"last_release,omitempty"` // as failedBuild has it
	LastVersion string      `json:"last_version,omitempty"`
}

// results tells how each step went.
func (j *job) results(steps []build.Step) (out []buildStep) {
	for _, s := range steps {
		b := buildStep{Step: s}
		if err := j.failed[target{s.Package, s.Release}]; err != nil {
			b.Outcome, b.Error, b.Class = "failed", err.Error(), build.ClassOf(err)
			var f failedBuild
			if errors.As(err, &f) {
				b.LastRelease, b.LastVersion = f.lastRelease, f.lastVersion
			}
		} else if s.Action == build.ActionBuild && !j.dryRun {
			b.Outcome = "built"
		} else if s.Action == build.ActionReuse && !j.dryRun {
			b.Outcome = "reused"
		}
		out = append(out, b)
	}
	return out
}

// begun counts a step that may fail.
func (j *job) begun() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.tried++
}

// fail reports a step that failed and lets the others go on.
func (j *job) fail(err error) {
	j.mu.Lock()
	j.errs = append(j.errs, err)
	j.mu.Unlock()
	j.report(err)
}

// notBuilt reports a build that failed: what is installed of its package stays.
func (j *job) notBuilt(to target, err error) {
	j.mu.Lock()
	j.failed[to] = err
	j.mu.Unlock()
	j.fail(err)
}

func (j *job) hasFailed(to target) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failed[to] != nil
}

// outcome is the error of the whole command.
func (j *job) outcome() error {
	if len(j.errs) == 0 {
		return nil
	}
	return partly{failed: len(j.errs), of: max(j.tried, len(j.errs)), err: j.errs[len(j.errs)-1]}
}

// plans returns the planner of the command, which knows what the registry has kept of files.
func (j *job) plans() *build.Planner {
	j.planning.Do(func() {
		j.planner.FileFact = func(path, what string, ask func(string) (string, error)) (string, error) {
			return j.reg.FileFact(path, what, ask) // repair opens another one
		}
	})
	return &j.planner
}

// plan decides what is to be done for each source and kernel.
func (j *job) plan(choices []choice) ([]build.Step, error) {
	var steps []build.Step
	for _, c := range choices {
		steps = slices.Grow(steps, len(c.kernels))
		manifest := j.manifests(c.Source)
		for _, k := range c.kernels {
			m, unfit := manifest(k)
			if c.Digest == "" {
				unfit = &registry.NotFoundError{Name: c.Name, Version: c.Version}
			}
			step, err := j.step(c.Source, m, unfit, k)
			if err != nil {
				return nil, err
			}
			steps = append(steps, step)
		}
	}
	return steps, nil
}

// step decides what is to be done for a source, of which m is the manifest or unfit tells why there
// is none, and a kernel.
func (j *job) step(src registry.Source, m *build.Manifest, unfit error, k kernel.Release) (build.Step, error) {
	step := build.Step{Package: src.Name, Version: src.Version, Release: k.Name}
	art, ok, err := j.artifact(src, k.Name)
	if err != nil {
		return step, err
	}
	p, _ := j.pins.For(src.Name, k.Name)
	if src.Name == j.anew {
		art, ok = registry.Artifact{}, false
	}
	switch {
	case ok && p.Artifact == art.Digest:
		step.Action, step.Reason, step.InputHash = build.ActionCurrent, pinnedBuild, art.InputHash
		return step, nil
	case unfit != nil: // a newer kmodctl may have added it
		step.Action, step.Reason, step.Err = build.ActionFail, unfit.Error(), unfit
		return step, nil
	}
	return j.decide(src, m, k, build.Made{Hash: art.InputHash, Inputs: func() ([]build.Input, error) {
		whole, _, err := j.reg.ArtifactByDigest(art.Digest)
		return buildInputs(whole.Inputs), err
	}})
}

// decide is the step of a source, of which m is the manifest, beside what was made of it.
func (j *job) decide(src registry.Source, m *build.Manifest, k kernel.Release, made build.Made) (build.Step, error) {
	needs, lack, err := j.needs(m, k)
	if err != nil {
		return build.Step{}, err
	}
	step := j.plans().Decide(m, src.Digest, k, needs, made)
	if lack != nil && step.Action != build.ActionSkip {
		step.Action, step.Reason, step.Err = build.ActionFail, lack.Error(), lack
		if lack.skip {
			step.Action, step.Err = build.ActionSkip, nil
		}
	}
	return step, nil
}

// pinnedBuild is the reason of a step that a pin of one artifact makes needless.
const pinnedBuild = "pinned to this build"

func buildInputs(in []registry.Input) (out []build.Input) {
	for _, i := range in {
		out = append(out, build.Input(i))
	}
	return out
}
