package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

func cmdBuild(e *env) *cli.Command {
	return &cli.Command{
		Name:      "build",
		Usage:     "build and install modules for every kernel that has headers",
		ArgsUsage: "[DIR|NAME|NAME@VERSION ...]",
		Description: examples("Without arguments: everything that is registered, for every kernel that has headers and\n"+
			"lacks a current artifact; the job after a kernel upgrade. A folder (an argument with a\n"+
			"slash, or \".\") is added to the registry first. Nothing that is live is touched.",
			"kmodctl build ./hello", "kmodctl build", "kmodctl build hello -k 6.1.0-56-amd64 --no-install", "kmodctl build --dry-run"),
		Flags: []cli.Flag{
			kernelFlag("only for kernel `RELEASE` (repeatable)"),
			&cli.BoolFlag{Name: "no-install", Usage: "leave the artifacts in the registry"},
		},
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			return e.build(c.Context, c.Args().Slice(), c.StringSlice("kernel"), !c.Bool("no-install"))
		},
	}
}

// isPath tells a folder or file on the command line from a name.
func isPath(arg string) bool { return arg == "." || arg == ".." || strings.Contains(arg, "/") }

func (e *env) build(ctx context.Context, args, releases []string, install bool) error {
	manifests := map[string]*build.Manifest{} // of the folders: checked before anything is begun
	for _, arg := range args {
		if isPath(arg) {
			m, err := build.CheckSource(arg)
			if err != nil {
				return err
			}
			manifests[arg] = m
		}
	}
	kernels, note, err := e.buildable(releases)
	if err != nil {
		if len(args)+len(releases) == 0 && e.nothingRegistered(ctx) {
			return nil // a machine without kernels and without modules is well
		}
		return err
	}
	if e.dryRun {
		return e.buildPlan(ctx, args, manifests, kernels, install)
	}
	reg, err := e.writer(ctx, "build "+strings.Join(args, " "))
	if err != nil {
		return err
	}
	defer reg.Close()
	j := &job{env: e, reg: reg, stale: map[string]bool{}}
	var sources []registry.Source
	for _, arg := range args {
		if m := manifests[arg]; m != nil {
			src, err := j.add(ctx, arg, m)
			if err != nil {
				return err
			}
			sources = append(sources, src)
			continue
		}
		src, err := source(reg, arg)
		if err != nil {
			return err
		}
		sources = append(sources, src)
	}
	if len(args) == 0 {
		if sources, err = newest(reg); err != nil {
			return err
		}
	}
	if len(sources) == 0 {
		e.say("nothing to do: nothing is registered")
		return nil
	}
	steps, err := j.plan(sources, kernels)
	if err != nil {
		return err
	}
	if note != "" && slices.ContainsFunc(steps, func(s build.Step) bool { return s.Action == build.ActionBuild }) {
		e.say("%s", note)
	}
	if err := j.buildAll(ctx, sources, steps); err != nil {
		return err
	}
	if install {
		if err := j.installAll(ctx, sources, kernels); err != nil {
			return err
		}
	}
	j.tellSkipped(steps, len(args) > 0)
	if j.done == 0 && len(j.errs) == 0 {
		e.say("nothing to do: %s current for %s", count(len(sources), "package"), count(len(kernels), "kernel"))
	}
	if e.json {
		if err := e.document("build", map[string]any{"steps": steps}); err != nil {
			return err
		}
	}
	return j.outcome(len(steps))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// nothingRegistered reports whether there is no package at all.
func (e *env) nothingRegistered(ctx context.Context) bool {
	reg, err := e.reader(ctx)
	if err != nil {
		return false
	}
	defer reg.Close()
	sources, err := reg.Sources()
	return err == nil && len(sources) == 0
}

// buildable are the kernels to build for. One that is named and cannot be built
// for is an error; else those without headers are passed over, and note tells of
// the running one, since its user may wait for a module there.
func (e *env) buildable(releases []string) (with []kernel.Release, note string, err error) {
	all, err := e.kernels(releases)
	if err != nil {
		return nil, "", err
	}
	if len(all) == 0 {
		return nil, "", fmt.Errorf("find kernels: none in /lib/modules or /usr/src of %s", e.root)
	}
	lacking := all[len(all)-1]
	for _, k := range all {
		switch {
		case k.Tree != nil:
			with = append(with, k)
		case len(releases) > 0:
			return nil, "", missingHeaders{k}
		case k.Running:
			lacking = k
			note = missingHeaders{k}.what() + "; going on with the kernels that can be built for"
		}
	}
	if len(with) == 0 {
		return nil, "", missingHeaders{lacking}
	}
	return with, note, nil
}

// add puts the folder into the registry, unless the same is there already.
func (j *job) add(ctx context.Context, dir string, m *build.Manifest) (registry.Source, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return registry.Source{}, err
	}
	text, err := os.ReadFile(filepath.Join(dir, build.ManifestFile))
	if err != nil {
		return registry.Source{}, err
	}
	src, changed, err := j.reg.AddSource(ctx, dir, m.Name, m.Version, string(text))
	if err != nil {
		return src, err
	}
	if changed {
		j.changed("added %s %s from %s", src.Name, src.Version, dir)
	}
	return src, nil
}

// source finds NAME or NAME@VERSION in the registry.
func source(reg *registry.Registry, arg string) (registry.Source, error) {
	name, version, _ := strings.Cut(arg, "@")
	return reg.Source(name, version)
}

// newest is the newest version of every package.
func newest(reg *registry.Registry) ([]registry.Source, error) {
	all, err := reg.Sources()
	if err != nil {
		return nil, err
	}
	var out []registry.Source
	for _, s := range all {
		if n := len(out); n > 0 && out[n-1].Name == s.Name {
			out[n-1] = s // Sources sorts by name, then version
			continue
		}
		out = append(out, s)
	}
	return out, nil
}

// tellSkipped says why kernels were passed over, when it was asked for by name.
func (j *job) tellSkipped(steps []build.Step, named bool) {
	for _, s := range steps {
		if s.Action == build.ActionSkip && (named || j.verbose) {
			j.say("skipped %s %s for %s: %s", s.Package, s.Version, s.Release, s.Reason)
		}
	}
}

// buildPlan prints what build would do. It copies nothing: a folder's digest is
// what add would find.
func (e *env) buildPlan(ctx context.Context, args []string, manifests map[string]*build.Manifest, kernels []kernel.Release, install bool) error {
	reg, err := e.reader(ctx)
	if err != nil {
		return err
	}
	defer reg.Close()
	j := &job{env: e, reg: reg}
	var sources []registry.Source
	for _, arg := range args {
		m := manifests[arg]
		if m == nil {
			src, err := source(reg, arg)
			if err != nil {
				return err
			}
			sources = append(sources, src)
			continue
		}
		text, err := os.ReadFile(filepath.Join(arg, build.ManifestFile))
		if err != nil {
			return err
		}
		digest, _, err := registry.Digest(arg)
		if err != nil {
			return err
		}
		sources = append(sources, registry.Source{Name: m.Name, Version: m.Version, Digest: digest, Manifest: string(text)})
	}
	if len(args) == 0 {
		if sources, err = newest(reg); err != nil {
			return err
		}
	}
	steps, err := j.plan(sources, kernels)
	if err != nil {
		return err
	}
	if e.json {
		return e.document("build", map[string]any{"dry_run": true, "install": install, "steps": steps})
	}
	for _, s := range steps {
		then := ""
		if install && s.Action == build.ActionBuild {
			then = ", then install"
		}
		fmt.Fprintf(e.out, "%s %s %s for %s%s: %s\n", s.Action, s.Package, s.Version, s.Release, then, s.Reason)
	}
	return nil
}
