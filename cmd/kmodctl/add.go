package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"kmodctl/registry"
)

func cmdAdd(e *env) *cli.Command {
	return &cli.Command{
		Name:      "add",
		Usage:     "copy a module's source into the registry",
		ArgsUsage: "DIR",
		Description: examples("The folder must hold a kmod.toml, or else a dkms.conf. The registry keeps a copy: the folder may vanish, and\n"+
			"what is changed in it later is built only after it was added again.",
			"kmodctl add ./hello", "kmodctl add /usr/src/acme-wifi-2.1"),
		Action: func(c *cli.Context) error {
			dir, err := oneArg(c, "folder")
			if err != nil {
				return err
			}
			if err := e.checkFolder(c.Context, dir); err != nil {
				return err
			}
			reg, err := e.open(c.Context, "add "+dir)
			if err != nil {
				return err
			}
			defer e.close(reg)
			j := &job{env: e, reg: reg}
			src, err := j.register(c.Context, dir)
			if err != nil {
				return err
			}
			if e.json {
				if err := e.document("add", src); err != nil {
					return err
				}
			} else if e.dryRun {
				fmt.Fprintf(e.out, "add %s %s from %s\n", src.Name, src.Version, src.Origin)
			}
			return j.outcome()
		},
	}
}

func cmdRemove(e *env) *cli.Command {
	return &cli.Command{
		Name:      "remove",
		Usage:     "uninstall a package everywhere and forget its source and artifacts",
		ArgsUsage: "NAME|NAME@VERSION",
		Description: examples("Of a NAME alone every version. Pins at what is removed go with it. Nothing is unloaded: what is live\n"+
			"stays so until it is unloaded or the machine reboots. The history of builds and installs is kept, with the logs;\n"+
			"--purge forgets it too, also that of a package which was removed before.",
			"kmodctl remove hello", "kmodctl remove hello@1.0.0", "kmodctl remove --purge hello"),
		Flags:        []cli.Flag{&cli.BoolFlag{Name: "purge", Usage: "forget the history of builds and installs too"}},
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			arg, err := oneArg(c, "package")
			if err != nil {
				return err
			}
			return e.remove(c.Context, arg, c.Bool("purge"))
		},
	}
}

func (e *env) remove(ctx context.Context, arg string, purge bool) error {
	name, version, err := splitPackage(arg)
	if err != nil {
		return err
	}
	reg, err := e.open(ctx, "remove "+arg)
	if err != nil {
		return err
	}
	defer e.close(reg)
	history := 0
	if purge {
		if history, err = attemptsOf(reg, name, version); err != nil {
			return err
		}
	}
	sources, err := versions(reg, arg)
	var absent *registry.NotFoundError
	if history > 0 && errors.As(err, &absent) {
		sources = nil
	} else if err != nil {
		return err
	}
	pins, err := reg.Pins()
	if err != nil {
		return err
	}
	installs, err := reg.Installs()
	if err != nil {
		return err
	}
	j := &job{env: e, reg: reg}
	after := map[target]script{}
	for _, src := range sources {
		for _, release := range releasesOf(installs, src.Name, src.Version) {
			after[target{src.Name, release}] = j.scriptOf(src, registry.OpPostRemove, release)
		}
	}
	if e.dryRun {
		for _, src := range sources {
			for _, release := range releasesOf(installs, src.Name, src.Version) {
				e.would("uninstall %s %s for %s", src.Name, src.Version, release)
				j.runScripts(ctx, after[target{src.Name, release}])
			}
			e.would("remove %s %s", src.Name, src.Version)
			if held := heldFor(pins, src); held != "" {
				e.would("unpin %s from %s for %s", src.Name, src.Version, held)
			}
		}
		if purge {
			e.would("forget the history of %s: %d attempts", arg, history)
		}
		return e.removed(sources, nil, history)
	}
	changes, err := j.removeSources(ctx, sources, pins, after)
	if err != nil {
		return err
	}
	forgotten := int64(0)
	if purge {
		if forgotten, err = reg.Forget(name, version); err != nil {
			return err
		}
		e.changed("forgot the history of %s: %d attempts", arg, forgotten)
	}
	if err := e.removed(sources, changes, int(forgotten)); err != nil {
		return err
	}
	return j.outcome()
}

// attemptsOf counts the history of a version, or of all versions ("").
func attemptsOf(reg *registry.Registry, name, version string) (n int, err error) {
	attempts, err := reg.Attempts(name, "", 0)
	for _, a := range attempts {
		if version == "" || a.Version == version {
			n++
		}
	}
	return n, err
}

// removeSources removes versions of one package. What is in after is run where they were installed.
func (j *job) removeSources(ctx context.Context, sources []registry.Source, pins registry.Pins, after map[target]script) (changes []registry.Change, err error) {
	if len(sources) == 0 {
		return nil, nil
	}
	name := sources[0].Name
	var all []string
	for _, src := range sources {
		all = append(all, src.Version)
	}
	results, err := j.reg.Remove(ctx, name, all...)
	for _, res := range results {
		changes = append(changes, res.Changes...)
		j.changed("uninstalled %s %s for %s%s", name, res.Changes[0].Version, res.Release, originals(res, name, "modprobe finds again"))
		j.runScripts(ctx, after[target{name, res.Release}])
		j.postTransaction(ctx, res.Release)
	}
	if err != nil {
		return changes, err
	}
	for _, src := range sources {
		j.changed("removed %s %s", src.Name, src.Version)
		if held := heldFor(pins, src); held != "" {
			j.changed("unpinned %s from %s for %s", src.Name, src.Version, held)
		}
	}
	return changes, nil
}

// heldFor names the kernels for which a package is pinned at this version.
func heldFor(pins registry.Pins, src registry.Source) string {
	var kernels []string
	for _, p := range pins {
		if p.Package == src.Name && p.Version == src.Version {
			kernels = append(kernels, everyKernel(p.Release))
		}
	}
	return strings.Join(kernels, ", ")
}

// removed prints the document of remove.
func (e *env) removed(sources []registry.Source, changes []registry.Change, forgotten int) error {
	if e.json {
		return e.document("remove", map[string]any{"dry_run": e.dryRun, "packages": refs(sources), "changes": orEmpty(changes), "forgotten": forgotten})
	}
	return nil
}

// versions are the packages that NAME@VERSION means, or all versions of NAME.
func versions(reg *registry.Registry, arg string) (out []registry.Source, err error) {
	src, err := source(reg, arg)
	if err != nil || strings.Contains(arg, "@") {
		return []registry.Source{src}, err
	}
	all, err := reg.Sources()
	for _, s := range all {
		if s.Name == src.Name {
			out = append(out, s)
		}
	}
	return out, err
}

// refs are the packages as NAME@VERSION.
func refs(sources []registry.Source) []string {
	out := []string{}
	for _, s := range sources {
		out = append(out, s.Name+"@"+s.Version)
	}
	return out
}

// releasesOf are the kernels that have that package installed; version "" means any.
func releasesOf(installs []registry.Install, name, version string) (out []string) {
	seen := map[string]bool{}
	for _, i := range installs {
		if i.Package == name && (version == "" || i.Version == version) && !seen[i.Release] {
			seen[i.Release] = true
			out = append(out, i.Release)
		}
	}
	return out
}
