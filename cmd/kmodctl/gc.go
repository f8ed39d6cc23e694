package main

import (
	"context"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"kmodctl/registry"
)

// grace is how long what was built for a kernel outlives it: 30 days.
const grace = 30 * 24 * time.Hour

func cmdGC(e *env) *cli.Command {
	return &cli.Command{
		Name:  "gc",
		Usage: "remove builds that no kernel of this machine and no pin needs",
		Description: examples("Superseded builds go at once, those for kernels that were removed after a grace. What is\n"+
			"installed, pinned, imported or built with --headers stays, and so does what a rollback would put back,\n"+
			"the newest build of each version, every source, and the history (but for the logs of kernels long\n"+
			"gone). Unpacked header packages go when no build has used them for the grace.",
			"kmodctl gc --dry-run", "kmodctl gc", "kmodctl gc --grace 0s"),
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "grace", Value: grace, Usage: "keep what was built for a kernel that is gone for `DURATION` longer; default: 720h, 30 days"},
		},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			if c.Duration("grace") < 0 {
				return usagef("--grace %v is below zero", c.Duration("grace"))
			}
			return e.gc(c.Context, c.Duration("grace"))
		},
	}
}

func (e *env) gc(ctx context.Context, grace time.Duration) error {
	reg, err := e.open(ctx, "gc")
	if err != nil {
		return err
	}
	defer e.close(reg)
	var gc registry.GC
	if e.dryRun {
		gc, err = reg.PlanGC(ctx, time.Now(), grace)
	} else {
		gc, err = reg.CollectGarbage(ctx, time.Now(), grace)
	}
	if err != nil {
		return err
	}
	for _, a := range gc.Held {
		e.changed("note: %s %s for %s stays: %s: kmodctl uninstall %s -k %s", a.Package, a.Version, a.Release, a.Why, a.Package, a.Release)
	}
	e.printGC(gc)
	if e.json {
		gc.Artifacts, gc.Blobs, gc.Held, gc.Headers = orEmpty(gc.Artifacts), orEmpty(gc.Blobs), orEmpty(gc.Held), orEmpty(gc.Headers)
		return e.document("gc", struct {
			DryRun bool `json:"dry_run"`
			registry.GC
		}{e.dryRun, gc})
	}
	return nil
}

// printGC prints a line for each thing that goes, to standard output in a dry run.
func (e *env) printGC(gc registry.GC) {
	line, verb := e.changed, "removed"
	if e.dryRun {
		line, verb = e.would, "remove"
	}
	for _, a := range gc.Artifacts {
		line("%s %s %s for %s, %s: %s", verb, a.Package, a.Version, a.Release, size(a.Bytes), a.Why)
	}
	for _, b := range gc.Blobs {
		line("%s %s, %s: %s", verb, b.Digest[:12], size(b.Bytes), b.Why)
	}
	for _, h := range gc.Headers {
		line("%s headers %s, %s: %s", verb, h.Digest[:12], size(h.Bytes), h.Why)
	}
	if n := len(gc.Artifacts) + len(gc.Blobs) + len(gc.Headers); n > 0 {
		line("%s in all: %s", verb, size(gc.Bytes))
		return
	}
	e.say("nothing to do: everything is needed")
}

// size is a number of bytes for people: 512 B, 1.5 KiB, 12.0 MiB.
func size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n)/1024, 0
	for ; f >= 1024 && unit < 3; unit++ {
		f /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGT"[unit])
}
