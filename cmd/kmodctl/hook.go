package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

// hookTimeLimit is how long a hook may keep a package manager waiting.
const hookTimeLimit = 30 * time.Minute

func cmdHook(e *env) *cli.Command {
	return &cli.Command{
		Name:      "hook",
		Usage:     "do what a change of kernels asks for; package managers call it",
		ArgsUsage: "EVENT [RELEASE|PATH|- ...]",
		Description: examples("A release may be given as a path of that kernel (/lib/modules/RELEASE/vmlinuz, /usr/src/linux-headers-RELEASE);\n"+
			"- reads such paths from standard input, one a line. Other kernels are left alone. EVENT is one of\n\n"+
			"   add       a kernel was installed: all packages are built for it and installed\n"+
			"   headers   its headers were installed: what could not be built before them\n"+
			"   remove    a kernel goes or is gone: the packages' modules for it are uninstalled, artifacts are kept\n"+
			"   changed   kernels came or went, and nobody tells which: add for all that are here, remove for those gone\n"+
			"   boot      add for the running kernel\n"+
			"   initramfs its initramfs is being made: prints the modules of packages whose manifests say initramfs = true\n"+
			"   zypper    changed, after a conversation with libzypp on standard input and output\n\n"+
			"It is silent when there is nothing to do, else prints one line per package, and lets everything else on the\n"+
			"machine go first. What failed is shown by kmodctl status; the exit code tells of it with --strict only, so that no\n"+
			"module that does not build keeps a kernel from being installed. kmodctl hooks install puts the files in place\n"+
			"that call it.",
			"kmodctl hook add 6.1.0-56-amd64", "kmodctl hook remove 6.1.0-53-amd64", "echo usr/lib/modules/6.9.1-arch1-1/vmlinuz | kmodctl hook add -"),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "strict", EnvVars: []string{"KMODCTL_HOOK_STRICT"}, Usage: "exit as build does when something failed, which stops most package managers"},
			&cli.DurationFlag{Name: "time-limit", Value: hookTimeLimit, EnvVars: []string{"KMODCTL_HOOK_TIME_LIMIT"}, Usage: "end what is not done after `TIME`"},
		},
		Action: func(c *cli.Context) error {
			event, args := c.Args().First(), c.Args().Tail()
			if !slices.Contains([]string{"add", "headers", "remove", "changed", "boot", "initramfs", "zypper"}, event) {
				return usagef("hook: no event %q (add, headers, remove, changed, boot, initramfs, zypper)", event)
			}
			strict, limit, err := e.hookManners(c)
			if err != nil {
				return err
			}
			releases, err := releasesIn(args, c.App.Reader)
			if err != nil {
				return err
			}
			if event != "changed" && event != "boot" && event != "zypper" && len(releases) == 0 && !slices.Contains(args, "-") {
				return usagef("hook %s: for which kernel RELEASE?", event)
			}
			return e.unattended(c.Context, "hook "+event, limit, strict, func(ctx context.Context) error {
				return e.hook(ctx, event, releases, c.App.Reader, !strict)
			})
		},
	}
}

// hookManners are how strict and how patient a hook is: as a flag or its variable says, else the configuration. A
// configuration that cannot be read is told, and makes no hook fail.
func (e *env) hookManners(c *cli.Context) (strict bool, limit time.Duration, err error) {
	conf, err := e.readConfig()
	if err == nil && conf.Hook.TimeLimit != "" {
		limit, err = time.ParseDuration(conf.Hook.TimeLimit)
	}
	if err != nil {
		e.report(fmt.Errorf("hook: %w", err))
	}
	strict = conf.Hook.Strict
	if c.IsSet("strict") {
		strict = c.Bool("strict")
	}
	if c.IsSet("time-limit") || limit <= 0 {
		limit = c.Duration("time-limit")
	}
	if limit <= 0 {
		return false, 0, usagef("--time-limit %v is not above zero", limit)
	}
	return strict, limit, nil
}

// lateError is a command for a package manager that was ended because it took too long.
type lateError struct {
	what  string
	limit time.Duration
}

func (l lateError) Error() string {
	return fmt.Sprintf("%s: not done after %v, the time limit", l.what, l.limit)
}

// unattended carries out what a package manager waits for: bounded in time, in few words, and
// with an error only when it is strict, or interrupted.
func (e *env) unattended(ctx context.Context, what string, limit time.Duration, strict bool, do func(context.Context) error) error {
	if !e.verbose {
		e.quiet, e.brief = true, true
		e.err.columns = nil
	}
	bounded, cancel := context.WithTimeoutCause(ctx, limit, lateError{what, limit})
	defer cancel()
	err := do(bounded)
	e.incomplete = e.incomplete && strict
	switch {
	case err == nil, ctx.Err() != nil:
		return err
	case bounded.Err() != nil:
		err = context.Cause(bounded)
	}
	if strict {
		return err
	}
	e.reportUntold(err)
	return nil
}

// reportUntold reports the errors that err joins, but for outcomes: each step of theirs has been reported.
func (e *env) reportUntold(err error) {
	var told partly
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		for _, one := range all.Unwrap() {
			e.reportUntold(one)
		}
	} else if !errors.As(err, &told) {
		e.report(err)
	}
}

// hook does what an event asks for. With once, what failed before is not tried again.
func (e *env) hook(ctx context.Context, event string, releases []string, in io.Reader, once bool) error {
	switch event {
	case "remove":
		return e.kernelsGone(ctx, releases)
	case "zypper":
		if done, err := converse(in, e.out); err != nil || !done {
			return err
		}
		signal.Ignore(unix.SIGPIPE) // it reads our lines no longer
		return e.kernelsChanged(ctx, nil, once)
	case "changed":
		return e.kernelsChanged(ctx, releases, once)
	case "initramfs":
		return e.initramfsModules(ctx, releases)
	case "boot":
		running, err := e.running()
		if err != nil {
			return err
		}
		releases = []string{running}
	}
	return e.kernelsCame(ctx, releases, buildOptions{once: once, newKernel: event == "add"})
}

// releasesIn are the kernel releases that arguments name, each once: itself, by a path, or by paths on
// standard input. A path of no kernel is passed over: package managers match by patterns.
func releasesIn(args []string, stdin io.Reader) (releases []string, err error) {
	put := func(arg string) {
		release := arg
		if strings.Contains(arg, "/") {
			release = releaseOf(arg)
		}
		if release != "" && !slices.Contains(releases, release) {
			releases = append(releases, release)
		}
	}
	for _, arg := range args {
		if arg != "-" {
			put(arg)
			continue
		}
		lines := bufio.NewScanner(stdin)
		for lines.Scan() {
			put(lines.Text())
		}
		if err := lines.Err(); err != nil {
			return nil, fmt.Errorf("read standard input: %w", err)
		}
	}
	return releases, nil
}

// releaseOf is the kernel release that a path is of, or "".
func releaseOf(path string) string {
	parts := strings.Split(path, "/")
	for i, part := range parts {
		release := ""
		if r, ok := strings.CutPrefix(part, "linux-headers-"); ok {
			release = r
		} else if i > 0 && (parts[i-1] == "modules" || parts[i-1] == "kernels") {
			release = part
		}
		if release != "" && release[0] >= '0' && release[0] <= '9' {
			return release
		}
	}
	return ""
}

// kernelsCame builds and installs packages, or all when none is named, for kernels. Where one lacks what a build needs, what
// the registry has for it is installed.
func (e *env) kernelsCame(ctx context.Context, releases []string, o buildOptions, packages ...string) error {
	if e.nothingRegistered(ctx) {
		return nil
	}
	var ready []string
	var lacking []kernel.Release
	var errs []error
	for _, name := range releases {
		k, err := kernel.Get(e.root, name)
		switch {
		case err != nil:
			errs = append(errs, err)
		case k.Tree != nil:
			ready = append(ready, name)
		case k.Err != nil:
			errs = append(errs, fmt.Errorf("build for %s: %w", name, k.Err))
		case k.Modules != "":
			lacking = append(lacking, k)
		}
	}
	if len(lacking) > 0 {
		errs = append(errs, e.withoutHeaders(ctx, lacking))
	}
	if len(ready) > 0 {
		o.releases, o.install, o.nice = ready, true, true
		if late, ok := ctx.Deadline(); ok { // a build that hangs must leave time to install the others
			o.until = late.Add(-time.Until(late) / 5)
		}
		errs = append(errs, e.build(ctx, packages, o))
	}
	return errors.Join(errs...)
}

// passOver leaves out the builds that failed before with the same inputs, unless they failed for want of
// something that may be there by now: a boot, or each call of apk, would go through them again.
func (j *job) passOver(steps []build.Step) error {
	failures, err := j.reg.Failures()
	if err != nil {
		return err
	}
	for i := range steps {
		s := &steps[i]
		if s.Action != build.ActionBuild {
			continue
		}
		at := slices.IndexFunc(failures, func(f registry.Attempt) bool {
			return f.Package == s.Package && f.Version == s.Version && f.Release == s.Release && f.InputHash == s.InputHash
		})
		if at < 0 {
			continue
		}
		switch build.Class(failures[at].Class) {
		case build.ClassTime, build.ClassDisk, build.ClassMemory, build.ClassHeader, build.ClassProgram, build.ClassCompiler:
			continue
		}
		s.Action, s.Reason = build.ActionSkip, "failed before, with the same inputs"
		j.failed[target{s.Package, s.Release}] = errors.New(failures[at].Error) // what is installed stays
	}
	return nil
}

// withoutHeaders installs for kernels what the registry has for them, and tells of those that
// lack a package still: their headers may be on the way, which is another event.
func (e *env) withoutHeaders(ctx context.Context, kernels []kernel.Release) error {
	reg, err := e.open(ctx, "hook add")
	if err != nil {
		return err
	}
	defer e.close(reg)
	j := &job{env: e, reg: reg, named: map[string]bool{}}
	sources, err := newest(reg)
	if err != nil {
		return err
	}
	choices, err := j.choose(sources, kernels)
	if err != nil {
		return err
	}
	if err := j.installAll(ctx, choices, kernels, false); err != nil {
		return err
	}
	for _, k := range kernels {
		for _, c := range choices {
			if _, ok, err := j.artifact(c.Source, k.Name); err != nil {
				return err
			} else if c.covers(k.Name) && !ok {
				m := missingHeaders{k}
				e.changed("%s", strings.Join(append([]string{"not built for " + k.Name + ": " + m.what()}, m.remedies()...), ": "))
				break
			}
		}
	}
	return j.outcome()
}

// kernelsGone uninstalls all packages for kernels.
func (e *env) kernelsGone(ctx context.Context, releases []string) error {
	reg, err := e.reader(ctx)
	if err != nil {
		return err
	}
	installs, err := reg.Installs()
	reg.Close()
	if err != nil {
		return err
	}
	var errs []error
	for _, release := range releases {
		if packages := installedFor(installs, release); len(packages) > 0 {
			errs = append(errs, e.uninstall(ctx, packages, []string{release}, true))
		}
	}
	return errors.Join(errs...)
}

// installedFor are the packages that are installed for a kernel, each once.
func installedFor(installs []registry.Install, release string) (packages []string) {
	for _, i := range installs {
		if i.Release == release && !slices.Contains(packages, i.Package) {
			packages = append(packages, i.Package)
		}
	}
	return packages
}

// kernelsChanged looks itself which kernels are here, of some releases or of all.
func (e *env) kernelsChanged(ctx context.Context, releases []string, once bool) error {
	if e.nothingRegistered(ctx) {
		return nil
	}
	reg, err := e.open(ctx, "hook changed") // a writer notes which are gone
	if err != nil {
		return err
	}
	known, err := reg.Kernels()
	e.close(reg)
	if err != nil {
		return err
	}
	asked := func(release string) bool { return len(releases) == 0 || slices.Contains(releases, release) }
	var gone, here []string
	for _, k := range known {
		if !k.Gone.IsZero() && asked(k.Release) {
			gone = append(gone, k.Release)
		}
	}
	all, err := kernel.Find(e.root)
	if err != nil {
		return err
	}
	for _, k := range all {
		if asked(k.Name) && !slices.Contains(gone, k.Name) {
			here = append(here, k.Name)
		}
	}
	return errors.Join(e.kernelsGone(ctx, gone), e.kernelsCame(ctx, here, buildOptions{once: once}))
}

// converse speaks with libzypp, which a commit plugin does in frames: a command, headers, an
// empty line and a body, ended by a NUL (zypp-plugins in libzypp's documentation). It waits 30 s for each answer, so that
// the work can only begin after the last one, which says that we shall not be killed. done reports whether packages were committed.
func converse(in io.Reader, out io.Writer) (done bool, err error) {
	frames := bufio.NewReader(in)
	for {
		frame, err := frames.ReadString(0)
		if err != nil {
			if err == io.EOF {
				err = nil // the end of a conversation that was broken off
			}
			return done, err
		}
		command, _, _ := strings.Cut(strings.TrimLeft(frame, "\n"), "\n")
		command = strings.Trim(command, "\x00")
		answer := "ACK\n\n\x00"
		switch command {
		case "COMMITEND":
			done = true
		case "PLUGINBEGIN", "PLUGINEND", "COMMITBEGIN", "_DISCONNECT":
		default:
			answer = "_ENOMETHOD\nCommand:" + command + "\n\n\x00"
		}
		if _, err := io.WriteString(out, answer); err != nil {
			return done, err
		}
		if command == "_DISCONNECT" {
			return done, nil
		}
	}
}
