package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

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
		Description: examples("Without arguments: the newest (or pinned) version of everything that is registered, for every\n"+
			"kernel that has headers and lacks a current artifact; the job after a kernel upgrade. A folder\n"+
			"(an argument with a slash, or \".\") is added to the registry first. Where a pin says another\n"+
			"version than a folder or NAME@VERSION, that is built and not installed. Nothing that is live is\n"+
			"touched. Without root the artifacts stay in a registry of your own, ~/.local/state/kmodctl.\n\n"+
			"With --headers it builds for the kernels of those headers, and no others. They need not be\n"+
			"installed here, nor are they then: packages are unpacked into the registry, and none of their scripts is\n"+
			"run. Give all the packages of a kernel's headers at once (docs/headers.md). The artifacts stay until you\n"+
			"remove them; they are installed where that kernel has a /lib/modules.\n\n"+
			"--check and -W build in a folder that goes away: nothing is registered or installed. What is found in the\n"+
			"sources is printed as file:line:column: severity: text, and is an error (exit code 1).",
			"kmodctl build ./hello", "kmodctl build", "kmodctl build hello -k 6.1.0-56-amd64 --no-install", "kmodctl build --dry-run",
			"kmodctl build --watch ./hello -k 6.1.0-56-amd64 --no-install", "kmodctl build hello --headers kernel-devel-6.8.10-300.fc40.x86_64.rpm",
			"kmodctl build --check sparse -W 1 ./hello"),
		Flags: []cli.Flag{
			kernelFlag("only for kernel `RELEASE` (repeatable)"),
			&cli.StringSliceFlag{Name: "headers", Usage: "build for the kernels that `PATH` has headers for: a .deb, an .rpm, a build tree, or the root of another machine (repeatable)"},
			&cli.BoolFlag{Name: "no-install", Usage: "leave the artifacts in the registry"},
			&cli.BoolFlag{Name: "keep", Usage: "leave a copy of each build's folder in " + keptIn + " and print how to go on there"},
			&cli.BoolFlag{Name: "nice", Usage: "let everything else on this machine go first (for hooks)"},
			&cli.BoolFlag{Name: "timings", Usage: "tell where each build's time went"},
			&cli.BoolFlag{Name: "watch", Usage: "build the folders again whenever one of their files is saved, until Ctrl-C"},
			&cli.DurationFlag{Name: "time-limit", Value: build.DefaultTimeLimit, Usage: "end a build that is not done after `TIME`"},
			&cli.StringFlag{Name: "check", Usage: "only look at the sources, with `TOOL`: sparse, clang or checkpatch"},
			&cli.StringFlag{Name: "W", Usage: "only look at the sources, with the compiler's warnings of make W=`LEVEL`: 1, 2, 3, or several, 12"},
		},
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			o := buildOptions{
				releases: c.StringSlice("kernel"), headers: c.StringSlice("headers"), install: !c.Bool("no-install"),
				keep: c.Bool("keep"), timings: c.Bool("timings"), nice: c.Bool("nice"), timeLimit: c.Duration("time-limit"),
			}
			if o.timeLimit <= 0 {
				return usagef("--time-limit %v is not above zero", o.timeLimit)
			}
			switch {
			case c.IsSet("check") || c.IsSet("W"):
				for _, other := range []string{"headers", "keep", "timings", "watch"} {
					if c.IsSet(other) {
						return usagef("build --check and -W only look: --%s does not go with them", other)
					}
				}
				return e.check(c.Context, c.Args().Slice(), o, build.Check{Tool: c.String("check"), Warnings: c.String("W")})
			case c.Bool("watch"):
				return e.watch(c.Context, c.Args().Slice(), o)
			}
			return e.build(c.Context, c.Args().Slice(), o)
		},
	}
}

// isPath tells a folder or file on the command line from a name.
func isPath(arg string) bool { return arg == "." || arg == ".." || strings.Contains(arg, "/") }

// buildOptions are the flags of build.
type buildOptions struct {
	releases  []string
	headers   []string // paths
	install   bool
	keep      bool          // folders of builds are left
	timings   bool          // a line tells where a build's time went
	nice      bool          // builds give way to all else
	newKernel bool          // the kernels' initramfs is not made yet
	once      bool          // what failed before is passed over
	timeLimit time.Duration // of one build; 0 is build.DefaultTimeLimit
	until     time.Time     // when all builds must have ended; zero is never
}

// limit is how long a build that begins now may take.
func (o buildOptions) limit() time.Duration {
	if o.until.IsZero() {
		return o.timeLimit
	}
	return min(cmp.Or(o.timeLimit, build.DefaultTimeLimit), max(time.Until(o.until).Round(time.Second), time.Second))
}

func (e *env) build(ctx context.Context, args []string, o buildOptions) error {
	if err := e.checkFolders(ctx, args); err != nil {
		return err
	}
	given, err := openHeaders(o.headers)
	if err != nil {
		return err
	}
	var kernels, lacking []kernel.Release
	var unfit error
	if len(o.headers) == 0 {
		kernels, lacking, unfit = e.buildable(o.releases)
		var unknown *kernel.NotFoundError
		if errors.As(unfit, &unknown) {
			return unfit
		}
		if unfit != nil && e.nothingRegistered(ctx) {
			if len(args)+len(o.releases) > 0 {
				return unfit
			}
			kernels, lacking, unfit = nil, nil, nil // a machine without headers and without packages is well
		}
	}
	reg, err := e.open(ctx, strings.TrimSpace("build "+strings.Join(args, " ")))
	if err != nil {
		return err
	}
	defer e.close(reg)
	if len(o.headers) > 0 {
		all, done, err := given.kernels(ctx, e, reg, o.releases)
		if err != nil {
			return err
		}
		defer done()
		kernels, lacking, unfit = fit(given, all, len(o.releases) > 0)
	}
	if unfit != nil { // what was cut off is finished all the same
		return unfit
	}
	j := &job{env: e, reg: reg, failed: map[target]error{}, named: map[string]bool{}, headers: given.names, options: o, events: e.json}
	sources, err := j.sources(ctx, args)
	if err != nil {
		return err
	}
	sources = j.withNeeds(sources, kernels)
	j.given = map[string]registry.Source{}
	for _, src := range sources {
		j.given[src.Name] = src
	}
	choices, err := j.choose(sources, kernels)
	if err != nil {
		return err
	}
	steps, err := j.plan(choices)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		onlyAutomatic(steps)
	}
	if err := j.planReuse(choices, steps); err != nil {
		return err
	}
	if o.once {
		if err := j.passOver(steps); err != nil {
			return err
		}
	}
	for _, line := range e.tellLacking(lacking, steps) {
		e.changed("%s", line) // with -q too: after a reboot into it the driver is missing
	}
	for _, k := range lacking {
		if k.Err != nil && len(steps) > 0 {
			j.begun()
			j.fail(fmt.Errorf("build for %s: %w", k.Name, k.Err))
		}
	}
	place := func(kernel.Release) error { return nil }
	if o.install {
		if place, err = j.placer(ctx, choices, false); err != nil {
			return err
		}
	}
	if err := j.buildAll(ctx, choices, steps, kernels, place); err != nil {
		return err
	}
	if e.json {
		if err := e.line("build", map[string]any{"dry_run": e.dryRun, "steps": j.results(steps), "installs": orEmpty(j.installs)}); err != nil {
			return err
		}
	}
	j.summary(steps, len(args) > 0)
	return j.outcome()
}

// checkFolders checks every folder among the arguments before anything is begun.
func (e *env) checkFolders(ctx context.Context, args []string) error {
	for _, arg := range args {
		if arg == "" {
			return usagef("build: an argument is empty: give the NAME of a package, or a folder")
		}
		if isPath(arg) {
			if err := e.checkFolder(ctx, arg); err != nil {
				return err
			}
		}
	}
	return nil
}

// sources are the packages that the arguments name, each once, folders added; all
// packages when there are none. Names are looked up first: one that is not there
// leaves no folder added.
func (j *job) sources(ctx context.Context, args []string) ([]registry.Source, error) {
	if len(args) == 0 {
		return newest(j.reg)
	}
	var out []registry.Source
	put := func(src registry.Source) error {
		i := slices.IndexFunc(out, func(s registry.Source) bool { return s.Name == src.Name })
		switch {
		case i < 0:
			out = append(out, src)
		case out[i].Version != src.Version:
			return usagef("build %s: one version at a time, not both %s and %s", src.Name, out[i].Version, src.Version)
		default:
			out[i] = src
		}
		return nil
	}
	for _, arg := range args {
		if !isPath(arg) {
			src, err := source(j.reg, arg)
			if err != nil {
				return nil, err
			}
			if err := put(src); err != nil {
				return nil, err
			}
			j.named[src.Name] = j.named[src.Name] || strings.Contains(arg, "@")
		}
	}
	for _, arg := range args {
		if isPath(arg) {
			src, err := j.register(ctx, arg)
			if err != nil {
				return nil, err
			}
			if err := put(src); err != nil {
				return nil, err // two folders of one name: both are added, as add would
			}
			j.named[src.Name] = true
		}
	}
	return out, nil
}

// summary says what was passed over, and that nothing was to be done where that
// is so.
func (j *job) summary(steps []build.Step, named bool) {
	tally := map[string]int{}
	for _, s := range steps {
		tally[s.Action]++
		if s.PassedOver != "" && j.verbose && !j.dryRun {
			j.say("%s %s for %s is not reused: %s", s.Package, s.Version, s.Release, s.PassedOver)
		}
		if s.Action == build.ActionSkip && (named || j.verbose) {
			j.say("skipped %s %s for %s: %s", s.Package, s.Version, s.Release, s.Reason)
		}
		if s.Reason == pinnedBuild && (named || j.verbose) {
			j.say("%s %s for %s is %s: kmodctl unpin %s", s.Package, s.Version, s.Release, pinnedBuild, s.Package)
		}
	}
	if reused := tally[build.ActionReuse]; reused > 0 {
		j.say("%d of %s reused", reused, count(reused+tally[build.ActionBuild], "build"))
	}
	switch {
	case j.tried > 0 || j.dryRun:
	case len(steps) == 0:
		j.say("nothing to do: nothing is registered")
	case tally[build.ActionCurrent] == 0:
		j.say("nothing to do: none of these kernels is one to build for")
	default:
		j.say("nothing to do: %s current", count(tally[build.ActionCurrent], "artifact"))
	}
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

// buildable is fit of this machine's kernels.
func (e *env) buildable(releases []string) (with, lacking []kernel.Release, err error) {
	all, err := e.kernels(releases)
	if err != nil {
		return nil, nil, err
	}
	return fit(e.root, all, len(releases) > 0)
}

// fit are the kernels to build for, of all that were found in a root or in headers, and those
// that lack something for it. One that is named and lacks something is an error, and so it is
// when all do.
func fit(where any, all []kernel.Release, named bool) (with, lacking []kernel.Release, err error) {
	if len(all) == 0 {
		return nil, nil, fmt.Errorf("find kernels: none in /lib/modules or /usr/src of %v", where)
	}
	for _, k := range all {
		switch {
		case k.Tree != nil:
			with = append(with, k)
		case named && k.Err != nil:
			return nil, nil, fmt.Errorf("build for %s: %w", k.Name, k.Err)
		case named:
			return nil, nil, missingHeaders{k}
		default:
			lacking = append(lacking, k)
		}
	}
	if len(with) == 0 {
		newest := lacking[len(lacking)-1]
		if i := slices.IndexFunc(lacking, func(k kernel.Release) bool { return k.Running }); i >= 0 {
			newest = lacking[i]
		}
		return nil, nil, missingHeaders{newest}
	}
	return with, lacking, nil
}

// tellLacking says of each kernel that cannot be built for what it lacks. The running
// kernel of a container or a VPS, which has no modules folder, is normal: it is
// told of only while something is built.
func (e *env) tellLacking(kernels []kernel.Release, steps []build.Step) (lines []string) {
	if len(steps) == 0 {
		return nil
	}
	atWork := slices.ContainsFunc(steps, func(s build.Step) bool { return s.Action == build.ActionBuild })
	for _, k := range kernels {
		m := missingHeaders{k}
		switch {
		case k.Err != nil: // a failure
		case k.Modules != "":
			lines = append(lines, strings.Join(append([]string{"not built for " + k.Name + ": " + m.what()}, m.remedies()...), ": "))
		case atWork && !e.quiet:
			lines = append(lines, m.what()+"; going on with the kernels that can be built for")
		}
	}
	return lines
}

// register adds a folder for more than this command. Where there was not the same before, what is odd about its dkms.conf is
// told, and its POST_ADD is run; what that makes in the folder belongs to the source.
func (j *job) register(ctx context.Context, dir string) (registry.Source, error) {
	src, changed, err := j.add(ctx, dir)
	if err != nil || !changed {
		return src, err
	}
	j.tellConf(src)
	s := j.scriptOf(src, registry.OpPostAdd, "")
	j.runScripts(ctx, s)
	if s.text == "" || j.dryRun {
		return src, nil
	}
	src, _, err = j.add(ctx, dir)
	return src, err
}

// add puts the folder, whose manifest CheckSource liked, into the registry; changed is false when the same is there already.
func (j *job) add(ctx context.Context, dir string) (src registry.Source, changed bool, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return src, false, err
	}
	// The lock may have been waited for: what counts is the manifest as it is now,
	// and AddSource refuses one that is not the archive's.
	text, name, version, err := j.identify(ctx, dir)
	if err != nil {
		return src, false, err
	}
	if j.dryRun {
		src = registry.Source{Name: name, Version: version, Origin: dir, Manifest: text}
		src.Digest, src.Files, err = registry.Digest(ctx, dir)
		old, _ := j.reg.Source(name, version)
		return src, old.Digest != src.Digest, err
	}
	if src, changed, err = j.reg.AddSource(ctx, dir, name, version, text); err != nil {
		return src, false, err
	}
	if changed {
		j.say("added %s %s from %s", src.Name, src.Version, dir)
	}
	return src, changed, nil
}

// source finds NAME or NAME@VERSION in the registry.
func source(reg *registry.Registry, arg string) (registry.Source, error) {
	name, version, err := splitPackage(arg)
	if err != nil {
		return registry.Source{}, err
	}
	return reg.Source(name, version)
}

// newest is the newest version of every package.
func newest(reg *registry.Registry) ([]registry.Source, error) {
	all, err := reg.Sources()
	return newestOf(all), err
}

// newestOf is the newest version of every package among all sources.
func newestOf(all []registry.Source) (out []registry.Source) {
	for _, s := range all {
		if n := len(out); n > 0 && out[n-1].Name == s.Name {
			out[n-1] = s // Sources sorts by name, then version
			continue
		}
		out = append(out, s)
	}
	return out
}
