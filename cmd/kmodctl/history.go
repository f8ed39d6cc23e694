package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

func cmdHistory(e *env) *cli.Command {
	return &cli.Command{
		Name:      "history",
		Usage:     "show every build, install, rollback and uninstall of a package, and its scripts, newest first",
		ArgsUsage: "NAME|NAME@VERSION",
		Description: examples("A package that was removed has its history still. With -v: which inputs a build had changed\n"+
			"against the one before it for that kernel, how well it was isolated (docs/sandbox.md), and the\n"+
			"digest of its log (kmodctl log NAME prints that of the last).",
			"kmodctl history hello", "kmodctl history hello -k 6.1.0-56-amd64 -v", "kmodctl history hello --json"),
		Flags:        []cli.Flag{&cli.StringFlag{Name: "kernel", Aliases: []string{"k"}, Usage: "only for kernel `RELEASE`"}},
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			arg, err := oneArg(c, "package")
			if err != nil {
				return err
			}
			return e.history(c.Context, arg, c.String("kernel"))
		},
	}
}

// historyEntry is an attempt, and what was new about it.
type historyEntry struct {
	registry.Attempt
	Changed   []string `json:"changed,omitempty"`   // inputs that differ from the build before it for that kernel
	Isolation string   `json:"isolation,omitempty"` // of a build whose artifact is still here
}

func (e *env) history(ctx context.Context, arg, release string) error {
	name, version, err := splitPackage(arg)
	if err != nil {
		return err
	}
	reg, err := e.reader(ctx)
	if err != nil {
		return err
	}
	defer reg.Close()
	attempts, err := reg.Attempts(name, release, 0)
	if err != nil {
		return err
	}
	all, err := entries(reg, attempts)
	if err != nil {
		return err
	}
	shown := []historyEntry{}
	for _, h := range all {
		if version == "" || h.Version == version {
			shown = append(shown, h)
		}
	}
	if len(shown) == 0 {
		if _, err := source(reg, arg); err != nil {
			return err
		}
	}
	if len(attempts) == 0 && release != "" {
		if _, err := kernel.Get(e.root, release); err != nil {
			return err
		}
	}
	if e.json {
		return e.document("history", map[string]any{"attempts": shown})
	}
	if len(shown) == 0 {
		e.say("nothing was tried with %s yet", arg)
		return nil
	}
	return e.printHistory(shown)
}

// entries adds to attempts, newest first, what their inputs were and which of them changed.
func entries(reg *registry.Registry, attempts []registry.Attempt) ([]historyEntry, error) {
	inputs := map[string][]registry.Input{} // by hash
	newer := map[string]int{}               // by release: the build that was looked at last
	out := make([]historyEntry, len(attempts))
	for i, a := range attempts {
		out[i] = historyEntry{Attempt: a}
		if a.Op != registry.OpBuild || a.InputHash == "" {
			continue
		}
		if a.Artifact != "" {
			art, _, err := reg.ArtifactByDigest(a.Artifact)
			if err != nil {
				return nil, err
			}
			out[i].Isolation = art.Isolation
		}
		if _, ok := inputs[a.InputHash]; !ok {
			in, err := reg.Inputs(a.InputHash)
			if err != nil {
				return nil, err
			}
			inputs[a.InputHash] = in
		}
		out[i].Inputs = inputs[a.InputHash]
		if n, ok := newer[a.Release]; ok {
			out[n].Changed = build.Changed(buildInputs(out[i].Inputs), buildInputs(out[n].Inputs))
		}
		newer[a.Release] = i
	}
	return out, nil
}

func (e *env) printHistory(all []historyEntry) error {
	head := []string{"TIME", "WHAT", "VERSION", "KERNEL", "OUTCOME", "SECONDS", "WHY"}
	if e.verbose {
		head = append(head, "CHANGED", "ISOLATION", "LOG")
	}
	t := e.table(head...)
	for _, h := range all {
		outcome := h.Outcome
		if outcome == "" {
			outcome = "running"
		}
		why := classed(h.Class, firstLine(h.Error))
		row := []string{h.Started.Local().Format(time.DateTime), h.Op, h.Version, h.Release, outcome, fmt.Sprintf("%.1f", h.Seconds), why}
		if e.verbose {
			row = append(row, strings.Join(h.Changed, ", "), h.Isolation, h.Log)
		}
		t.row(row...)
	}
	return t.flush()
}
