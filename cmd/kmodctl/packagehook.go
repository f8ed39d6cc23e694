package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/urfave/cli/v2"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

func cmdPackageHook(e *env) *cli.Command {
	return &cli.Command{
		Name:      "package-hook",
		Usage:     "do what the package of a driver asks for when it is installed or removed",
		ArgsUsage: "postinst|prerm NAME VERSION [\"$@\"]",
		Description: examples("For the scripts of a .deb (postinst, prerm) or an .rpm (%post, %preun), which pass their own arguments on. The\n"+
			"package has its source in /usr/src/NAME-VERSION.\n\n"+
			"postinst adds that source, builds it for every kernel that has headers, and installs. prerm removes what postinst added, when\n"+
			"the package is removed; on an upgrade nothing: the old modules stay until the new ones take their place, and where these do not\n"+
			"build. Safe under set -e: that something does not build is told, and makes postinst fail only when the manifest\n"+
			"says required = true. prerm never fails.",
			`kmodctl package-hook postinst acme-wifi 2.1 "$@"`, `kmodctl package-hook prerm acme-wifi 2.1 "$@"`),
		Action: func(c *cli.Context) error {
			args := c.Args().Slice()
			if len(args) < 3 || args[1] == "" || args[2] == "" {
				return usagef(`package-hook takes a script, a name and a version: kmodctl package-hook postinst NAME VERSION "$@"`)
			}
			script, name, version, action := args[0], args[1], args[2], c.Args().Get(3)
			what := "package-hook " + script
			switch script {
			case "postinst":
				if action == "triggered" { // deb-postinst(5): nothing of ours has changed
					return nil
				}
				dir, required, err := e.packagedSource(c.Context, name, version)
				if err != nil {
					return fmt.Errorf("%s: %w", what, err)
				}
				return e.unattended(c.Context, what, hookTimeLimit, required, func(ctx context.Context) error {
					return e.packageCame(ctx, dir, name+"@"+version)
				})
			case "prerm":
				if action != "remove" && action != "0" && action != "" { // deb-prerm(5); of an .rpm, how many are left
					return nil
				}
				return e.unattended(c.Context, what, hookTimeLimit, false, func(ctx context.Context) error {
					return e.packageGone(ctx, name, version)
				})
			}
			return usagef("package-hook: no script %q (postinst, prerm)", script)
		},
	}
}

// packagedSource is the folder in which a package has the source of a version, and whether the machine cannot be without it.
func (e *env) packagedSource(ctx context.Context, name, version string) (dir string, required bool, err error) {
	inside := "/usr/src/" + name + "-" + version
	if dir, err = e.inside(inside); err != nil {
		return "", false, err
	}
	m := &build.Manifest{}
	if isConfFolder(dir) {
		_, m.Name, m.Version, err = e.identifyConf(ctx, dir)
	} else {
		m, err = build.CheckSource(dir)
	}
	if err != nil {
		return "", false, err
	}
	if m.Name != name || m.Version != version {
		return "", false, fmt.Errorf("%s holds %s %s", inside, m.Name, m.Version)
	}
	return dir, m.Required, nil
}

// packageCame adds the source in dir, whether or not it can be built today, and builds it for every kernel.
func (e *env) packageCame(ctx context.Context, dir, arg string) error {
	reg, err := e.open(ctx, "add "+dir)
	if err != nil {
		return err
	}
	j := &job{env: e, reg: reg}
	_, err = j.register(ctx, dir)
	e.close(reg)
	if err != nil {
		return err
	}
	all, err := kernel.Find(e.root)
	if err != nil {
		return err
	}
	var releases []string
	for _, k := range all {
		releases = append(releases, k.Name)
	}
	return errors.Join(j.outcome(), e.kernelsCame(ctx, releases, buildOptions{}, arg))
}

// packageGone removes a version that a package added, and earlier ones of which the package has taken away the source.
func (e *env) packageGone(ctx context.Context, name, version string) error {
	reg, err := e.reader(ctx)
	if err != nil {
		return err
	}
	all, err := versions(reg, name)
	reg.Close()
	var never *registry.NotFoundError
	if errors.As(err, &never) {
		return nil
	} else if err != nil {
		return err
	}
	var errs []error
	for _, src := range all {
		dir, err := e.inside("/usr/src/" + name + "-" + src.Version)
		if err != nil {
			return err
		}
		_, err = os.Stat(dir)
		if src.Origin == dir && (src.Version == version || errors.Is(err, fs.ErrNotExist)) {
			errs = append(errs, e.remove(ctx, name+"@"+src.Version, false))
		}
	}
	return errors.Join(errs...)
}
