package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"kmodctl/build"
	"kmodctl/registry"
)

func cmdAdd(e *env) *cli.Command {
	return &cli.Command{
		Name:      "add",
		Usage:     "copy a module's source into the registry",
		ArgsUsage: "DIR",
		Description: examples("The folder must hold a kmod.toml. The registry keeps a copy: the folder may vanish, and\n"+
			"what is changed in it later is built only after it was added again.",
			"kmodctl add ./hello", "kmodctl add /usr/src/acme-wifi-2.1"),
		Action: func(c *cli.Context) error {
			dir, err := oneArg(c, "folder")
			if err != nil {
				return err
			}
			m, err := build.CheckSource(dir)
			if err != nil {
				return err
			}
			if e.dryRun {
				fmt.Fprintf(e.out, "add %s %s from %s\n", m.Name, m.Version, dir)
				return nil
			}
			reg, err := e.writer(c.Context, "add "+dir)
			if err != nil {
				return err
			}
			defer reg.Close()
			src, err := (&job{env: e, reg: reg}).add(c.Context, dir, m)
			if err != nil || !e.json {
				return err
			}
			return e.document("add", src)
		},
	}
}

func cmdRemove(e *env) *cli.Command {
	return &cli.Command{
		Name:      "remove",
		Usage:     "uninstall a package everywhere and forget its source and artifacts",
		ArgsUsage: "NAME|NAME@VERSION",
		Description: examples("Nothing is unloaded: what is live stays so until it is unloaded or the machine reboots.\n"+
			"The history of builds and installs is kept.",
			"kmodctl remove hello", "kmodctl remove hello@1.0.0"),
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			arg, err := oneArg(c, "package")
			if err != nil {
				return err
			}
			reg, err := e.open(c.Context, "remove "+arg)
			if err != nil {
				return err
			}
			defer reg.Close()
			src, err := source(reg, arg)
			if err != nil {
				return err
			}
			installs, err := reg.Installs()
			if err != nil {
				return err
			}
			for _, release := range releasesOf(installs, src.Name, src.Version) {
				if e.dryRun {
					fmt.Fprintf(e.out, "uninstall %s %s for %s\n", src.Name, src.Version, release)
					continue
				}
				_, err := reg.Uninstall(c.Context, release, []string{src.Name})
				if err != nil {
					return err
				}
				e.changed("uninstalled %s %s for %s", src.Name, src.Version, release)
			}
			if e.dryRun {
				fmt.Fprintf(e.out, "remove %s %s\n", src.Name, src.Version)
				return nil
			}
			if err := reg.RemoveSource(src.Name, src.Version); err != nil {
				return err
			}
			e.changed("removed %s %s", src.Name, src.Version)
			return nil
		},
	}
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
