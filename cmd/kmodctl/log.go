package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"kmodctl/internal/kernel"
	"kmodctl/loader"
	"kmodctl/registry"
)

func cmdLog(e *env) *cli.Command {
	return &cli.Command{
		Name:      "log",
		Usage:     "print the log of a package's last build, or a module's lines in the kernel log",
		ArgsUsage: "NAME|NAME@VERSION",
		Description: examples("Failed builds have a log too. Of the kernel log those lines are shown that begin with the module's name, or in which\n"+
			"the kernel names it. -f goes on with those that come, until Ctrl-C; with --json each is a document of one line.",
			"kmodctl log hello", "kmodctl log hello -k 6.12.117+deb12-amd64", "kmodctl log --dmesg hello", "kmodctl log -f hello"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "kernel", Aliases: []string{"k"}, Usage: "the build for kernel `RELEASE`; default: the last one"},
			&cli.BoolFlag{Name: "dmesg", Usage: "the lines of module NAME in the kernel log"},
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "as --dmesg, and then the lines that come"},
		},
		BashComplete: func(c *cli.Context) {
			if c.Bool("dmesg") || c.Bool("follow") {
				completeLive(e)(c)
			} else {
				completePackages(e)(c)
			}
		},
		Action: func(c *cli.Context) error {
			name, err := oneArg(c, "package")
			if err != nil {
				return err
			}
			if c.Bool("follow") {
				return e.followLog(c.Context, name)
			}
			if c.Bool("dmesg") {
				lines, err := loader.KernelLog(name)
				if err != nil {
					return err
				}
				if e.json {
					return e.document("log", map[string]any{"module": name, "lines": lines})
				}
				_, err = fmt.Fprint(e.out, strings.Join(append(lines, ""), "\n"))
				return err
			}
			return e.buildLog(c.Context, name, c.String("kernel"))
		},
	}
}

// followLog prints the lines of a module in the kernel log, until it is interrupted.
func (e *env) followLog(ctx context.Context, module string) error {
	if !e.root.IsHost() {
		return usagef("the kernel log is the running kernel's: --root %s has none", e.root)
	}
	if err := loader.CheckName(module); err != nil {
		return usageError{err.Error()}
	}
	return loader.FollowLog(ctx, e.root, module, true, func(l loader.LogLine) error {
		switch {
		case e.json:
			return e.line("log-line", logLine{Module: module, Seconds: float64(l.Usec) / 1e6, Text: l.Text, Lost: l.Lost})
		case l.Lost:
			e.changed("note: the kernel has overwritten lines before they were read")
			return nil
		}
		_, err := fmt.Fprintln(e.out, l)
		return err
	})
}

// logLine is a document of log -f.
type logLine struct {
	Module  string  `json:"module"`
	Seconds float64 `json:"seconds"` // since boot
	Text    string  `json:"text,omitempty"`
	Lost    bool    `json:"lost,omitempty"`
}

// buildLog prints the log of the last build of NAME or NAME@VERSION. A package that
// was removed has its history still.
func (e *env) buildLog(ctx context.Context, arg, release string) error {
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
	for _, a := range attempts {
		if a.Op == registry.OpBuild && (version == "" || a.Version == version) {
			return e.printLog(reg, a)
		}
	}
	if _, err := source(reg, arg); err != nil {
		return err
	}
	if release == "" {
		return fmt.Errorf("log %s: never built", arg)
	}
	if _, err := kernel.Get(e.root, release); err != nil {
		return err
	}
	return fmt.Errorf("log %s: never built for %s", arg, release)
}

// printLog prints one build's log with a head that says which build it was.
func (e *env) printLog(reg *registry.Registry, a registry.Attempt) error {
	var text []byte
	if a.Log != "" {
		blob, err := reg.Blob(a.Log)
		if err != nil {
			return err
		}
		defer blob.Close()
		if text, err = io.ReadAll(blob); err != nil {
			return err
		}
	}
	if e.json {
		return e.document("log", map[string]any{"attempt": a, "lines": strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")})
	}
	e.say("# %s %s for %s: %s, %s, %.1f s", a.Package, a.Version, a.Release, a.Outcome, a.Started.Local().Format(time.DateTime), a.Seconds)
	_, err := e.out.Write(text)
	return err
}
