package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"kmodctl/registry"
)

func cmdInstall(e *env) *cli.Command {
	return &cli.Command{
		Name:      "install",
		Usage:     "place built modules under /lib/modules and update the module index",
		ArgsUsage: "NAME|NAME@VERSION ...",
		Description: examples("Into /lib/modules/RELEASE/updates/kmodctl, for every kernel that the package was built for:\n"+
			"the newest version, or the one that is pinned there.\n"+
			"The distribution's own modules are not touched: one of the same name is shadowed, unless its\n"+
			"version is higher, and found again after an uninstall. depmod runs once per kernel.",
			"kmodctl install hello", "kmodctl install hello -k 6.1.0-56-amd64"),
		Flags: []cli.Flag{
			kernelFlag("only for kernel `RELEASE` (repeatable)"),
			&cli.BoolFlag{Name: "force", Usage: "also where the kernel's own module of that name has a higher version, or PRE_INSTALL of its dkms.conf fails"},
		},
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			return e.install(c.Context, c.Args().Slice(), c.StringSlice("kernel"), c.Bool("force"))
		},
	}
}

func (e *env) install(ctx context.Context, args, releases []string, force bool) error {
	if len(args) == 0 {
		return usagef("install takes at least one package: kmodctl install NAME")
	}
	kernels, err := e.kernels(releases)
	if err != nil {
		return err
	}
	reg, err := e.open(ctx, "install "+strings.Join(args, " "))
	if err != nil {
		return err
	}
	defer e.close(reg)
	j := &job{env: e, reg: reg, force: force, despite: force, named: map[string]bool{}}
	var sources []registry.Source
	for _, arg := range args {
		src, err := source(reg, arg)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(sources, func(s registry.Source) bool { return s.Name == src.Name }) {
			return usagef("install %s: it is given twice", src.Name)
		}
		j.named[src.Name] = strings.Contains(arg, "@")
		sources = append(sources, src)
	}
	choices, err := j.choose(sources, kernels)
	if err != nil {
		return err
	}
	built := map[string]bool{}
	for _, c := range choices {
		for _, k := range c.kernels {
			_, ok, err := j.artifact(c.Source, k.Name)
			if err != nil {
				return err
			}
			if why := j.cannotInstall(k); ok && why != "" && (len(releases) > 0 || k.Modules != "") {
				return fmt.Errorf("install %s for %s: %s", c.Name, k.Name, why)
			}
			built[c.Name] = built[c.Name] || ok
		}
	}
	for i, src := range sources {
		if !built[src.Name] {
			return notBuilt{"install", args[i], releases}
		}
	}
	if err := j.installAll(ctx, choices, kernels, true); err != nil {
		return err
	}
	if e.json {
		if err := e.document("install", map[string]any{"dry_run": e.dryRun, "installs": orEmpty(j.installs)}); err != nil {
			return err
		}
	}
	if j.tried == 0 && !e.dryRun {
		e.say("nothing to do: %s in place", strings.Join(args, ", "))
	}
	return j.outcome()
}

// notBuilt is an install or export of what has no artifact.
type notBuilt struct {
	verb     string
	name     string
	releases []string
}

func (n notBuilt) Error() string {
	if len(n.releases) == 0 {
		return fmt.Sprintf("%s %s: not built for any kernel", n.verb, n.name)
	}
	return fmt.Sprintf("%s %s: not built for %s", n.verb, n.name, strings.Join(n.releases, ", "))
}

func cmdUninstall(e *env) *cli.Command {
	return &cli.Command{
		Name:      "uninstall",
		Usage:     "take a package's modules out of /lib/modules; artifacts are kept",
		ArgsUsage: "NAME|NAME@VERSION ...",
		Description: examples("A module of the distribution that was shadowed is found again by modprobe. Nothing is unloaded.",
			"kmodctl uninstall hello", "kmodctl uninstall hello -k 6.1.0-56-amd64"),
		Flags:        []cli.Flag{kernelFlag("only for kernel `RELEASE` (repeatable)")},
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			return e.uninstall(c.Context, c.Args().Slice(), c.StringSlice("kernel"), false)
		},
	}
}

// kernelsOf are the releases of rows.
func kernelsOf(installs []registry.Install) (releases []string) {
	for _, i := range installs {
		releases = append(releases, i.Release)
	}
	return releases
}

// uninstall takes packages out of kernels. Where those go too, nothing is to be done for them afterwards.
func (e *env) uninstall(ctx context.Context, args, releases []string, kernelsGo bool) error {
	if len(args) == 0 {
		return usagef("uninstall takes at least one package: kmodctl uninstall NAME")
	}
	reg, err := e.open(ctx, "uninstall "+strings.Join(args, " "))
	if err != nil {
		return err
	}
	defer e.close(reg)
	installs, err := reg.Installs()
	if err != nil {
		return err
	}
	if err := e.checkKernels(releases, kernelsOf(installs)); err != nil {
		return err
	}
	byRelease := map[string][]string{}
	for _, arg := range args {
		src, err := source(reg, arg)
		if err != nil {
			return err
		}
		_, version, _ := strings.Cut(arg, "@")
		for _, release := range releasesOf(installs, src.Name, version) {
			if (len(releases) == 0 || slices.Contains(releases, release)) && !slices.Contains(byRelease[release], src.Name) {
				byRelease[release] = append(byRelease[release], src.Name)
			}
		}
	}
	if len(byRelease) == 0 {
		e.say("nothing to do: %s not installed", strings.Join(args, ", "))
	}
	j := &job{env: e, reg: reg}
	var changes []registry.Change
	for _, release := range slices.Sorted(maps.Keys(byRelease)) {
		if e.dryRun {
			e.would("uninstall %s for %s", strings.Join(byRelease[release], ", "), release)
			j.runScripts(ctx, j.scriptsOf(installs, registry.OpPostRemove, release, byRelease[release]...)...)
			if !kernelsGo {
				j.postTransaction(ctx, release)
			}
			continue
		}
		j.tried++
		after := j.scriptsOf(installs, registry.OpPostRemove, release, byRelease[release]...)
		res, err := reg.Uninstall(ctx, release, byRelease[release])
		if err != nil {
			j.fail(err)
			continue
		}
		changes = append(changes, res.Changes...)
		for _, pkg := range byRelease[release] {
			e.changed("uninstalled %s for %s%s", pkg, release, originals(res, pkg, "modprobe finds again"))
		}
		j.runScripts(ctx, after...)
		if !kernelsGo {
			j.postTransaction(ctx, release)
		}
	}
	if e.json {
		if err := e.document("uninstall", map[string]any{"dry_run": e.dryRun, "changes": orEmpty(changes)}); err != nil {
			return err
		}
	}
	return j.outcome()
}
