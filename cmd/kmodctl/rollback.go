package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"kmodctl/loader"
	"kmodctl/registry"
)

func cmdRollback(e *env) *cli.Command {
	return &cli.Command{
		Name:      "rollback",
		Usage:     "put back what was installed before, in one step",
		ArgsUsage: "NAME",
		Description: examples("For each kernel that the package is installed for: the build that was installed there before,\n"+
			"and a pin, so that the next build does not put the newer one back. Again, it goes one further\n"+
			"back, but for a kernel whose rollback was cut off and is finished by this command. When all\n"+
			"kernels go back to one older version, kernels that come later get that too.\n"+
			"Nothing is built, and nothing that is live is touched.",
			"kmodctl rollback hello --dry-run", "kmodctl rollback hello", "kmodctl rollback hello -k 6.1.0-56-amd64"),
		Flags:        []cli.Flag{kernelFlag("only for kernel `RELEASE` (repeatable)")},
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			name, err := oneArg(c, "package")
			if err != nil {
				return err
			}
			if strings.Contains(name, "@") {
				return usagef("rollback takes a NAME: %s goes back to what was installed before; kmodctl install NAME@VERSION takes a version", name)
			}
			return e.rollback(c.Context, name, c.StringSlice("kernel"))
		},
	}
}

// rollbackStep is a package that goes back on one kernel, and how that went.
type rollbackStep struct {
	Package    string   `json:"package"`
	Release    string   `json:"release"`
	From       string   `json:"from,omitempty"`    // version
	Version    string   `json:"version,omitempty"` // that it goes back to; "" when there is none
	Artifact   string   `json:"artifact,omitempty"`
	Outcome    string   `json:"outcome,omitempty"` // done or failed; "" before it was tried, and in a dry run
	Why        string   `json:"why,omitempty"`
	PassedOver []string `json:"passed_over,omitempty"` // later ones that are damaged

	art registry.Artifact
}

func (e *env) rollback(ctx context.Context, name string, releases []string) error {
	reg, err := e.open(ctx, "rollback "+name)
	if err != nil {
		return err
	}
	defer e.close(reg)
	if _, err := source(reg, name); err != nil {
		return err
	}
	targets, err := e.rollbackKernels(reg, name, releases)
	if err != nil {
		return err
	}
	j := &job{env: e, reg: reg}
	steps, err := finishedSteps(reg, name, targets)
	if err != nil {
		return err
	}
	last := -1
	for i, release := range targets {
		if steps[i].Outcome != "" {
			e.changed("passed over %s: %s is back at %s by the rollback that was cut off", release, name, steps[i].Version)
			continue
		}
		if steps[i], err = j.rollbackStep(ctx, name, release); err != nil {
			return err
		}
		if steps[i].Outcome == "" {
			last = i
		}
	}
	after := make([]script, len(steps))
	for i := range steps { // scripts come before or after: see finishedSteps
		after[i] = j.beforeRollback(ctx, &steps[i])
	}
	for i := range steps {
		if steps[i].Outcome != "" {
			continue
		}
		pins := steps[i].pins()
		if i == last && len(releases) == 0 && sameOlder(steps) {
			pins = append(pins, registry.Pin{Package: name, Version: steps[i].Version})
		}
		if err := j.rollBack(ctx, &steps[i], pins); err != nil {
			j.tellLeft(steps[:i], steps[i:])
			return err
		}
	}
	for i := range steps {
		if steps[i].Outcome != "failed" {
			j.runScripts(ctx, after[i])
		}
	}
	if e.json {
		if err := e.document("rollback", map[string]any{"dry_run": e.dryRun, "rollbacks": steps}); err != nil {
			return err
		}
	}
	return j.outcome()
}

// finishedSteps are a step for each kernel. It is done where opening the registry has just
// finished what an earlier rollback was cut off at, and for the kernels before those, which
// that one had done: who runs it again wants the rest of it.
func finishedSteps(reg *registry.Registry, name string, targets []string) ([]rollbackStep, error) {
	steps := make([]rollbackStep, len(targets))
	resumed, err := reg.Resumed(name)
	if err != nil || len(resumed) == 0 {
		return steps, err
	}
	all, err := reg.Attempts(name, "", 0)
	if err != nil {
		return nil, err
	}
	next := registry.Attempt{} // of the command that was cut off
	at := len(targets)
	for i, a := range all {
		cut := slices.ContainsFunc(resumed, func(r registry.Attempt) bool { return r.ID == a.ID })
		t := slices.Index(targets, a.Release)
		// A command takes its kernels in order, one attempt after the other.
		if a.Op != registry.OpRollback || t < 0 || !cut && (a.ID != next.ID-1 || t >= at) {
			continue
		}
		next, at = a, t
		if a.Outcome != registry.OutcomeOK {
			continue
		}
		steps[t] = rollbackStep{Package: name, Release: a.Release, Version: a.Version, Artifact: a.Artifact, Outcome: "done", Why: "by the rollback that was cut off"}
		for _, b := range all[i+1:] {
			if b.Release == a.Release && b.Outcome == registry.OutcomeOK && b.Places() {
				steps[t].From = b.Version
				break
			}
		}
	}
	return steps, nil
}

// tellLeft names, after an interruption, the kernels that are left: the same command again would
// take those that are done one further back.
func (j *job) tellLeft(before, left []rollbackStep) {
	if !slices.ContainsFunc(before, func(s rollbackStep) bool { return s.Outcome == "done" }) {
		return
	}
	for _, s := range left {
		if s.Outcome == "" {
			j.changed("not rolled back for %s: %s", s.Release, j.command(rollbackOf(s.Package, s.Release)))
		}
	}
}

// rollbackOf is the rollback of a package on one kernel.
func rollbackOf(pkg, release string) string { return "rollback " + pkg + " -k " + release }

// rollbackFailed is a rollback that failed on one kernel.
type rollbackFailed struct {
	error
	pkg, release string
}

func (r rollbackFailed) Unwrap() error { return r.error }

// rollbackKernels are the kernels to go back on: those named, or all that are here and
// have the package installed.
func (e *env) rollbackKernels(reg *registry.Registry, name string, releases []string) (out []string, err error) {
	kernels, err := e.kernels(releases)
	if err != nil {
		return nil, err
	}
	installs, err := reg.Installs()
	if err != nil {
		return nil, err
	}
	has := releasesOf(installs, name, "")
	for _, k := range kernels {
		if len(releases) > 0 || slices.Contains(has, k.Name) {
			out = append(out, k.Name)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("roll back: %w", &registry.NoPreviousError{Package: name})
	}
	return out, nil
}

// rollbackStep looks for what a kernel goes back to, and reports it when there is nothing.
func (j *job) rollbackStep(ctx context.Context, name, release string) (rollbackStep, error) {
	step := rollbackStep{Package: name, Release: release}
	p, err := j.reg.Previous(ctx, name, release)
	var none *registry.NoPreviousError
	switch {
	case errors.As(err, &none):
		j.tried++
		j.fail(err)
		step.From, step.Outcome, step.Why = none.Version, "failed", err.Error()
		p.Damaged = none.Damaged
	case err != nil:
		return step, err
	default:
		step.art, step.From, step.Version, step.Artifact = p.Artifact, p.From.Version, p.Artifact.Version, p.Artifact.Digest
	}
	for _, d := range p.Damaged {
		j.changed("passed over %v", d)
		step.PassedOver = append(step.PassedOver, d.Error())
	}
	return step, nil
}

// pins hold what a kernel goes back to.
func (s rollbackStep) pins() registry.Pins {
	return registry.Pins{{Package: s.Package, Release: s.Release, Version: s.Version, Artifact: s.Artifact}}
}

// to names what a kernel goes back to.
func (s rollbackStep) to() string {
	if s.Version == s.From {
		return "its build of " + s.art.Built.Local().Format(time.DateTime)
	}
	return s.Version
}

// sameOlder reports whether all kernels go, or have gone, back to one older version.
func sameOlder(steps []rollbackStep) bool {
	return !slices.ContainsFunc(steps, func(s rollbackStep) bool {
		return s.Outcome == "failed" || s.Version != steps[0].Version || registry.CompareVersions(s.Version, s.From) >= 0
	})
}

// beforeRollback runs PRE_INSTALL of what a kernel goes back to, and returns its POST_INSTALL.
func (j *job) beforeRollback(ctx context.Context, step *rollbackStep) (after script) {
	src, err := j.reg.Source(step.Package, step.Version)
	if step.Outcome != "" || err != nil { // its artifact may be here without its source
		return after
	}
	if err := j.runScript(ctx, j.scriptOf(src, registry.OpPreInstall, step.Release)); err != nil {
		step.Outcome, step.Why = "failed", err.Error()
		j.tried++
		j.fail(err)
		return after
	}
	return j.scriptOf(src, registry.OpPostInstall, step.Release)
}

func (j *job) rollBack(ctx context.Context, step *rollbackStep, pins registry.Pins) error {
	j.tried++
	if j.dryRun {
		j.would("roll back %s %s to %s for %s, and pin it", step.Package, step.From, step.to(), step.Release)
		return nil
	}
	dress, err := j.dressFor(ctx, step.art)
	if err == nil {
		_, err = j.reg.Rollback(ctx, step.art, pins, dress)
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		err = rollbackFailed{err, step.Package, step.Release}
		step.Outcome, step.Why = "failed", err.Error()
		j.fail(err)
		return nil
	}
	step.Outcome = "done"
	j.changed("rolled back %s %s to %s for %s; pinned there: kmodctl unpin %s", step.Package, step.From, step.to(), step.Release, step.Package)
	j.tellLive(step.art)
	return nil
}

// tellLive says which modules of an artifact are live as another build.
func (j *job) tellLive(art registry.Artifact) {
	running, err := j.running()
	if err != nil || running != art.Release {
		return
	}
	state, err := loader.ReadState(j.root)
	if err != nil {
		return // a kernel without modules has none that are live
	}
	for _, live := range state.Modules {
		for _, m := range art.Modules {
			if otherBuild(live, m) {
				j.changed("%s is live as another build: kmodctl reload %s", m.Name, m.Name)
			}
		}
	}
}
