package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"kmodctl/internal/dkms"
	"kmodctl/registry"
)

// uninstall takes a module out of the kernels of the command; what was built stays.
func (d *dkmsRun) uninstall(ctx context.Context) error {
	src, err := d.reg.Source(d.module, d.version)
	if err != nil {
		return err
	}
	_, err = d.takeOut(ctx, src)
	return err
}

// takeOut uninstalls a source from the kernels of the command, all that have it for --all. It returns those kernels
// for which it is not installed now.
func (d *dkmsRun) takeOut(ctx context.Context, src registry.Source) (free []string, err error) {
	installs, err := d.reg.Installs(src.Name)
	if err != nil {
		return nil, err
	}
	has := releasesOf(installs, src.Name, src.Version)
	asked := slices.Clone(has)
	if !d.all {
		asked = nil
		for _, t := range d.kernels {
			asked = append(asked, t.release)
		}
	}
	for _, release := range asked {
		switch {
		case !slices.Contains(has, release):
			d.say("%s/%s is not installed for %s", src.Name, src.Version, release)
		case d.dryRun:
			d.would("uninstall %s %s for %s", src.Name, src.Version, release)
			d.runScripts(ctx, d.scriptOf(src, registry.OpPostRemove, release))
		default:
			d.begun()
			after := d.scriptOf(src, registry.OpPostRemove, release)
			res, err := d.reg.Uninstall(ctx, release, []string{src.Name})
			if err != nil {
				d.fail(err)
				continue
			}
			d.changed("uninstalled %s %s for %s%s", src.Name, src.Version, release, originals(res, src.Name, "modprobe finds again"))
			d.runScripts(ctx, after)
			d.postTransaction(ctx, release)
		}
		free = append(free, release)
	}
	return free, nil
}

// unbuild uninstalls a module and forgets what was built of it for the kernels of the command; remove forgets the
// module too when nothing that was built of it is left.
func (d *dkmsRun) unbuild(ctx context.Context) error {
	src, err := d.reg.Source(d.module, d.version)
	if err != nil {
		return err
	}
	if d.action == "remove" && d.rpmSafe && d.addedByRPM(src) {
		d.changed("note: %s %s stays: this rpm has just added it", src.Name, src.Version)
		return nil
	}
	if d.action == "remove" && d.all && d.upgrading(src) {
		d.changed("note: %s %s stays for now: its package is being upgraded", src.Name, src.Version)
		return nil
	}
	free, err := d.takeOut(ctx, src)
	if err != nil {
		return err
	}
	artifacts, err := d.reg.Artifacts(src.Name)
	if err != nil {
		return err
	}
	left := 0
	for _, a := range artifacts {
		switch {
		case a.Version != src.Version:
		case !d.all && !slices.Contains(free, a.Release):
			left++
		case d.dryRun:
			d.would("forget what was built of %s %s for %s", src.Name, src.Version, a.Release)
		default:
			if err := d.reg.RemoveArtifacts(src.Name, src.Version, a.Release); err != nil {
				d.begun()
				d.fail(err)
				left++
				continue
			}
			d.say("forgot what was built of %s %s for %s", src.Name, src.Version, a.Release)
		}
	}
	if d.action != "remove" || left > 0 || len(d.errs) > 0 {
		return nil
	}
	if d.dryRun {
		d.would("remove %s %s", src.Name, src.Version)
		return nil
	}
	if _, err := d.reg.Remove(ctx, src.Name, src.Version); err != nil {
		return err
	}
	d.changed("removed %s %s", src.Name, src.Version)
	return d.clearTree(src)
}

// clearTree takes away all that is left of a source in the tree, tarballs too, as DKMS does: the link to its source would
// have it adopted again.
func (d *dkmsRun) clearTree(src registry.Source) error {
	if err := d.showDKMS(d.reg); err != nil { // what we had made
		return err
	}
	tree, err := os.OpenRoot(d.hostPath(dkmsTreePath))
	if err != nil {
		return ignoreGone(err)
	}
	defer tree.Close()
	if err := tree.RemoveAll(path.Join(src.Name, src.Version)); err != nil {
		return err
	}
	tree.Remove(src.Name) // if nothing else is in it
	return nil
}

// retire removes the older versions of what was installed that are installed nowhere any more and whose source the
// package manager has taken away: an upgrade has left them, see unbuild.
func (d *dkmsRun) retire(ctx context.Context, choices []choice) error {
	if d.dryRun || len(d.errs) > 0 {
		return nil
	}
	all, err := d.reg.Sources()
	if err != nil {
		return err
	}
	installs, err := d.reg.Installs()
	if err != nil {
		return err
	}
	for _, src := range all {
		newer := func(c choice) bool { return c.Name == src.Name && registry.CompareVersions(c.Version, src.Version) > 0 }
		if !slices.ContainsFunc(choices, newer) || !hasConf(src) || len(releasesOf(installs, src.Name, src.Version)) > 0 ||
			d.hostPath(path.Join(dkmsSources, src.Name+"-"+src.Version)) != "" {
			continue
		}
		if _, err := d.reg.Remove(ctx, src.Name, src.Version); err != nil {
			return err
		}
		d.changed("removed %s %s, which was upgraded", src.Name, src.Version)
	}
	return nil
}

// kernelGoes uninstalls every module from a kernel that is about to be removed, with one index update, and forgets
// what was built for it.
func (d *dkmsRun) kernelGoes(ctx context.Context) error {
	release := d.kernels[0].release
	known, err := d.dkmsKnown(d.reg)
	if err != nil {
		return err
	}
	var names []string
	var built []dkmsModule
	for _, m := range known {
		for _, b := range m.builds {
			if b.release != release {
				continue
			}
			if built = append(built, m); b.installed {
				names = append(names, m.name)
			}
		}
	}
	if d.dryRun {
		for _, m := range built {
			d.would("forget what was built of %s %s for %s", m.name, m.version, release)
		}
		return nil
	}
	if len(names) > 0 {
		installs, err := d.reg.Installs(names...)
		if err != nil {
			return err
		}
		after := d.scriptsOf(installs, registry.OpPostRemove, release, names...)
		if _, err := d.reg.Uninstall(ctx, release, names); err != nil {
			return dkmsError{14, err}
		}
		d.runScripts(ctx, after...)
	}
	for _, m := range built {
		if err := d.reg.RemoveArtifacts(m.name, m.version, release); err != nil {
			return dkmsError{14, err}
		}
		d.changed("removed %s %s for %s", m.name, m.version, release)
	}
	return nil
}

// byRPM is a file that says which rpm has added a source, and the two lines that tell one process from all others:
// the scripts of a package are children of rpm, and we are a child of theirs.
func (d *dkmsRun) byRPM(src registry.Source) (file, who string, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", os.Getppid()))
	if err != nil {
		return "", "", err
	}
	parent := strings.Fields(string(status[bytes.LastIndexByte(status, ')')+1:]))[1] // proc_pid_stat(5): field 4
	if status, err = os.ReadFile("/proc/" + parent + "/stat"); err != nil {
		return "", "", err
	}
	start := strings.Fields(string(status[bytes.LastIndexByte(status, ')')+1:]))[19] // field 22
	run, err := d.inside("/run")
	return filepath.Join(run, "kmodctl-rpm-"+src.Name+"-"+src.Version), parent + " " + start, err
}

// addedByRPM reports whether the rpm that calls us has added a source before: it installs the new package before it
// removes the old one, which may be of the same version (--rpm_safe_upgrade).
func (d *dkmsRun) addedByRPM(src registry.Source) bool {
	file, who, err := d.byRPM(src)
	if err != nil {
		return false
	}
	text, err := os.ReadFile(file)
	return err == nil && string(text) == who && os.Remove(file) == nil
}

// upgrading reports whether a source will be added again, in this version or a newer one: the command was started by the prerm
// script of a Debian package that dpkg calls `prerm upgrade VERSION` (deb-prerm(5)), or by the postinst of one that has just unpacked
// it. What is installed stays until there is something better: for kernels that the package does not build for, that may take a while.
func (d *dkmsRun) upgrading(src registry.Source) bool {
	switch os.Getenv("DPKG_MAINTSCRIPT_NAME") {
	case "prerm":
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", os.Getppid()))
		argv := strings.Split(string(text), "\x00")
		i := slices.IndexFunc(argv, func(a string) bool { return strings.HasSuffix(a, "prerm") })
		return err == nil && i >= 0 && i+1 < len(argv) && argv[i+1] == "upgrade"
	case "postinst":
		return d.hostPath(path.Join(dkmsSources, src.Name+"-"+src.Version, dkms.ConfFile)) != ""
	}
	return false
}
