package main

import (
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
		ArgsUsage: "MODULE|FILE.ko [PARAMETER=VALUE ...]",
		Description: examples("What the registry built is preferred, then the kernel's own modules; an installed file that\n"+
			"was damaged gives way to the registry's copy. Of a package that is not installed, the pinned build\n"+
			"is loaded, else the newest. Parameters go to the named module alone; commas in a value are kept.\n"+
			"Settings in modprobe.d are not read yet.",
			"kmodctl load hello", "kmodctl load params count=3 ports=80,443", "kmodctl load ./hello.ko", "kmodctl load stack_user --dry-run"),
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			if c.NArg() == 0 {
				return usagef("load takes a module: kmodctl load NAME [PARAMETER=VALUE ...]")
			}
			return e.load(c.Context, c.Args().First(), c.Args().Tail())
		},
	}
}

func (e *env) load(ctx context.Context, name string, params []string) error {
	for _, p := range params {
		if strings.HasPrefix(p, "=") || isPath(strings.SplitN(p, "=", 2)[0]) {
			return usagef("load %s: %q is not PARAMETER=VALUE; one module is loaded at a time", name, p)
		}
	}
	release, err := e.running()
	if err != nil {
		return err
	}
	reg, err := e.reader(ctx)
	if err != nil {
		return err
	}
	defer reg.Close()
	state, err := loader.ReadState(e.root)
	if err != nil {
		return fmt.Errorf("load %s: %w", name, err)
	}
	req := loader.LoadRequest{Name: name, Params: params, State: state, Release: release}
	if isModuleFile(name) {
		req.Name, req.File = "", name
	}
	if req.Index, err = e.index(release); err != nil {
		return err
	}
	kept, err := e.modulesOf(reg, release)
	if err != nil {
		return err
	}
	req.Lookup = kept.find
	plan, err := loader.PlanLoad(req)
	if err != nil {
		return err
	}
	for _, step := range plan.Steps {
		if why, ok := kept.damaged[step.Module]; ok && step.Action == loader.Insert {
			plan.Notes = append(plan.Notes, why+": "+step.Path+" is loaded; kmodctl install "+kept.modules[step.Module].Package+" puts it right")
		}
	}
	if err := bareWords(plan, params); err != nil {
		return err
	}
	err = e.act(ctx, plan)
	var refused *loader.KernelError
	if errors.As(err, &refused) && kept.modules[refused.Module].Package != "" {
		err = ofPackage{err, kept.modules[refused.Module].Package}
	}
	return err
}

// isModuleFile tells a .ko file on the command line from a module's name.
func isModuleFile(arg string) bool { return isPath(arg) || strings.HasSuffix(arg, ".ko") }

func isModuleName(arg string) bool { return !isModuleFile(arg) }

// bareWords refuses a parameter without a value that the module does not declare:
// more likely it was meant as a second module, and the kernel would ignore it.
func bareWords(plan *loader.Plan, params []string) error {
	last := plan.Steps[len(plan.Steps)-1]
	for _, p := range params {
		if strings.Contains(p, "=") || last.Path == "" {
			continue
		}
		info, err := ko.Open(last.Path)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(info.Params, func(x ko.Param) bool { return x.Name == p }) {
			return usagef("load %s: it has no parameter %q, and one module is loaded at a time", last.Module, p)
		}
	}
	return nil
}

// otherBuild reports whether a live module is m and, by its build-id, another build of it.
func otherBuild(live loader.Live, m registry.Module) bool {
	return live.Name == m.Name && live.BuildID != "" && m.BuildID != "" && live.BuildID != m.BuildID
}

// index is the module index of a kernel, empty where it has no modules folder.
func (e *env) index(release string) (*loader.Index, error) {
	for _, dir := range []string{"/lib/modules", "/usr/lib/modules"} {
		if path, err := e.root.Path(filepath.Join(dir, release)); err == nil {
			return loader.OpenIndex(path)
		}
	}
	return loader.OpenIndex(filepath.Join(string(e.root), "lib/modules", release))
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
	}
	m, ok := k.modules[module]
	if !ok {
		return "", false
	}
	path := k.reg.BlobPath(m.Digest)
	digest, err := fileDigest(path)
	return path, err == nil && digest == m.Digest
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
