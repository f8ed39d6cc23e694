package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/urfave/cli/v2"

	"kmodctl/build"
	"kmodctl/internal/dkms"
	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

func cmdRepair(e *env) *cli.Command {
	return &cli.Command{
		Name:  "repair",
		Usage: "mend what verify finds: from copies that are still there, or by a build",
		Description: examples("Damaged or lost blobs come back from their copies (an installed module, the folder a source was\n"+
			"added from, the database), installed modules and the files beside them from the blobs; what has no\n"+
			"copy is built again, and what is stale too. A damaged database is kept aside and made anew from\n"+
			"the blobs. Foreign files, edited ones and live modules are told of, never touched.",
			"kmodctl repair --dry-run", "kmodctl repair"),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			return e.repair(c.Context)
		},
	}
}

// mending is a drift and what was, or would be, done about it.
type mending struct {
	registry.Drift
	How   string `json:"how,omitempty"`   // in words; "" when nothing can be done
	Error string `json:"error,omitempty"` // why that failed
}

// repairer mends drifts.
type repairer struct {
	job
	done []mending
}

func (e *env) repair(ctx context.Context) error {
	r := &repairer{job: job{env: e, failed: map[target]error{}}}
	var err error
	if r.reg, err = r.openSound(ctx); err != nil {
		return err
	}
	if r.reg != nil { // nil: a dry run on a damaged database
		defer func() {
			if r.reg != nil { // nil: it could not be made anew
				e.close(r.reg)
			}
		}()
		// What the first round builds may leave an artifact behind that nothing needs.
		for more, rounds := true, 0; more && rounds < 3; rounds++ {
			if more, err = r.mendAll(ctx); err != nil {
				return err
			}
		}
		if r.reg != nil {
			if err := r.resume(); err != nil {
				return err
			}
		}
	}
	if e.json {
		if err := e.document("repair", map[string]any{"dry_run": e.dryRun, "drifts": orEmpty(r.done)}); err != nil {
			return err
		}
	}
	if len(r.done)+len(r.errs) == 0 {
		e.say("nothing to do: everything is as it should be")
	}
	return r.outcome()
}

// resume tries again to finish what was cut off: what has been mended may have been in its way.
func (r *repairer) resume() error {
	if r.dryRun {
		what, _, err := r.reg.Unfinished()
		for _, u := range what {
			r.would("unfinished: %s: finish it", u)
		}
		return err
	}
	told := len(r.reg.Recovered())
	waiting, err := r.reg.Resume()
	for _, line := range r.reg.Recovered()[told:] {
		r.changed("recovered: %s", line)
	}
	for _, why := range waiting {
		r.tried++
		r.fail(fmt.Errorf("repair: %w", why))
	}
	return err
}

// openSound opens the registry; a database that is damaged is made anew first.
func (r *repairer) openSound(ctx context.Context) (*registry.Registry, error) {
	reg, err := r.open(ctx, "repair")
	var damaged *registry.DamagedError
	if !errors.As(err, &damaged) {
		return reg, err
	}
	return r.rebuild(ctx, registry.DamagedDatabase(damaged))
}

// rebuild makes the database anew and opens it; nil in a dry run.
func (r *repairer) rebuild(ctx context.Context, d registry.Drift) (*registry.Registry, error) {
	r.note(d, "make the database anew from the blobs", nil)
	if r.dryRun {
		return nil, nil
	}
	dir, err := r.registryDir()
	if err != nil {
		return nil, err
	}
	end := r.err.show("make the database anew")
	told, err := registry.Rebuild(ctx, dir, r.root, r.writerOptions("repair"), r.readManifest)
	end()
	if err != nil {
		return nil, err
	}
	for _, line := range told {
		r.changed("%s", line)
	}
	return r.writer(ctx, "repair")
}

// readManifest finds kmod.toml, or else dkms.conf, among the files at the top of a source.
func (r *repairer) readManifest(top map[string]string) (text, name, version string, err error) {
	text, ok := top[build.ManifestFile]
	if conf, other := top[dkms.ConfFile]; !ok && other {
		c, err := dkms.Evaluate(context.Background(), dkms.Source{Text: []byte(conf)}, r.anyKernel())
		return conf, c.Name, c.Version, err
	} else if !ok {
		return "", "", "", fmt.Errorf("neither %s nor %s is in the source", build.ManifestFile, dkms.ConfFile)
	}
	m, err := build.ParseManifest(build.ManifestFile, []byte(text))
	if err != nil {
		return "", "", "", err
	}
	return text, m.Name, m.Version, nil
}

// mendAll mends, in the order in which one thing helps the next: the database, the
// blobs and what is recorded, lost artifacts, what is installed. more is true when something
// was built: there may be something left to mend then.
func (r *repairer) mendAll(ctx context.Context) (more bool, err error) {
	r.newest = nil
	drifts, err := r.drifts(ctx)
	if err != nil {
		return false, err
	}
	if i := slices.IndexFunc(drifts, func(d registry.Drift) bool { return d.Object == registry.ObjectDatabase }); i >= 0 {
		if !r.dryRun {
			err := r.reg.Close()
			r.reg = nil
			if err != nil {
				return false, err
			}
		}
		reg, err := r.rebuild(ctx, drifts[i])
		if err != nil || reg == nil {
			return false, err
		}
		r.reg, r.newest = reg, nil
		if drifts, err = r.drifts(ctx); err != nil {
			return false, err
		}
	}
	again := map[target]bool{}             // built and installed again
	about := map[string]bool{}             // artifacts that have been seen to
	place := map[string][]registry.Drift{} // installed modules that are not right, by release
	seen := slices.Clone(r.done)           // in the rounds before
	for _, d := range drifts {
		if slices.ContainsFunc(seen, func(m mending) bool { return m.Drift == d && (m.Error != "" || m.How == "") }) {
			continue // in vain
		}
		remedy, err := r.reg.Remedy(ctx, r.root, d)
		switch {
		case err != nil:
			return false, err
		case remedy != nil:
			r.note(d, remedy.What, remedy.Do)
		case d.Kind == driftStale, d.Needed != "":
			more = true
			if err := r.lost(ctx, d, about, again); err != nil {
				return false, err
			}
		case d.Object == registry.ObjectInstalled && d.Package != "", d.Object == registry.ObjectBlob && d.Module != "": // it is made again
			place[d.Release] = append(place[d.Release], d)
		case d.Object == registry.ObjectReadme:
			r.note(d, "write it again", nil) // every writer does
		case d.Object == registry.ObjectFile && d.Kind == registry.DriftMissing && d.Path == build.OptionsFile(d.Package):
			r.note(d, "write it again, from "+build.ManifestFile, nil) // every writer does
		default:
			r.leave(d)
		}
	}
	for _, release := range slices.Sorted(maps.Keys(place)) {
		failed := len(r.errs)
		if err := r.placeAgain(ctx, release, again); err != nil {
			return false, err
		}
		for _, d := range place[release] {
			how := "install " + d.Package + " " + d.Version + " for " + d.Release + " again"
			if len(r.errs) > failed { // it has been told
				r.done = append(r.done, mending{Drift: d, How: how, Error: r.errs[failed].Error()})
			} else {
				r.note(d, how, nil)
			}
		}
	}
	return more && !r.dryRun, nil
}

// note tells what is done about a drift, and does it.
func (r *repairer) note(d registry.Drift, how string, do func() error) {
	m := mending{Drift: d, How: how}
	if r.dryRun {
		r.would("%s: %s", driftLine(d), how)
		r.done = append(r.done, m)
		return
	}
	r.tried++
	if do != nil {
		if err := do(); err != nil {
			err = fmt.Errorf("repair %s: %s: %w", d.Path, how, err)
			m.Error = err.Error()
			r.fail(err)
		}
	}
	if m.Error == "" {
		r.changed("%s: %s", driftLine(d), how)
	}
	r.done = append(r.done, m)
}

// leave tells of a drift that only a person can mend. What is foreign, what somebody has edited and what is
// live is not ours to change: that is no failure.
func (r *repairer) leave(d registry.Drift) {
	r.done = append(r.done, mending{Drift: d})
	if d.Kind == registry.DriftForeign || d.Kind == registry.DriftEdited || d.Kind == driftLoadedOlder {
		r.say("left alone: %s", driftLine(d))
		return
	}
	r.tried++
	if d.Kind == driftUnreadable {
		r.fail(fmt.Errorf("repair: %s", driftLine(d)))
		return
	}
	r.fail(fmt.Errorf("repair: %s: no copy of it is left", driftLine(d)))
}

// lost builds an artifact again that is stale or has lost a module for good, and installs
// the new one where the old one is. One that is lost, has a newer one and is not
// installed is forgotten instead.
func (r *repairer) lost(ctx context.Context, d registry.Drift, about map[string]bool, again map[target]bool) error {
	newest, old, err := r.artifactsOf(d)
	if err != nil || about[old.Digest] {
		return err
	}
	about[old.Digest] = true
	installs, err := r.reg.Installs()
	if err != nil {
		return err
	}
	installed := slices.ContainsFunc(installs, func(i registry.Install) bool {
		same := i.Package == d.Package && i.Version == d.Version && i.Release == d.Release
		return i.Artifact == old.Digest || d.Kind == driftStale && same
	})
	if !installed && newest.Digest != old.Digest {
		r.note(d, "forget its artifact, which has a newer one", func() error { return r.reg.ForgetArtifact(old.Digest) })
		return nil
	}
	r.note(d, "build "+d.Package+" "+d.Version+" for "+d.Release+" again", func() error {
		made, err := r.buildAgain(ctx, d)
		if err != nil {
			return err
		}
		if installed {
			dress, err := r.dressFor(ctx, made)
			if err != nil {
				return err
			}
			if _, err := r.reg.Install(ctx, d.Release, []registry.Artifact{made}, dress); err != nil {
				return err
			}
			again[target{d.Package, d.Release}] = true
		}
		back := func(m registry.Module) bool { return m.Digest == d.Digest }
		if d.Kind == driftStale || slices.ContainsFunc(made.Modules, back) {
			return nil
		}
		return r.reg.ForgetArtifact(old.Digest)
	})
	return nil
}

// artifactsOf returns the newest artifact of a drift's package version for its release, and the
// one that the drift is about.
func (r *repairer) artifactsOf(d registry.Drift) (newest, old registry.Artifact, err error) {
	if newest, _, err = r.reg.Artifact(d.Package, d.Version, d.Release); err != nil || d.Needed == "" {
		return newest, newest, err
	}
	old, _, err = r.reg.ArtifactByDigest(d.Needed)
	return newest, old, err
}

func (r *repairer) buildAgain(ctx context.Context, d registry.Drift) (made registry.Artifact, err error) {
	src, err := r.reg.Source(d.Package, d.Version)
	if err != nil {
		return made, err
	}
	k, err := kernel.Get(r.root, d.Release)
	if err != nil {
		return made, err
	}
	m, err := r.manifests(src)(k)
	if err != nil {
		return made, err
	}
	step, err := r.decide(src, m, k, build.Made{})
	if err != nil {
		return made, err
	}
	switch step.Action {
	case build.ActionFail:
		return made, step.Err
	case build.ActionSkip:
		return made, errors.New(step.Reason)
	}
	if err := r.buildAlone(ctx, src, step); err != nil {
		return made, err
	}
	made, _, err = r.reg.Artifact(d.Package, d.Version, d.Release)
	return made, err
}

// placeAgain installs what the rows of a release say, but for what was built again.
func (r *repairer) placeAgain(ctx context.Context, release string, again map[target]bool) error {
	if r.dryRun {
		return nil
	}
	installs, err := r.reg.Installs()
	if err != nil {
		return err
	}
	var due []registry.Artifact
	for _, i := range installs {
		seen := func(a registry.Artifact) bool { return a.Package == i.Package }
		if i.Release != release || again[target{i.Package, release}] || slices.ContainsFunc(due, seen) {
			continue
		}
		art, ok, err := r.reg.ArtifactByDigest(i.Artifact)
		if err != nil {
			return err
		}
		if ok {
			due = append(due, art)
		}
	}
	k, err := kernel.Get(r.root, release)
	if err != nil {
		return err
	}
	return r.installFor(ctx, k, due)
}
