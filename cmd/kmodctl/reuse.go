package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"kmodctl/build"
	"kmodctl/internal/kabi"
	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/registry"
)

// reuser finds builds for other kernels that serve as they are.
type reuser struct {
	*job
	releases    map[string]kernel.Release      // that were looked at, by name
	seen        map[string]*kabi.Kernel        // by release
	comparisons map[[2]string]*kabi.Comparison // by both
}

// planReuse has builds replaced by reuses in a plan, where that is wished for and the modules fit. A reuse that is no
// longer wished for is built.
func (j *job) planReuse(choices []choice, steps []build.Step) error {
	conf, err := j.configuration()
	if err != nil {
		return err
	}
	if len(j.headers) > 0 { // those kernels are not here
		return nil
	}
	r := &reuser{j, map[string]kernel.Release{}, map[string]*kabi.Kernel{}, map[[2]string]*kabi.Comparison{}}
	j.reused = map[target]registry.Artifact{}
	for i := range steps {
		s := &steps[i]
		if s.Action != build.ActionBuild && s.Action != build.ActionCurrent || s.Reason == pinnedBuild {
			continue
		}
		src, m := sourceOf(choices, s.Package, s.Version), s.Manifest
		wished := conf.reuses(m.Name, m.Build.Reuse)
		if s.Action == build.ActionCurrent {
			if err := r.rebuildUnwished(s, src, wished && !m.Required); err != nil {
				return err
			}
			continue
		}
		switch {
		case !wished:
		case m.Required:
			s.PassedOver = "the package is required, and so always built"
		default:
			if err := r.find(s, src); err != nil {
				return err
			}
		}
	}
	return nil
}

// rebuildUnwished makes a step a build, if it is content with a reuse and should not be.
func (r *reuser) rebuildUnwished(s *build.Step, src registry.Source, wished bool) error {
	art, ok, err := r.artifact(src, s.Release)
	if err != nil || !ok || wished || art.BuiltFor() == s.Release {
		return err
	}
	if *s, err = r.decide(src, s.Manifest, s.Kernel, build.Made{}); err == nil {
		s.Reason = "the build for " + art.BuiltFor() + " is reused, and that is no longer wished for"
	}
	return err
}

// find looks for a build of the same source for another release that fits the kernel of a step, the nearest first.
func (r *reuser) find(s *build.Step, src registry.Source) error {
	if needs := s.Manifest.Build.Needs; len(needs) > 0 {
		s.PassedOver = "it is built with " + strings.Join(needs, ", ")
		return nil
	}
	var others []registry.Artifact
	r.mu.Lock()
	for key, a := range r.newest {
		if key.pkg == s.Package && key.version == s.Version && key.release != s.Release && kernel.SameFlavour(key.release, s.Release) {
			others = append(others, *a)
		}
	}
	r.mu.Unlock()
	slices.SortFunc(others, func(a, b registry.Artifact) int { return kernel.Compare(b.Release, a.Release) })
	s.PassedOver = "there is no build for another release of this flavour"
	for i, a := range others {
		why, art, err := r.fits(a.Digest, *s, src)
		if err != nil {
			return err
		}
		if why == "" {
			s.Action, s.From, s.PassedOver = build.ActionReuse, art.BuiltFor(), ""
			r.reused[target{s.Package, s.Release}] = art
			return nil
		}
		if i == 0 {
			s.PassedOver = "the build for " + a.Release + ": " + why
		}
	}
	return nil
}

// fits says why an artifact does not serve in the place of a build, "" when it does.
func (r *reuser) fits(digest string, s build.Step, src registry.Source) (why string, art registry.Artifact, err error) {
	art, ok, err := r.reg.ArtifactByDigest(digest)
	if err != nil || !ok {
		return "it is gone", art, err
	}
	of := []string{"release", "config", "Module.symvers"} // the kernel's own, which are compared by what is in them
	other := slices.DeleteFunc(build.Changed(buildInputs(art.Inputs), s.Inputs), func(name string) bool { return slices.Contains(of, name) })
	if len(other) > 0 {
		return strings.Join(other, ", ") + " changed", art, nil
	}
	c, why, err := r.comparison(art, s, src)
	if err != nil || why != "" {
		return why, art, err
	}
	var modules []*ko.Info
	for _, m := range art.Modules {
		data, err := r.content(m.Digest)
		if err != nil {
			return err.Error(), art, nil
		}
		info, err := ko.Read(data)
		if err != nil {
			return err.Error(), art, nil
		}
		modules = append(modules, info)
	}
	if err := c.Fits(modules); err != nil {
		return err.Error(), art, nil
	}
	return "", art, nil
}

// comparison is of the kernel of an artifact, as it is today, with that of a step.
func (r *reuser) comparison(art registry.Artifact, s build.Step, src registry.Source) (c *kabi.Comparison, why string, err error) {
	key := [2]string{art.Release, s.Release}
	old, known := r.releases[art.Release]
	if !known {
		if old, err = kernel.Get(r.root, art.Release); err == nil {
			r.releases[art.Release] = old
		}
	}
	if gone := (*kernel.NotFoundError)(nil); errors.As(err, &gone) || err == nil && old.Tree == nil {
		return nil, "its headers are not here, so that kernels cannot be compared", nil
	} else if err != nil {
		return nil, "", err
	}
	m, unfit := r.manifests(src)(old)
	now, err := r.step(src, m, unfit, old)
	if err != nil {
		return nil, "", err
	}
	if now.Action != build.ActionCurrent {
		return nil, "that kernel is another one by now", nil
	}
	if c = r.comparisons[key]; c == nil {
		c = kabi.Compare(r.kernel(old), r.kernel(s.Kernel))
		r.comparisons[key] = c
	}
	return c, "", nil
}

// kernel is a kernel that is read once.
func (r *reuser) kernel(k kernel.Release) *kabi.Kernel {
	if r.seen[k.Name] == nil {
		r.seen[k.Name] = kabi.Of(k)
	}
	return r.seen[k.Name]
}

// reuseStep registers an artifact once more, for another kernel, and tells so.
func (j *job) reuseStep(ctx context.Context, s build.Step) {
	j.begun()
	to := target{s.Package, s.Release}
	if err := j.reuse(ctx, s, j.reused[to]); err != nil {
		j.notBuilt(to, fmt.Errorf("reuse %s for %s: %w", s.Package, s.Release, err))
		return
	}
	j.say("reused %s %s for %s: the build for %s fits", s.Package, s.Version, s.Release, s.From)
}

func (j *job) reuse(ctx context.Context, s build.Step, of registry.Artifact) (err error) {
	attempt, err := j.attempt(registry.OpReuse, s)
	if err != nil {
		return err
	}
	attempt.Log = of.Log
	defer func() { err = j.finish(ctx, attempt, err) }()
	files := map[string]string{}
	for _, m := range of.Modules {
		files[m.Name] = j.reg.BlobPath(m.Digest)
	}
	of.Release, of.InputHash, of.Inputs = s.Release, s.InputHash, registryInputs(s.Inputs)
	art, err := j.reg.PutArtifact(ctx, of, files)
	if err != nil {
		return err
	}
	attempt.Artifact = art.Digest
	j.made(art)
	return nil
}
