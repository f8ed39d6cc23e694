package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"kmodctl/registry"
)

func cmdPin(e *env) *cli.Command {
	return &cli.Command{
		Name:      "pin",
		Usage:     "hold a package at a version, or list what is held",
		ArgsUsage: "[NAME@VERSION]",
		Description: examples("build, install and, of what is not installed, load take the pinned version instead of the\n"+
			"newest one, and gc keeps it. A pin for a kernel (-k) goes before one for all. Nothing is\n"+
			"installed by it: kmodctl install NAME does that. Without argument: the pins; rollback makes them too.",
			"kmodctl pin hello@1.0.0", "kmodctl pin hello@1.0.0 -k 6.1.0-56-amd64", "kmodctl pin"),
		Flags:        []cli.Flag{kernelFlag("only for kernel `RELEASE` (repeatable)")},
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			if c.NArg() == 0 {
				return e.listPins(c.Context, c.StringSlice("kernel"))
			}
			arg, err := oneArg(c, "package")
			if err != nil {
				return err
			}
			return e.pin(c.Context, arg, c.StringSlice("kernel"))
		},
	}
}

func (e *env) listPins(ctx context.Context, releases []string) error {
	reg, err := e.reader(ctx)
	if err != nil {
		return err
	}
	defer reg.Close()
	pins, err := reg.Pins()
	if err != nil {
		return err
	}
	if err := e.checkKernels(releases, pinnedFor(pins)); err != nil {
		return err
	}
	pins = slices.DeleteFunc(pins, func(p registry.Pin) bool {
		return len(releases) > 0 && p.Release != "" && !slices.Contains(releases, p.Release)
	})
	if e.json {
		return e.document("pin", map[string]any{"dry_run": e.dryRun, "pins": orEmpty(pins)})
	}
	if len(pins) == 0 {
		e.say("nothing is pinned")
		return nil
	}
	t := e.table("PACKAGE", "VERSION", "KERNEL", "BUILD")
	for _, p := range pins {
		which := "the newest"
		if p.Artifact != "" {
			which = p.Artifact[:12]
		}
		t.row(p.Package, p.Version, everyKernel(p.Release), which)
	}
	return t.flush()
}

// pinnedFor are the kernels that have a pin of their own.
func pinnedFor(pins registry.Pins) (releases []string) {
	for _, p := range pins {
		releases = append(releases, p.Release)
	}
	return releases
}

// everyKernel names the kernels that a pin is for.
func everyKernel(release string) string {
	if release == "" {
		return "every kernel"
	}
	return release
}

func (e *env) pin(ctx context.Context, arg string, releases []string) error {
	if !strings.Contains(arg, "@") {
		return usagef("pin takes NAME@VERSION: the version to hold %s at", arg)
	}
	if _, err := e.kernels(releases); err != nil { // a misspelled release
		return err
	}
	if len(releases) == 0 {
		releases = []string{""}
	}
	reg, err := e.open(ctx, "pin "+arg)
	if err != nil {
		return err
	}
	defer e.close(reg)
	src, err := source(reg, arg)
	if err != nil {
		return err
	}
	old, err := reg.Pins()
	if err != nil {
		return err
	}
	var set registry.Pins
	for _, release := range releases {
		p := registry.Pin{Package: src.Name, Release: release, Version: src.Version}
		if slices.ContainsFunc(old, func(o registry.Pin) bool { o.At = p.At; return o == p }) {
			e.say("nothing to do: %s is pinned to %s for %s", p.Package, p.Version, everyKernel(release))
			continue
		}
		p.At = time.Now().UTC()
		set = append(set, p)
		if e.dryRun {
			e.would("pin %s to %s for %s", p.Package, p.Version, everyKernel(release))
			continue
		}
		if err := reg.SetPin(p); err != nil {
			return err
		}
		e.changed("pinned %s to %s for %s", p.Package, p.Version, everyKernel(release))
	}
	if err := e.tellUnpinned(reg, src.Name); err != nil {
		return err
	}
	if e.json {
		return e.document("pin", map[string]any{"dry_run": e.dryRun, "pins": orEmpty(set)})
	}
	return nil
}

// tellUnpinned says where another version of a package is installed than its pin says.
func (e *env) tellUnpinned(reg *registry.Registry, pkg string) error {
	pins, err := reg.Pins()
	if err != nil {
		return err
	}
	installs, err := reg.Installs()
	if err != nil {
		return err
	}
	told := map[string]bool{}
	for _, i := range installs {
		p, ok := pins.For(pkg, i.Release)
		if i.Package == pkg && ok && p.Version != i.Version && !told[i.Release] {
			told[i.Release] = true
			e.say("%s %s is installed for %s: %s", pkg, i.Version, i.Release, e.command("build "+pkg))
		}
	}
	return nil
}

func cmdUnpin(e *env) *cli.Command {
	return &cli.Command{
		Name:      "unpin",
		Usage:     "let a package go to its newest version again",
		ArgsUsage: "NAME|NAME@VERSION",
		Description: examples("The next build or install takes the newest version. Without -k every pin of the package goes.",
			"kmodctl unpin hello", "kmodctl unpin hello -k 6.1.0-56-amd64"),
		Flags:        []cli.Flag{kernelFlag("only the pin for kernel `RELEASE` (repeatable)")},
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			name, err := oneArg(c, "package")
			if err != nil {
				return err
			}
			return e.unpin(c.Context, name, c.StringSlice("kernel"))
		},
	}
}

func (e *env) unpin(ctx context.Context, arg string, releases []string) error {
	reg, err := e.open(ctx, "unpin "+arg)
	if err != nil {
		return err
	}
	defer e.close(reg)
	if _, err := source(reg, arg); err != nil {
		return err
	}
	name, version, _ := strings.Cut(arg, "@")
	pins, err := reg.Pins()
	if err != nil {
		return err
	}
	if err := e.checkKernels(releases, pinnedFor(pins)); err != nil {
		return err
	}
	pins = slices.DeleteFunc(pins, func(p registry.Pin) bool {
		return p.Package != name || version != "" && p.Version != version || len(releases) > 0 && !slices.Contains(releases, p.Release)
	})
	if len(pins) == 0 {
		e.say("nothing to do: %s is not pinned", arg)
	}
	for _, p := range pins {
		if e.dryRun {
			e.would("unpin %s from %s for %s", p.Package, p.Version, everyKernel(p.Release))
			continue
		}
		if err := reg.Unpin(p); err != nil {
			return err
		}
		e.changed("unpinned %s from %s for %s", p.Package, p.Version, everyKernel(p.Release))
	}
	if e.json {
		return e.document("unpin", map[string]any{"dry_run": e.dryRun, "pins": orEmpty(pins)})
	}
	return nil
}
