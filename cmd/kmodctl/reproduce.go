package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/registry"
)

// What a rebuild of an artifact comes to.
const (
	rebuildIdentical   = "identical"
	rebuildDiffers     = "differs"
	rebuildFailed      = "failed"       // it cannot be built any more
	rebuildNotCompared = "not compared" // it would be made from something else
)

// rebuild is an artifact that is built once more, and what came of it.
type rebuild struct {
	Package  string      `json:"package"`
	Version  string      `json:"version"`
	Release  string      `json:"release"`
	Artifact string      `json:"artifact"`          // digest of its record
	Outcome  string      `json:"outcome,omitempty"` // "" in a dry run
	Why      string      `json:"why,omitempty"`
	Modules  []otherFile `json:"modules,omitempty"` // those that differ

	artifact registry.Artifact
	source   registry.Source
	step     build.Step // that would make the artifact once more
}

// otherFile is a module of which a rebuild makes another file.
type otherFile struct {
	Name     string          `json:"name"`
	Digest   string          `json:"digest"`  // of the artifact's
	Rebuilt  string          `json:"rebuilt"` // of the other
	Sections []ko.Difference `json:"sections,omitempty"`
	Why      string          `json:"why,omitempty"` // they could not be compared
}

// notReproduced is the outcome of a rebuild that made other files, or none. It has been shown.
type notReproduced struct{ n, of int }

func (n notReproduced) Error() string {
	return fmt.Sprintf("verify: of %s %d could not be built again as recorded", count(n.of, "artifact"), n.n)
}

// verifyRebuild builds artifacts again and compares. The registry is read, and left as it is.
func (e *env) verifyRebuild(ctx context.Context, args, releases []string) error {
	reg, err := e.reader(ctx)
	if err != nil {
		return err
	}
	defer reg.Close()
	j := &job{env: e, reg: reg}
	artifacts, err := j.recorded(args, releases)
	if err != nil {
		return err
	}
	kernels, err := kernel.Find(e.root)
	if err != nil {
		return err
	}
	all := make([]rebuild, len(artifacts))
	var todo []*rebuild
	for i, art := range artifacts {
		if all[i], err = j.again(art, kernels); err != nil {
			return err
		}
		if all[i].Outcome == "" && !e.dryRun {
			todo = append(todo, &all[i])
		}
	}
	if err := j.rebuildAll(ctx, todo); err != nil {
		return err
	}
	tally := map[string]int{}
	for _, r := range all {
		tally[r.Outcome]++
		if !e.json {
			fmt.Fprintln(e.out, r)
		}
	}
	if e.json {
		if err := e.document("verify-rebuild", map[string]any{"dry_run": e.dryRun, "rebuilds": all}); err != nil {
			return err
		}
	}
	if n := tally[rebuildDiffers] + tally[rebuildFailed]; n > 0 {
		return notReproduced{n, len(all)}
	}
	if !e.dryRun {
		e.say("%s: %d identical, %d not compared", count(len(all), "artifact"), tally[rebuildIdentical], tally[rebuildNotCompared])
	}
	return nil
}

// String tells how it went, with a line for each section that differs.
func (r rebuild) String() string {
	text := fmt.Sprintf("%s: %s %s for %s", cmp.Or(r.Outcome, "rebuild"), r.Package, r.Version, r.Release)
	if r.Why != "" {
		text += ": " + r.Why
	}
	for _, m := range r.Modules {
		if m.Why != "" {
			text += fmt.Sprintf("\n  %s: %s", m.Name, m.Why)
		}
		for _, s := range m.Sections {
			text += fmt.Sprintf("\n  %s: %s: %s", m.Name, s.Section, s.How)
		}
	}
	return text
}

// recorded are the newest artifacts of each version, and those that are installed: of what is named, or all.
func (j *job) recorded(args, releases []string) ([]registry.Artifact, error) {
	all, err := j.reg.Artifacts()
	if err != nil {
		return nil, err
	}
	installs, err := j.reg.Installs()
	if err != nil {
		return nil, err
	}
	for _, i := range installs {
		if slices.ContainsFunc(all, func(a registry.Artifact) bool { return a.Digest == i.Artifact }) {
			continue
		}
		art, ok, err := j.reg.ArtifactByDigest(i.Artifact)
		if err != nil {
			return nil, err
		}
		if ok {
			all = append(all, art)
		}
	}
	var built []string
	for _, a := range all {
		built = append(built, a.Release)
	}
	if err := j.checkKernels(releases, built); err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(a registry.Artifact) bool { return len(releases) > 0 && !slices.Contains(releases, a.Release) })
	if len(args) == 0 {
		return all, nil
	}
	var named []registry.Artifact
	for _, arg := range args {
		name, version, err := splitPackage(arg)
		if err != nil {
			return nil, err
		}
		found := false
		for _, a := range all {
			if a.Package == name && (version == "" || a.Version == version) {
				found = true
				if !slices.ContainsFunc(named, func(n registry.Artifact) bool { return n.Digest == a.Digest }) {
					named = append(named, a)
				}
			}
		}
		if !found {
			if _, err := source(j.reg, arg); err != nil {
				return nil, err
			}
			return nil, notBuilt{"verify", arg, releases}
		}
	}
	return named, nil
}

// again is how an artifact can be made once more from what it was made from. Its Outcome
// says, with the reason, that it cannot.
func (j *job) again(art registry.Artifact, kernels []kernel.Release) (rebuild, error) {
	r := rebuild{Package: art.Package, Version: art.Version, Release: art.Release, Artifact: art.Digest, artifact: art}
	not := func(why string) (rebuild, error) {
		r.Outcome, r.Why = rebuildNotCompared, why
		return r, nil
	}
	if of := art.BuiltFor(); of != art.Release {
		return not("it reuses the build for " + of)
	}
	var err error
	var gone *registry.NotFoundError
	if r.source, err = j.reg.Source(art.Package, art.Version); errors.As(err, &gone) {
		return not("its source is no longer in the registry")
	} else if err != nil {
		return r, err
	}
	i := slices.IndexFunc(kernels, func(k kernel.Release) bool { return k.Name == art.Release })
	if i < 0 {
		return not("this machine has no kernel " + art.Release)
	}
	m, err := j.manifests(r.source)(kernels[i])
	if err != nil {
		return not(err.Error())
	}
	r.step, err = j.decide(r.source, m, kernels[i], build.Made{Hash: art.InputHash, Inputs: func() ([]build.Input, error) {
		return buildInputs(art.Inputs), nil
	}})
	if err != nil {
		return r, err
	}
	if r.step.Action != build.ActionCurrent {
		return not(r.step.Reason)
	}
	r.step.Inputs = buildInputs(art.Inputs)
	return r, nil
}

// rebuildAll builds artifacts again, as many at once as build would.
func (j *job) rebuildAll(ctx context.Context, todo []*rebuild) error {
	if len(todo) == 0 {
		return nil
	}
	shop, done, err := j.workshop(ctx)
	if err != nil {
		return err
	}
	defer done()
	end, err := j.openJobs(shop)
	if err != nil {
		return err
	}
	defer end()
	var steps []build.Step
	var expected []time.Duration
	for _, r := range todo {
		steps = append(steps, r.step)
		expected = append(expected, time.Duration(r.artifact.Seconds*float64(time.Second)))
	}
	rows := j.err.plan(titles(steps), expected, j.jobs.Tokens())
	errs := make([]error, len(todo))
	var tasks []build.Task
	for i, r := range todo {
		tasks = append(tasks, build.Task{Seconds: r.artifact.Seconds, Run: func() {
			rows[i].begin()
			defer rows[i].end()
			errs[i] = j.rebuild(ctx, r, shop, func(step, _ string) { rows[i].at(step) })
		}})
	}
	if err := j.jobs.Schedule(ctx, tasks); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(errs...)
}

// workshop is a registry to build in: the machine's, whose next writer removes what is left
// of us after a kill, or one in a temporary folder of who may not write there.
func (j *job) workshop(ctx context.Context) (shop *registry.Registry, done func(), err error) {
	if j.ownRegistry() {
		return j.scratch(ctx, "verify")
	}
	shop, err = j.writer(ctx, "verify --rebuild")
	return shop, func() { j.close(shop) }, err
}

// rebuild builds one artifact again and compares its modules.
func (j *job) rebuild(ctx context.Context, r *rebuild, shop *registry.Registry, at func(step, what string)) error {
	work, done, err := shop.NewWork(r.Package)
	if err != nil {
		return err
	}
	defer done()
	log, err := os.Create(filepath.Join(work, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	made, err := j.produce(ctx, r.source, r.step, work, log, at)
	if text, logErr := os.ReadFile(log.Name()); j.verbose && logErr == nil {
		j.err.Write(text) // at once: other builds go on
	}
	if err != nil {
		r.Outcome, r.Why = rebuildFailed, err.Error()
		return nil
	}
	r.Outcome = rebuildIdentical
	for _, m := range r.artifact.Modules {
		same, other, err := j.compare(m, made.files[m.Name])
		if err != nil {
			return err
		}
		if !same {
			r.Outcome = rebuildDiffers
			r.Modules = append(r.Modules, other)
		}
	}
	return nil
}

// compare holds a file against what the artifact has of that module.
func (j *job) compare(m registry.Module, file string) (same bool, other otherFile, err error) {
	if file == "" {
		return false, otherFile{Name: m.Name, Digest: m.Digest, Why: "the package has no such module"}, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return false, other, err
	}
	other = otherFile{Name: m.Name, Digest: m.Digest, Rebuilt: sha256Of(data)}
	if other.Rebuilt == m.Digest {
		return true, other, nil
	}
	recorded, err := j.content(m.Digest)
	if err == nil {
		other.Sections, err = ko.Differ(recorded, data)
	}
	if err != nil {
		other.Why = err.Error()
	}
	return false, other, nil
}

func (j *job) content(digest string) ([]byte, error) {
	blob, err := j.reg.Blob(digest)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	return io.ReadAll(blob)
}
