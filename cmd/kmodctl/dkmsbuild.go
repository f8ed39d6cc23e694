package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"kmodctl/build"
	"kmodctl/internal/dkms"
	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

// add makes a module known: the one in /usr/src, or a folder, which is copied there first.
func (d *dkmsRun) add(ctx context.Context) (registry.Source, error) {
	var none registry.Source
	if d.module == "" {
		conf, err := d.readConf(ctx, d.tree, none)
		if err != nil {
			return none, err
		}
		d.module, d.version = conf.Name, conf.Version
		d.directed = conf.Name
	}
	if src, err := d.reg.Source(d.module, d.version); err == nil {
		if os.Getenv("DPKG_MAINTSCRIPT_NAME") == "postinst" { // its prerm has asked to remove it: see unbuild
			src, err := d.refresh(ctx, src)
			if err == nil {
				d.runScripts(ctx, d.scriptOf(src, registry.OpPostAdd, ""))
			}
			return src, err
		}
		return none, dkmsFail(3, "%s/%s is added already", d.module, d.version)
	}
	place := path.Join(dkmsSources, d.module+"-"+d.version)
	if d.tree != "" {
		if err := d.copyTree(place); err != nil {
			return none, err
		}
	}
	dir := d.hostPath(place)
	if dir == "" && !d.dryRun {
		return none, dkmsFail(2, "there is no %s", place)
	}
	if dir == "" {
		dir = d.tree
	}
	text, err := os.ReadFile(filepath.Join(dir, dkms.ConfFile))
	if err != nil {
		return none, dkmsError{4, err}
	}
	checked := text
	if d.conf != "" { // of -c: DKMS checks that one, and goes by the other ever after
		if checked, err = os.ReadFile(d.conf); err != nil {
			return none, dkmsError{4, err}
		}
	}
	src := registry.Source{Name: d.module, Version: d.version, Origin: dir, Manifest: string(checked)}
	conf, err := d.readConf(ctx, dir, src)
	if err != nil {
		return none, err
	}
	if os.Getenv("DPKG_MAINTSCRIPT_NAME") == "" || d.dkmsCall.verbose { // who installs a package cannot mend it
		for _, w := range conf.Warnings {
			d.say("note: %s of %s %s: %s", dkms.ConfFile, d.module, d.version, w)
		}
	}
	if d.dryRun {
		d.would("add %s %s from %s", d.module, d.version, dir)
		d.runScripts(ctx, script{op: registry.OpPostAdd, text: conf.PostAdd, src: src})
		return src, nil
	}
	if src, _, err = d.reg.AddSource(ctx, dir, d.module, d.version, string(text)); err != nil {
		return none, err
	}
	tree, err := d.inside(dkmsTreePath)
	if err != nil {
		return none, err
	}
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return none, err
	}
	d.changed("added %s %s from %s", src.Name, src.Version, place)
	if d.rpmSafe {
		file, who, err := d.byRPM(src)
		if err := errors.Join(err, os.WriteFile(file, []byte(who), 0o600)); err != nil {
			return src, err
		}
	}
	d.runScripts(ctx, script{op: registry.OpPostAdd, text: conf.PostAdd, src: src})
	return src, nil
}

// refresh copies the source of a module anew when its folder in /usr/src, which is root's, has changed: to DKMS that is the source.
func (d *dkmsRun) refresh(ctx context.Context, src registry.Source) (registry.Source, error) {
	dir := d.hostPath(path.Join(dkmsSources, src.Name+"-"+src.Version))
	info, err := os.Lstat(dir)
	if dir == "" || err != nil || !rootsAlone(info) || d.dryRun || src.Origin == dir && src.Untouched() {
		return src, nil
	}
	text, err := os.ReadFile(filepath.Join(dir, dkms.ConfFile))
	if err != nil {
		return src, dkmsError{4, err}
	}
	now, changed, err := d.reg.AddSource(ctx, dir, src.Name, src.Version, string(text))
	if err == nil && changed && now.Digest != src.Digest {
		d.changed("added %s %s anew: %s has changed", src.Name, src.Version, dir)
	}
	return now, err
}

// readConf reads a dkms.conf for the first kernel of the command; src names the administrator's files that go over it.
func (d *dkmsRun) readConf(ctx context.Context, dir string, src registry.Source) (dkms.Conf, error) {
	text := []byte(src.Manifest)
	if src.Name == "" {
		var err error
		if text, err = os.ReadFile(filepath.Join(dir, dkms.ConfFile)); err != nil {
			return dkms.Conf{}, dkmsError{9, err}
		}
	}
	k := kernel.Release{Root: d.root}
	if len(d.kernels) > 0 {
		k = d.kernelNamed(d.kernels[0].release)
	}
	conf, err := dkms.Evaluate(ctx, dkms.Source{Dir: dir, Text: text, Name: src.Name, Version: src.Version, Directives: d.dkmsCall.directives}, k)
	if err != nil {
		return conf, dkmsError{8, err}
	}
	return conf, nil
}

// copyTree copies the folder that was given to its place in /usr/src, unless it is there.
func (d *dkmsRun) copyTree(place string) error {
	from, err := filepath.EvalSymlinks(d.tree)
	if err != nil {
		return err
	}
	if from, err = filepath.Abs(from); err != nil {
		return err
	}
	if d.root.Inside(from) == place || d.dryRun {
		return nil
	}
	to, err := d.inside(place)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	temp, err := os.MkdirTemp(filepath.Dir(to), ".kmodctl-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	if err := os.CopyFS(filepath.Join(temp, "new"), os.DirFS(from)); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	if err := os.Rename(to, filepath.Join(temp, "old")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Rename(filepath.Join(temp, "new"), to)
}

// build builds a module for the kernels of the command, adding it first if need be, and installs it.
func (d *dkmsRun) build(ctx context.Context, install bool) error {
	src, err := d.reg.Source(d.module, d.version)
	var absent *registry.NotFoundError
	if errors.As(err, &absent) || d.module == "" {
		src, err = d.add(ctx)
	} else if err == nil {
		src, err = d.refresh(ctx, src)
	}
	if err != nil {
		return err
	}
	var kernels []kernel.Release
	for _, t := range d.kernels {
		k, err := d.target(t, install)
		if err != nil {
			d.begun()
			d.fail(fmt.Errorf("%s %s/%s for %s: %w", d.action, src.Name, src.Version, t.release, err))
			continue
		}
		kernels = append(kernels, k)
	}
	return d.carry(ctx, []registry.Source{src}, kernels, install)
}

// target is a kernel to build or install for.
func (d *dkmsRun) target(t dkmsTarget, install bool) (kernel.Release, error) {
	k, err := kernel.Get(d.root, t.release)
	if d.kernelSource != "" {
		at, err := kernel.At(d.root, d.kernelSource)
		if err != nil {
			return at, dkmsError{21, err}
		}
		if at.Name != t.release {
			return at, dkmsFail(21, "%s is the build tree of %s", d.kernelSource, at.Name)
		}
		k.Name, k.Root, k.Arch, k.Tree, k.Missing = at.Name, d.root, at.Arch, at.Tree, at.Missing
	}
	switch {
	case err != nil && d.kernelSource == "":
		return k, err
	case k.Arch != "" && t.arch != k.Arch && len(d.arches) > 0:
		return k, dkmsFail(12, "that kernel is for %s, not %s", k.Arch, t.arch)
	case install && k.Modules == "":
		return k, dkmsFail(6, "there is no /lib/modules/%s to install into", k.Name)
	case k.Err != nil:
		return k, k.Err
	}
	return k, nil
}

// carry builds sources, with what they need, for kernels, and installs them.
func (d *dkmsRun) carry(ctx context.Context, sources []registry.Source, kernels []kernel.Release, install bool) error {
	d.given = map[string]registry.Source{}
	for _, src := range sources {
		d.given[src.Name], d.named[src.Name] = src, true
	}
	if d.dkmsCall.force && d.action != "autoinstall" {
		d.anew = sources[0].Name
	}
	all := d.withNeeds(sources, kernels)
	choices, err := d.choose(all, kernels)
	if err != nil {
		return err
	}
	steps, err := d.plan(choices)
	if err != nil {
		return err
	}
	if d.anew == "" {
		if err := d.planReuse(choices, steps); err != nil {
			return err
		}
	}
	for i, s := range steps {
		if _, asked := d.given[s.Package]; asked {
			steps[i] = d.judge(s)
		}
	}
	before, err := d.reg.Installs()
	if err != nil {
		return err
	}
	if err := d.buildAll(ctx, choices, steps, kernels, func(kernel.Release) error { return nil }); err != nil || !install {
		return err
	}
	if d.action == "install" {
		if err := d.tellInstalled(ctx, choices, byTarget(before)); err != nil {
			return err
		}
	}
	if err := d.installAll(ctx, choices, kernels, d.action == "install"); err != nil {
		return err
	}
	return d.retire(ctx, choices)
}

// tellInstalled says of what is to be installed that it is.
func (d *dkmsRun) tellInstalled(ctx context.Context, choices []choice, had map[target][]registry.Install) error {
	for _, c := range choices {
		for _, k := range c.kernels {
			to := target{c.Name, k.Name}
			art, ok, err := d.artifact(c.Source, k.Name)
			if err != nil {
				return err
			}
			if !ok || d.willBe[to] || d.hasFailed(to) {
				continue
			}
			if in, err := d.inPlace(ctx, k, art, had[to]); err != nil {
				return err
			} else if in {
				d.say("%s/%s is installed for %s already", c.Name, c.Version, k.Name)
			}
		}
	}
	return nil
}

// judge makes of a step what DKMS makes of it: a kernel that is not one to build for is a failure when it was asked for.
func (d *dkmsRun) judge(s build.Step) build.Step {
	auto := d.action == "autoinstall" || d.action == "kernel_postinst"
	_, built, err := d.artifact(d.given[s.Package], s.Release)
	switch bare := s.Kernel.Tree == nil || len(s.Kernel.Missing) > 0; {
	case err != nil:
		s.Action, s.Err = build.ActionFail, err
	case s.Action == build.ActionFail && s.Manifest == nil:
		s.Err = dkmsError{8, s.Err} // its dkms.conf cannot be read
	case s.Action == build.ActionSkip && bare && built: // elsewhere: it came in a tarball
	case s.Action == build.ActionSkip && bare:
		s.Action, s.Err = build.ActionFail, missingHeaders{s.Kernel}
	case s.Action == build.ActionSkip && !auto:
		s.Action, s.Err = build.ActionFail, dkmsFail(77, "%s", s.Reason)
	case s.Action == build.ActionCurrent && d.action == "build":
		d.say("%s/%s is built for %s already: --force builds it again", s.Package, s.Version, s.Release)
	}
	return s
}

// noted reports an error of a step, if it is one.
func (d *dkmsRun) noted(err error) {
	if err != nil {
		d.begun()
		d.fail(err)
	}
}

// autoinstall builds and installs, for one kernel, the newest version of every module that wants it.
func (d *dkmsRun) autoinstall(ctx context.Context) error {
	if d.hostPath("/etc/dkms/no-autoinstall") != "" {
		d.say("nothing to do: /etc/dkms/no-autoinstall is there")
		return nil
	}
	all, err := newest(d.reg)
	if err != nil {
		return err
	}
	k, err := d.target(d.kernels[0], true)
	if err != nil {
		return err
	}
	var sources []registry.Source
	for _, src := range all {
		if !hasConf(src) {
			continue
		}
		src, err := d.refresh(ctx, src)
		auto := false
		if err == nil {
			auto, err = d.automatic(src, k)
		}
		if err != nil {
			d.begun()
			d.fail(fmt.Errorf("autoinstall %s/%s for %s: %w", src.Name, src.Version, k.Name, err))
		} else if auto {
			sources = append(sources, src)
		}
	}
	if len(sources) > 0 {
		if err := d.carry(ctx, sources, []kernel.Release{k}, true); err != nil {
			return err
		}
	}
	if n := len(d.errs); n > 0 {
		if code := dkmsCode(d.errs[0]); code == 21 {
			return partly{failed: n, of: n, err: d.errs[0]}
		}
		return dkmsFail(11, "%d of %d modules failed for %s", n, max(d.tried, n), k.Name)
	}
	return nil
}

// automatic reports whether a source has AUTOINSTALL.
func (d *dkmsRun) automatic(src registry.Source, k kernel.Release) (bool, error) {
	m, err := d.manifests(src)(k)
	if err == nil && m.DKMS == nil { // it has no headers
		conf, err := d.evaluate(src, k)
		return conf.AutoInstall, err
	}
	return err == nil && !m.DKMS.Manual, err
}

// match installs on one kernel what is installed on another.
func (d *dkmsRun) match(ctx context.Context) error {
	if d.template == d.kernels[0].release {
		return dkmsFail(2, "match %s to itself", d.template)
	}
	installs, err := d.reg.Installs()
	if err != nil {
		return err
	}
	k, err := d.target(d.kernels[0], true)
	if err != nil {
		return err
	}
	var sources []registry.Source
	for _, i := range installs {
		same := func(s registry.Source) bool { return s.Name == i.Package }
		if i.Release != d.template || d.module != "" && d.module != i.Package || slices.ContainsFunc(sources, same) {
			continue
		}
		src, err := d.reg.Source(i.Package, i.Version)
		if err != nil {
			return err
		}
		if hasConf(src) {
			sources = append(sources, src)
		}
	}
	if d.module != "" && len(sources) == 0 {
		if _, err := d.reg.Source(d.module, ""); err != nil {
			return err
		}
	}
	if len(sources) == 0 {
		d.say("nothing to do: nothing is installed for %s", d.template)
		return nil
	}
	return d.carry(ctx, sources, []kernel.Release{k}, true)
}
