package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/loader"
	"kmodctl/registry"
)

func cmdLoad(e *env) *cli.Command {
	return &cli.Command{
		Name:      "load",
		Usage:     "load a module into the running kernel, dependencies first",
		ArgsUsage: "MODULE|ALIAS|FILE.ko [PARAMETER=VALUE ...]",
		Description: examples("MODULE is found as modprobe finds it: by its name, by an alias of modprobe.d or of the module (the\n"+
			"modalias of a device), or as symbol:NAME. What modprobe.d and the kernel command line say holds:\n"+
			"options, soft dependencies, blacklist, install lines. Parameters go to what is asked for alone; commas\n"+
			"in a value are kept. docs/loader.md tells where kmodctl and modprobe differ.\n\n"+
			"An installed file that was damaged gives way to the registry's copy. What was built and not installed\n"+
			"is loaded where the kernel has no module of that name: the pinned build, else the newest.\n\n"+
			"With -k, --root or both, --dry-run plans for a kernel that does not run, on which nothing is loaded yet.",
			"kmodctl load hello", "kmodctl load params count=3 ports=80,443", "kmodctl load ./hello.ko", "kmodctl load --all tun veth",
			"kmodctl load pci:v00008086d00001533sv00001028sd00000000bc02sc00i00 --dry-run", "kmodctl load e1000e -k 6.1.0-56-amd64 --dry-run --json"),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "every argument is a module; one that fails holds up no other"},
			&cli.StringFlag{Name: "kernel", Aliases: []string{"k"}, Usage: "plan for kernel `RELEASE`, with --dry-run"},
			&cli.StringSliceFlag{Name: "ignore-install", Usage: "load `MODULE` though an install line of modprobe.d refuses it or has a command in its place"},
			&cli.BoolFlag{Name: "run-commands", Usage: "run the commands of install lines, as modprobe does"},
			&cli.BoolFlag{Name: "unchecked", Usage: "ask the kernel without checking first whether it would refuse"},
			&cli.BoolFlag{Name: "allow-unknown-parameters", Usage: "give a module parameters that it does not have, which the kernel ignores"},
			timeoutFlag(),
		},
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			if c.NArg() == 0 {
				return usagef("load takes a module: kmodctl load NAME [PARAMETER=VALUE ...]")
			}
			if !c.Bool("all") {
				if err := checkParams(c.Args().First(), c.Args().Tail()); err != nil {
					return err
				}
			}
			machine, err := e.machine(c)
			if err != nil {
				return err
			}
			defer machine.Close()
			l, err := e.loading(c.Context, c.String("kernel"))
			if err != nil {
				return err
			}
			defer l.own.close()
			l.machine = machine
			l.unchecked, l.anyParameters = c.Bool("unchecked"), c.Bool("allow-unknown-parameters")
			l.ignoreInstall, l.runCommands = c.StringSlice("ignore-install"), c.Bool("run-commands")
			if !c.Bool("all") {
				return l.load(c.Context, c.Args().First(), c.Args().Tail())
			}
			if e.json && c.NArg() > 1 {
				return usagef("load prints one document for one module: name one with --json")
			}
			return l.loadAll(c.Context, c.Args().Slice())
		},
	}
}

// loading is a load command: what it has read of the machine.
type loading struct {
	*env
	release       string
	index         *loader.Index
	config        *loader.Config
	state         *loader.State // nil for a kernel that does not run
	own           *own
	ignoreInstall []string
	runCommands   bool
	unchecked     bool
	anyParameters bool
	machine       *loader.Loader
}

// loading reads what a load for a kernel needs; "" is the running one, or below a
// --root the one that such commands take.
func (e *env) loading(ctx context.Context, release string) (*loading, error) {
	running, err := kernel.Running()
	if err != nil {
		return nil, err
	}
	l := &loading{env: e, release: cmp.Or(release, running)}
	if release == "" && !e.root.IsHost() {
		if l.release, err = e.defaultRelease(); err != nil {
			return nil, err
		}
	}
	live := e.root.IsHost() && l.release == running
	if !live && !e.dryRun {
		return nil, usagef("a module is loaded into the running kernel: for another one there is --dry-run")
	}
	l.index = e.index(l.release)
	if _, err := os.Stat(l.index.Dir); err != nil && !live {
		if _, err := kernel.Get(e.root, l.release); err != nil {
			return nil, err
		}
	}
	if live {
		if l.state, err = loader.PeekState(e.root); err != nil {
			return nil, fmt.Errorf("load: %w", err)
		}
	}
	l.config = loader.ReadConfig(e.root, live)
	l.own = &own{env: e, ctx: ctx, release: l.release, modules: l.index.Dir}
	return l, nil
}

func checkParams(name string, params []string) error {
	for _, p := range params {
		if strings.HasPrefix(p, "=") || isPath(strings.SplitN(p, "=", 2)[0]) {
			return usagef("load %s: %q is not PARAMETER=VALUE; several modules are loaded with --all", name, p)
		}
	}
	return nil
}

// loadAll loads several modules; one that fails holds up no other.
func (l *loading) loadAll(ctx context.Context, names []string) error {
	var failed []error
	for _, name := range names {
		err := l.load(ctx, name, nil)
		if ctx.Err() != nil {
			return err
		}
		if err != nil {
			l.report(err)
			failed = append(failed, err)
		}
	}
	if len(failed) > 0 {
		return partly{failed: len(failed), of: len(names), err: failed[len(failed)-1]}
	}
	return nil
}

func (l *loading) load(ctx context.Context, name string, params []string) error {
	plan, err := l.plan(name, params)
	if broken := unreadable(name, err); broken != nil {
		err = cmp.Or(l.check(broken), err)
	}
	if err != nil {
		return err
	}
	if err := bareWords(plan, params); err != nil {
		return err
	}
	if !l.dryRun && !l.runCommands {
		if err := withoutCommands(plan); err != nil {
			return err
		}
	}
	unfit := l.check(plan)
	if unfit != nil && !l.dryRun {
		return l.ofPackage(unfit)
	}
	if err := l.act(ctx, l.machine, plan); err != nil {
		l.explain(err, plan)
		return l.ofPackage(err)
	}
	return l.ofPackage(unfit)
}

// plan is what loading a module, or a file, would do.
func (l *loading) plan(name string, params []string) (*loader.Plan, error) {
	req := loader.LoadRequest{Name: name, Params: params, IgnoreInstall: l.ignoreInstall,
		Index: l.index, Config: l.config, Lookup: l.own.find, State: l.state, Release: l.release}
	if isModuleFile(name) {
		req.Name, req.File = "", name
	}
	plan, err := loader.PlanLoad(req)
	if l.own.err != nil {
		return nil, l.own.err
	}
	if err != nil {
		return nil, err
	}
	for _, step := range plan.Steps {
		if why := l.own.damage(step.Module); why != "" && step.Action == loader.Insert {
			plan.Notes = append(plan.Notes, why+": "+step.Path+" is loaded; kmodctl install "+l.own.packageOf(step.Module)+" puts it right")
		}
	}
	return plan, nil
}

// commandError tells that a line of modprobe.d has a command in a module's place,
// which is run for whoever asks for that only.
type commandError struct{ module, command string }

func (c commandError) Error() string {
	return fmt.Sprintf("load %s: modprobe.d has a command in its place: %s", c.module, c.command)
}

// withoutCommands takes the commands out of a plan that nobody needs.
func withoutCommands(plan *loader.Plan) error {
	for i, s := range plan.Steps {
		if s.Action != loader.Command {
			continue
		}
		if !s.Optional {
			return commandError{s.Module, s.Command}
		}
		plan.Steps[i].Action = loader.None
		plan.Notes = append(plan.Notes, fmt.Sprintf("%s is left out, as its command is run with --run-commands only: %s", s.Module, s.Command))
	}
	return nil
}

// isModuleFile tells a .ko file on the command line from a module's name.
func isModuleFile(arg string) bool {
	_, named := ko.CompressionOf(arg)
	return named || isPath(arg)
}

func isModuleName(arg string) bool { return !isModuleFile(arg) }

// bareWords refuses a parameter without a value that the module does not declare:
// more likely it was meant as a second module, and the kernel would ignore it.
func bareWords(plan *loader.Plan, params []string) error {
	i := slices.IndexFunc(plan.Steps, func(s loader.Step) bool { return s.Module == plan.Asked[0] })
	asked := plan.Steps[i]
	for _, p := range params {
		if strings.Contains(p, "=") || asked.Path == "" {
			continue
		}
		info, err := ko.Open(asked.Path)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(info.Params, func(x ko.Param) bool { return x.Name == p }) {
			return usagef("load %s: it has no parameter %q, and one module is loaded at a time", asked.Module, p)
		}
	}
	return nil
}

// otherBuild reports whether a live module is m and, by its build-id, another build of it.
func otherBuild(live loader.Live, m registry.Module) bool {
	return live.Name == m.Name && live.BuildID != "" && m.BuildID != "" && live.BuildID != m.BuildID
}

// index is the module index of a kernel, empty where it has no modules folder.
func (e *env) index(release string) *loader.Index {
	dir := filepath.Join("/lib/modules", release)
	if usr := filepath.Join("/usr", dir); !e.isThere(dir) && e.isThere(usr) {
		dir = usr
	}
	return loader.OpenIndex(e.root, dir)
}

func (e *env) isThere(name string) bool {
	_, err := e.root.Path(name)
	return err == nil
}

// kept are the registry's modules for one kernel.
type kept struct {
	root     kernel.Root
	reg      *registry.Registry
	modules  map[string]keptModule       // by name: what is installed, else the pinned or the newest artifact's
	installs map[string]registry.Install // by name: what is installed
	damaged  map[string]string           // of the modules looked for, files that are not what was installed: what happened to them
}

// keptModule is a module and the package that it is of.
type keptModule struct {
	registry.Module
	Package, Version string
}

func (e *env) modulesOf(reg *registry.Registry, release string) (*kept, error) {
	k := &kept{e.root, reg, map[string]keptModule{}, map[string]registry.Install{}, map[string]string{}}
	sources, err := reg.Sources()
	if err != nil {
		return nil, err
	}
	j := &job{env: e, reg: reg}
	for _, src := range sources { // by name, then version: the newest that was built wins, unless one is pinned
		art, _, err := j.artifact(src, release)
		if err != nil {
			return nil, err
		}
		if p, ok := j.pins.For(src.Name, release); ok && p.Version != src.Version {
			continue
		}
		for _, m := range art.Modules {
			k.modules[m.Name] = keptModule{m, src.Name, src.Version}
		}
	}
	installs, err := reg.Installs()
	if err != nil {
		return nil, err
	}
	for _, i := range installs {
		if i.Release != release {
			continue
		}
		k.installs[i.Module] = i
		if k.modules[i.Module].Digest == i.Digest {
			continue
		}
		// What was installed is what loads, not a newer build that was not.
		if k.modules[i.Module], err = k.installed(i); err != nil {
			return nil, err
		}
	}
	return k, nil
}

func (k *kept) installed(i registry.Install) (keptModule, error) {
	art, _, err := k.reg.ArtifactByDigest(i.Artifact)
	for _, m := range art.Modules {
		if m.Name == i.Module {
			return keptModule{m, i.Package, i.Version}, err
		}
	}
	return keptModule{registry.Module{Name: i.Module, Digest: i.Digest}, i.Package, i.Version}, err
}

// find is a loader.Lookup: the installed file while it is the one that was
// installed, else the registry's own copy of it, else that of the pinned or the newest artifact.
// It reads the file of the module that is looked for, and no other.
func (k *kept) find(module string) (string, bool) {
	module = ko.NormalizeName(module)
	if i, ok := k.installs[module]; ok {
		path, err := k.root.Path(i.Path)
		digest := ""
		if err == nil {
			digest, err = fileDigest(path)
		}
		switch {
		case digest == i.Digest:
			return path, true
		case errors.Is(err, fs.ErrNotExist):
			k.damaged[module] = i.Path + " is missing"
		default:
			k.damaged[module] = i.Path + " is not what was installed"
		}
		if path, ok := k.blob(i.Digest); ok { // signed, as the file was
			return path, true
		}
	}
	m, ok := k.modules[module]
	if !ok {
		return "", false
	}
	return k.blob(m.Digest)
}

// blob is the file of a blob, if that is whole.
func (k *kept) blob(digest string) (path string, ok bool) {
	path = k.reg.BlobPath(digest)
	got, err := fileDigest(path)
	return path, err == nil && got == digest
}

// ofPackage is an error about a module of a registered package.
type ofPackage struct {
	error
	pkg string
}

func (o ofPackage) Unwrap() error { return o.error }

// fileDigest is the SHA-256 of a file, in hex, as the registry names it.
func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
