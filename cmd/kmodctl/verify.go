package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/loader"
	"kmodctl/registry"
)

// Kinds and objects of the drifts that only this package can find.
const (
	driftStale       = "stale"
	driftUnreadable  = "unreadable"
	driftLoadedOlder = "loaded-older"
	objectArtifact   = "artifact"
	objectModule     = "module"
)

func cmdVerify(e *env) *cli.Command {
	return &cli.Command{
		Name:      "verify",
		Usage:     "compare the registry with its files, with /lib/modules and with what is live",
		ArgsUsage: "[--rebuild [NAME|NAME@VERSION ...]]",
		Description: examples("Reads everything: the database, every blob, every installed module, what those shadow, the files\n"+
			"beside them (firmware, rules, options), the module index. One line for each thing that is not as it should be, by its kind:\n\n"+
			"   missing       it is not there\n"+
			"   modified      its content is not what was written\n"+
			"   edited        a configuration file of a package that somebody has changed: it stays so\n"+
			"   foreign       it lies in a folder of ours, and is not ours\n"+
			"   unindexed     modules.dep does not name it\n"+
			"   stale         built from other inputs than today's\n"+
			"   gone          a kernel that modules of ours are installed for\n"+
			"   unreadable    a kernel that cannot be looked at\n"+
			"   loaded-older  the live module is not the installed one\n\n"+
			"Exit code 0: nothing. kmodctl repair mends what can be mended.\n\n"+
			"With --rebuild something else: artifacts are built again from the registry's copy of the source,\n"+
			"in a folder that is removed, and compared with what is recorded. Each is identical, or differs (in\n"+
			"the sections that are named), or failed to build (-v prints the log), or is not compared: its source\n"+
			"or its kernel is gone, or another compiler or configuration would make another file. Exit code 1\n"+
			"when one differs or failed. Nothing is stored or installed; root holds off other writers meanwhile.",
			"kmodctl verify", "kmodctl verify --json", "kmodctl verify --rebuild hello -k 6.1.0-56-amd64"),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "rebuild", Usage: "build artifacts again and compare them byte by byte"},
			kernelFlag("with --rebuild: only for kernel `RELEASE` (repeatable)"),
		},
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			if c.Bool("rebuild") {
				return e.verifyRebuild(c.Context, c.Args().Slice(), c.StringSlice("kernel"))
			}
			if c.IsSet("kernel") {
				return usagef("verify looks at every kernel: -k goes with --rebuild")
			}
			if err := noArgs(c); err != nil {
				return err
			}
			return e.verify(c.Context)
		},
	}
}

// drifted is the outcome of a verify that found something. It has been shown.
type drifted struct{ n int }

func (d drifted) Error() string { return "verify: " + count(d.n, "thing") + " found" }

func (e *env) verify(ctx context.Context) error {
	var drifts []registry.Drift
	var unfinished []string
	reg, err := e.reader(ctx)
	var damaged *registry.DamagedError
	switch {
	case errors.As(err, &damaged):
		drifts = []registry.Drift{registry.DamagedDatabase(damaged)}
	case err != nil:
		return err
	default:
		defer reg.Close()
		j := &job{env: e, reg: reg}
		end := e.err.show("read the registry and what is installed")
		drifts, err = j.drifts(ctx)
		end()
		if err != nil {
			return err
		}
		if unfinished, err = tellUnfinished(reg); err != nil && !errors.As(err, &damaged) { // that is told
			return err
		}
	}
	if e.json {
		if err := e.document("verify", map[string]any{"drifts": orEmpty(drifts), "unfinished": orEmpty(unfinished)}); err != nil {
			return err
		}
	} else {
		for _, d := range drifts {
			fmt.Fprintln(e.out, driftLine(d))
		}
		for _, u := range unfinished {
			fmt.Fprintln(e.out, "unfinished: "+u)
		}
	}
	if n := len(drifts) + len(unfinished); n > 0 {
		return drifted{n}
	}
	e.say("everything is as it should be")
	return nil
}

// tellUnfinished is what was cut off: what a writer is at work on is no drift.
func tellUnfinished(reg *registry.Registry) ([]string, error) {
	what, holder, err := reg.Unfinished()
	if err != nil || holder != "" {
		return nil, err
	}
	return what, nil
}

// driftLine tells of one drift.
func driftLine(d registry.Drift) string {
	line := d.Kind + ": " + d.Object
	if d.Path != "" {
		line += " " + d.Path
	}
	var of []string
	switch {
	case d.Package != "" && d.Version != "":
		of = append(of, d.Package+" "+d.Version)
	case d.Module != "":
		of = append(of, "module "+d.Module)
	}
	if d.Release != "" && !strings.Contains(d.Path, d.Release) {
		of = append(of, d.Release)
	}
	if len(of) > 0 {
		line += " (" + strings.Join(of, ", ") + ")"
	}
	if d.Why != "" {
		line += ": " + d.Why
	}
	return line
}

// drifts is all that differs: what the registry finds, stale artifacts, and live modules
// that are not the installed ones. A damaged database stands alone: its rows tell nothing.
func (j *job) drifts(ctx context.Context) ([]registry.Drift, error) {
	drifts, err := j.reg.Verify(ctx, j.root)
	if err != nil || slices.ContainsFunc(drifts, func(d registry.Drift) bool { return d.Object == registry.ObjectDatabase }) {
		return drifts, err
	}
	installs, err := j.reg.Installs()
	if err != nil {
		return nil, err
	}
	if j.ownRegistry() && len(installs) == 0 { // what is in /lib/modules is the machine's
		drifts = slices.DeleteFunc(drifts, func(d registry.Drift) bool { return d.Object == registry.ObjectInstalled })
	}
	kernels, err := kernel.Find(j.root)
	if err != nil {
		return nil, err
	}
	for _, k := range kernels {
		if k.Err != nil {
			drifts = append(drifts, registry.Drift{Kind: driftUnreadable, Object: registry.ObjectKernel, Release: k.Name, Why: k.Err.Error()})
		}
	}
	steps, err := j.staleSteps(installs, kernels)
	if err != nil {
		return nil, err
	}
	for _, s := range steps {
		drifts = append(drifts, registry.Drift{Kind: driftStale, Object: objectArtifact, Package: s.Package, Version: s.Version, Release: s.Release, Why: s.Reason})
	}
	older, err := j.loadedOlder(installs)
	return append(drifts, older...), err
}

// staleSteps are the builds that changed inputs ask for: of the versions that a bare build
// would take, and of those that are installed.
func (j *job) staleSteps(installs []registry.Install, kernels []kernel.Release) ([]build.Step, error) {
	choices, err := j.inUse(installs, kernels)
	if err != nil {
		return nil, err
	}
	steps, err := j.plan(choices)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(steps, func(s build.Step) bool {
		_, built, err := j.artifact(registry.Source{Name: s.Package, Version: s.Version}, s.Release)
		return s.Action != build.ActionBuild || !built || err != nil
	}), nil
}

// inUse are the versions that a bare build would take, and those that are installed.
func (j *job) inUse(installs []registry.Install, kernels []kernel.Release) ([]choice, error) {
	kernels = slices.DeleteFunc(kernels, func(k kernel.Release) bool { return k.Tree == nil })
	all, err := j.reg.Sources()
	if err != nil {
		return nil, err
	}
	choices, err := j.choose(newestOf(all), kernels)
	if err != nil {
		return nil, err
	}
	placed := byTarget(installs)
	for _, src := range all {
		for i, k := range kernels {
			chosen := func(c choice) bool { return c.Name == src.Name && c.Version == src.Version && c.covers(k.Name) }
			here := placed[target{src.Name, k.Name}]
			if len(here) > 0 && here[0].Version == src.Version && !slices.ContainsFunc(choices, chosen) {
				choices = append(choices, choice{src, kernels[i : i+1]})
			}
		}
	}
	return choices, nil
}

// loadedOlder compares the live modules with those that are installed for the running kernel.
func (j *job) loadedOlder(installs []registry.Install) (drifts []registry.Drift, err error) {
	if !j.root.IsHost() {
		return nil, nil
	}
	running, err := kernel.Running()
	if err != nil {
		return nil, err
	}
	live, err := loader.ReadState(j.root)
	if err != nil {
		return nil, nil // a kernel without modules has none that are live
	}
	for _, i := range installs {
		if i.Release != running {
			continue
		}
		art, _, err := j.reg.ArtifactByDigest(i.Artifact)
		if err != nil {
			return nil, err
		}
		for _, l := range live.Modules {
			if slices.ContainsFunc(art.Modules, func(m registry.Module) bool { return m.Name == i.Module && otherBuild(l, m) }) {
				drifts = append(drifts, registry.Drift{Kind: driftLoadedOlder, Object: objectModule, Module: i.Module, Package: i.Package, Version: i.Version, Release: running,
					Why: "the live module is another build: kmodctl reload " + i.Module})
			}
		}
	}
	return drifts, nil
}
