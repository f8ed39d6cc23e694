package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"kmodctl/internal/kernel"
	"kmodctl/internal/keys"
	"kmodctl/registry"
)

// signingCommand is a command that signs what is installed.
type signingCommand struct {
	verb     string
	args     []string // packages
	all      bool     // in their place: all of them
	releases []string // none is all
	again    bool     // only what another key has signed, or what is to be signed and is not
}

// signInstalled signs modules that are installed, in place; nothing is built, and what is live stays live.
func (e *env) signInstalled(ctx context.Context, c signingCommand) error {
	if c.all == (len(c.args) > 0) {
		return usagef("%s takes packages, or --all: kmodctl %s NAME", c.verb, c.verb)
	}
	reg, err := e.open(ctx, strings.Join(append([]string{c.verb}, c.args...), " "))
	if err != nil {
		return err
	}
	defer e.close(reg)
	installs, err := reg.Installs()
	if err != nil {
		return err
	}
	if err := e.checkKernels(c.releases, kernelsOf(installs)); err != nil {
		return err
	}
	due, err := c.due(reg, installs)
	if err != nil {
		return err
	}
	j := &job{env: e, reg: reg, signAll: true}
	if err := j.signDue(ctx, c, due); err != nil {
		return err
	}
	if e.json {
		if err := e.document("resign", map[string]any{"dry_run": e.dryRun, "installs": orEmpty(j.installs)}); err != nil {
			return err
		}
	}
	if j.tried == 0 && !e.dryRun {
		e.say("nothing to do: all is signed by %s", j.dresser.known().Name)
	}
	return j.outcome()
}

// due are the rows that a command is about, by kernel release and package.
func (c signingCommand) due(reg *registry.Registry, installs []registry.Install) (map[string]map[string][]registry.Install, error) {
	versions := map[string]string{}
	for _, arg := range c.args {
		src, err := source(reg, arg)
		if err != nil {
			return nil, err
		}
		_, versions[src.Name], _ = strings.Cut(arg, "@")
	}
	due := map[string]map[string][]registry.Install{}
	found := map[string]bool{}
	for _, i := range installs {
		version, asked := versions[i.Package]
		if !c.all && (!asked || version != "" && version != i.Version) || len(c.releases) > 0 && !slices.Contains(c.releases, i.Release) {
			continue
		}
		if due[i.Release] == nil {
			due[i.Release] = map[string][]registry.Install{}
		}
		due[i.Release][i.Package] = append(due[i.Release][i.Package], i)
		found[i.Package] = true
	}
	for _, name := range slices.Sorted(maps.Keys(versions)) {
		if !found[name] {
			return nil, notInstalled{c.verb, name}
		}
	}
	return due, nil
}

// notInstalled is a package that has nothing installed to be signed.
type notInstalled struct{ verb, name string }

func (n notInstalled) Error() string {
	return fmt.Sprintf("%s %s: it is not installed", n.verb, n.name)
}

// signDue signs what is due, kernel by kernel, each in one change.
func (j *job) signDue(ctx context.Context, c signingCommand, due map[string]map[string][]registry.Install) error {
	d, err := j.dresses(ctx)
	if err != nil {
		return err
	}
	if c.again && d.key == nil {
		return fmt.Errorf("%s: %w", c.verb, cmp.Or(d.closed, keys.ErrNoKey))
	}
	var kernels []kernel.Release
	for _, release := range slices.SortedFunc(maps.Keys(due), kernel.Compare) {
		k, err := kernel.Get(j.root, release)
		if errors.As(err, new(*kernel.NotFoundError)) {
			continue // it was removed: gc forgets what was installed for it
		} else if err != nil {
			return err
		}
		if why := j.cannotInstall(k); why != "" {
			return fmt.Errorf("%s for %s: %s", c.verb, k.Name, why)
		}
		if err := d.verifiable(k, form{signed: true}); err != nil {
			return err
		}
		kernels = append(kernels, k)
	}
	for _, k := range kernels {
		var artifacts []registry.Artifact
		for _, pkg := range slices.Sorted(maps.Keys(due[k.Name])) {
			rows := due[k.Name][pkg]
			want, err := d.form(pkg, k)
			if err != nil {
				return err
			}
			if !c.concerns(d, want, rows) {
				continue
			}
			art, ok, err := j.reg.ArtifactByDigest(rows[0].Artifact)
			if err != nil {
				return err
			}
			if ok {
				artifacts = append(artifacts, art)
			}
		}
		if err := j.installFor(ctx, k, artifacts); err != nil {
			return err
		}
	}
	return nil
}

// concerns reports whether a command has anything to do for what is installed of a package.
func (c signingCommand) concerns(d *dresser, want form, rows []registry.Install) bool {
	right := func(i registry.Install) bool { return i.Signer == want.signer && want.has(i) }
	signed := func(i registry.Install) bool { return i.Signer != "" }
	if c.again && !slices.ContainsFunc(rows, signed) && !d.configured(rows[0].Package) {
		return false
	}
	return slices.ContainsFunc(rows, func(i registry.Install) bool { return !right(i) })
}
