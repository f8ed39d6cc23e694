package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

// installAll installs the artifact of each source for each of its kernels.
func (j *job) installAll(ctx context.Context, choices []choice, kernels []kernel.Release, thorough bool) error {
	place, err := j.placer(ctx, choices, thorough)
	if err != nil {
		return err
	}
	var errs []error
	for _, k := range kernels {
		errs = append(errs, place(k))
	}
	return errors.Join(errs...)
}

// placer returns what installs, for a kernel, the artifact of each source that is to be there:
// with one module index update, and with none where all is in place. thorough reads what
// is installed instead of looking at sizes and times. Kernels may be served at the same time.
func (j *job) placer(ctx context.Context, choices []choice, thorough bool) (place func(kernel.Release) error, err error) {
	installs, err := j.reg.Installs()
	if err != nil {
		return nil, err
	}
	damaged := map[target]bool{}
	if thorough {
		asked := func(i registry.Install) bool {
			return slices.ContainsFunc(choices, func(c choice) bool { return c.Name == i.Package && c.covers(i.Release) })
		}
		drift, err := registry.ReadAt(j.root, slices.DeleteFunc(slices.Clone(installs), func(i registry.Install) bool { return !asked(i) }))
		if err != nil {
			return nil, err
		}
		for _, d := range drift {
			damaged[target{d.Package, d.Release}] = true
		}
	}
	placed := byTarget(installs)
	if err := j.checkForms(ctx, choices); err != nil {
		return nil, err
	}
	return func(k kernel.Release) error {
		var due []registry.Artifact
		for _, c := range choices {
			if !c.covers(k.Name) {
				continue
			}
			to := target{c.Name, k.Name}
			art, ok, err := j.artifact(c.Source, k.Name)
			if err != nil {
				return err
			}
			if j.willBe[to] {
				art, ok = registry.Artifact{Package: c.Name, Version: c.Version, Release: k.Name}, true
			}
			if !ok || j.hasFailed(to) {
				continue
			}
			in, err := j.inPlace(ctx, k, art, placed[to])
			if err != nil {
				return err
			}
			if damaged[to] || j.willBe[to] || !in {
				due = append(due, art)
			}
		}
		due = j.beforeInstall(ctx, k, choices, j.withholdSome(k, due, installs, thorough))
		return j.installFor(ctx, k, due)
	}, nil
}

// installFor installs artifacts for one kernel. A package that cannot be installed
// does not keep the others from it.
func (j *job) installFor(ctx context.Context, k kernel.Release, due []registry.Artifact) error {
	if why := j.cannotInstall(k); why != "" {
		j.keep(due, why)
		return nil
	}
	if k.Modules == "" && k.Err != nil && len(due) > 0 {
		j.begun()
		j.fail(fmt.Errorf("install for %s: %w", k.Name, k.Err))
		for _, art := range due {
			j.installed(art, "failed", k.Err.Error())
		}
		return nil
	}
	if j.dryRun {
		for _, art := range due {
			j.would("install %s %s for %s", art.Package, art.Version, art.Release)
			j.installed(art, "", "")
			j.afterInstall(ctx, art)
		}
		if len(due) > 0 {
			j.postTransaction(ctx, k.Name)
		}
		return nil
	}
	dress, due, err := j.dressDue(ctx, k, due)
	if err != nil {
		return err
	}
	for len(due) > 0 {
		end := j.err.show("install for " + k.Name)
		res, err := j.reg.Install(ctx, k.Name, due, dress)
		end()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			if len(res.Changes) > 0 || res.Depmod {
				j.begun()
				for _, art := range due {
					j.installed(art, "installed", "", dress[art.Modules[0].Digest])
					j.changed("installed %s %s for %s%s%s", art.Package, art.Version, k.Name, j.formOf(art, dress), originals(res, art.Package, "shadows"))
					j.tellUnsigned(art, dress)
					j.tellLive(art)
					j.afterInstall(ctx, art)
				}
				j.initramfsStale(ctx, k, due)
				j.postTransaction(ctx, k.Name)
			}
			return nil
		}
		j.begun()
		j.fail(err)
		// Of a package to blame the others are free; else all have failed.
		var one *registry.PackageError
		blamed := func(a registry.Artifact) bool { return one == nil || a.Package == one.Package }
		if errors.As(err, &one) && !slices.ContainsFunc(due, blamed) {
			one = nil // a package of what was cut off before
		}
		for _, art := range due {
			if blamed(art) {
				j.installed(art, "failed", err.Error())
			}
		}
		due = slices.DeleteFunc(due, blamed)
	}
	return nil
}

// originals names the other files' modules that a change was about, such as
// ", shadows kernel/drivers/net/dummy.ko"; "" when there are none.
func originals(res registry.Result, pkg, verb string) string {
	var paths []string
	for _, c := range res.Changes {
		if c.Package == pkg && c.Original != "" {
			paths = append(paths, strings.TrimPrefix(c.Original, "/lib/modules/"+res.Release+"/"))
		}
	}
	if len(paths) == 0 {
		return ""
	}
	return ", " + verb + " " + strings.Join(paths, ", ")
}

// keep tells of artifacts that stay in the registry, and where they are there.
func (j *job) keep(due []registry.Artifact, why string) {
	j.mu.Lock()
	idle := j.tried == 0
	j.mu.Unlock()
	for _, art := range due {
		j.installed(art, "kept", why)
		if idle && !j.verbose || j.dryRun {
			continue
		}
		j.say("%s %s for %s is built and not installed: %s", art.Package, art.Version, art.Release, why)
		for _, m := range art.Modules {
			j.say("  %s: %s", m.File, j.reg.BlobPath(m.Digest))
		}
	}
}

// installed notes how an install went; form is that of the modules that were installed.
func (j *job) installed(art registry.Artifact, outcome, why string, form ...registry.Dressed) {
	j.mu.Lock()
	defer j.mu.Unlock()
	step := installStep{Package: art.Package, Version: art.Version, Release: art.Release, Outcome: outcome, Why: why}
	for _, f := range form {
		step.Signer, step.Compression = f.Signer, f.Compression
	}
	j.installs = append(j.installs, step)
}

// cannotInstall says why artifacts for a kernel stay in the registry, "" when they
// can be installed.
func (j *job) cannotInstall(k kernel.Release) string {
	switch {
	case os.Getuid() != 0 && j.root.IsHost():
		return "that needs root"
	case k.Modules == "" && k.Err == nil: // its headers came first: the kernel's own hook will install
		return "only the headers of " + k.Name + " are here, no /lib/modules/" + k.Name
	}
	return ""
}

// byTarget sorts install rows by package and kernel release.
func byTarget(rows []registry.Install) map[target][]registry.Install {
	placed := map[target][]registry.Install{}
	for _, i := range rows {
		to := target{i.Package, i.Release}
		placed[to] = append(placed[to], i)
	}
	return placed
}

// inPlace reports whether what is installed is art, as far as a look at its package's
// rows for that kernel, at the files' sizes, and at the module index's time can tell; install
// reads the files too. It is not in place when it is signed or compressed in another way than it would be today.
func (j *job) inPlace(ctx context.Context, k kernel.Release, art registry.Artifact, rows []registry.Install) (bool, error) {
	if !j.filesInPlace(art, rows) {
		return false, nil
	}
	d, err := j.dresses(ctx)
	if err != nil {
		return false, err
	}
	want, err := d.form(art.Package, k)
	return !slices.ContainsFunc(rows, func(i registry.Install) bool { return !want.has(i) }), err
}

func (j *job) filesInPlace(art registry.Artifact, rows []registry.Install) bool {
	in := map[string]registry.Install{}
	for _, i := range rows {
		in[i.Module] = i
	}
	if len(in) != len(art.Modules) {
		return false
	}
	for _, m := range art.Modules {
		i, ok := in[m.Name]
		if !ok || i.Artifact != art.Digest {
			return false
		}
		dir := j.folder(filepath.Dir(i.Path))
		file, err := os.Lstat(filepath.Join(dir, filepath.Base(i.Path)))
		if err != nil || file.Size() != i.Size {
			return false
		}
		up := strings.Repeat("../", strings.Count(i.Path, "/")-strings.Count("/lib/modules/R/", "/"))
		index, err := os.Stat(filepath.Join(dir, up, "modules.dep"))
		if err != nil || index.ModTime().Before(file.ModTime()) {
			return false
		}
	}
	return true
}

// folder resolves a folder inside the root, once: packages share a few.
func (j *job) folder(name string) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	if path, ok := j.folders[name]; ok {
		return path
	}
	path, err := j.root.Path(name)
	if err != nil {
		path = filepath.Join(string(j.root), name) // what is not there has no files
	}
	if j.folders == nil {
		j.folders = map[string]string{}
	}
	j.folders[name] = path
	return path
}
