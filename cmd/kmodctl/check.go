package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"kmodctl/build"
	"kmodctl/registry"
)

// checkStep is a look at one package for one kernel.
type checkStep struct {
	Package  string          `json:"package"`
	Version  string          `json:"version"`
	Release  string          `json:"release"`
	Outcome  string          `json:"outcome,omitempty"` // clean, found, failed or skipped; "" in a dry run
	Why      string          `json:"why,omitempty"`     // of failed and skipped
	Class    build.Class     `json:"class,omitempty"`   // of a build that failed
	Findings []build.Finding `json:"findings"`
}

// findings is a source that a checker has something against.
type findings struct {
	pkg, release string
	n            int
}

func (f findings) Error() string {
	return fmt.Sprintf("check %s for %s: %s", f.pkg, f.release, count(f.n, "finding"))
}

// subject is a source to be looked at.
type subject struct {
	registry.Source
	reg *registry.Registry // that has it
	dir string             // the folder that was named, "" for a package: what is found is named below it
}

// check looks at folders and packages with a checker. Like run it works on a registry that lives as
// long as the command; that of the machine is only read.
func (e *env) check(ctx context.Context, args []string, o buildOptions, c build.Check) error {
	switch {
	case c.Tool != "" && !slices.Contains([]string{build.CheckSparse, build.CheckClang, build.CheckCheckpatch}, c.Tool):
		return usagef("build --check %s: sparse, clang or checkpatch", c.Tool)
	case strings.Trim(c.Warnings, "123") != "", c == build.Check{}:
		return usagef("build -W %s: a level is 1, 2 or 3, or several of them: 12", c.Warnings)
	case len(args) == 0:
		return usagef("build --check and -W take folders or packages")
	}
	if err := e.checkFolders(ctx, args); err != nil {
		return err
	}
	kernels, _, err := e.buildable(o.releases)
	if err != nil {
		return err
	}
	own, done, err := e.scratch(ctx, "check")
	if err != nil {
		return err
	}
	defer done()
	machine, err := e.reader(ctx)
	if err != nil {
		return err
	}
	defer machine.Close()

	j := &job{env: e, reg: own, options: o}
	end, err := j.openJobs(own)
	if err != nil {
		return err
	}
	defer end()
	steps := []checkStep{}
	for _, arg := range args {
		s, err := e.subject(ctx, own, machine, arg)
		if err != nil {
			return err
		}
		manifest := (&job{env: e, reg: s.reg}).manifests(s.Source)
		for _, k := range kernels {
			m, err := manifest(k)
			if err != nil {
				return err
			}
			step := j.planner.Decide(m, s.Digest, k, nil, build.Made{})
			look := checkStep{Package: s.Name, Version: s.Version, Release: k.Name, Findings: []build.Finding{}}
			switch {
			case step.Action == build.ActionSkip:
				look.Outcome, look.Why = "skipped", step.Reason
				e.say("skipped %s %s for %s: %s", s.Name, s.Version, k.Name, step.Reason)
			case e.dryRun:
				e.would("check %s %s for %s", s.Name, s.Version, k.Name)
			default:
				j.look(ctx, s, step, c, &look)
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
			}
			steps = append(steps, look)
		}
	}
	if e.json {
		if err := e.document("check", map[string]any{"dry_run": e.dryRun, "check": c.Tool, "warnings": c.Warnings, "steps": steps}); err != nil {
			return err
		}
	}
	return j.outcome()
}

// subject finds what an argument names; a folder is copied into own, as every build does.
func (e *env) subject(ctx context.Context, own, machine *registry.Registry, arg string) (subject, error) {
	if !isPath(arg) {
		src, err := source(machine, arg)
		return subject{src, machine, ""}, err
	}
	quiet := *e
	quiet.quiet, quiet.dryRun = true, false
	src, _, err := (&job{env: &quiet, reg: own}).add(ctx, arg)
	return subject{src, own, arg}, err
}

// look does one step and says how it went.
func (j *job) look(ctx context.Context, s subject, step build.Step, c build.Check, done *checkStep) {
	j.begun()
	end := j.err.show(fmt.Sprintf("check %s for %s", s.Name, step.Release))
	found, err := j.lookAt(ctx, s, step, c)
	end()
	for _, f := range found {
		f.File = filepath.Join(s.dir, f.File)
		done.Findings = append(done.Findings, f)
		if !j.json {
			fmt.Fprintln(j.out, f)
		}
	}
	switch {
	case ctx.Err() != nil:
	case err != nil:
		done.Outcome, done.Why, done.Class = "failed", err.Error(), build.ClassOf(err)
		j.fail(unlogged{err})
	case len(found) > 0:
		done.Outcome = "found"
		j.fail(findings{s.Name, step.Release, len(found)})
	default:
		done.Outcome = "clean"
		j.say("checked %s %s for %s: no findings", s.Name, s.Version, step.Release)
	}
}

func (j *job) lookAt(ctx context.Context, s subject, step build.Step, c build.Check) ([]build.Finding, error) {
	if step.Err != nil {
		return nil, fmt.Errorf("check %s for %s: %w", s.Name, step.Release, step.Err)
	}
	work, done, err := j.reg.NewWork(s.Name)
	if err != nil {
		return nil, err
	}
	defer done()
	dir := filepath.Join(work, "source")
	if err := extract(s.reg, s.Source, j.root, step.Manifest, dir); err != nil {
		return nil, err
	}
	pristine, err := pristine(s.reg, s.Source, step.Manifest, work)
	if err != nil {
		return nil, err
	}
	log := io.Writer(io.Discard)
	if j.verbose {
		log = j.err
	}
	return build.Look(ctx, build.Job{
		Manifest: step.Manifest, Kernel: step.Kernel, Source: dir, Pristine: pristine, Toolchain: step.Toolchain, Log: log, Jobserver: j.jobs, TimeLimit: j.options.timeLimit, Nice: j.options.nice,
	}, c)
}
