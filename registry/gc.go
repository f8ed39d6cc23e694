package registry

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"time"
)

// GC is what no kernel on this machine and no pin needs.
type GC struct {
	Artifacts []Garbage `json:"artifacts"` // by package, version and release, older ones first
	Blobs     []Litter  `json:"blobs"`     // that go for reasons of their own
	Held      []Garbage `json:"held"`      // of kernels long gone, yet installed there: nothing of them goes
	Headers   []Litter  `json:"headers"`   // unpacked packages that no build has used for the grace
	Bytes     int64     `json:"bytes"`     // all that becomes free
}

// Garbage is an artifact that nothing needs, or would need.
type Garbage struct {
	Package string `json:"package"`
	Version string `json:"version"`
	Release string `json:"release"`
	Digest  string `json:"digest"` // of its record
	Bytes   int64  `json:"bytes"`  // of its blobs that no other artifact which stays has; each counts once
	Why     string `json:"why"`
}

// Litter is a blob that no row names, or the log of builds for kernels long gone.
type Litter struct {
	Digest string `json:"digest"`
	Bytes  int64  `json:"bytes"`
	Why    string `json:"why"`
}

// PlanGC finds what can go and changes nothing. What stays: all that is installed anywhere, or that an
// unfinished command would install; what a rollback would take; what a pin holds;
// what was imported, or is the newest of its version that was built with headers which were given; for every kernel that is here, the newest artifact of each
// version that is registered; and everything for a kernel that is gone, for as long as
// grace, counted from when a writer first found it gone (for none, when that is 0, whatever the clock says). A pin for every kernel holds nothing for
// those gone longer. Sources always stay.
func (r *Registry) PlanGC(ctx context.Context, now time.Time, grace time.Duration) (GC, error) {
	if r.tree == nil { // there is no registry
		return GC{}, nil
	}
	plan, err := r.planGC(ctx, r.db, goneBy(now, grace))
	if err != nil {
		return GC{}, fmt.Errorf("plan garbage collection: %w", err)
	}
	return plan, nil
}

// goneBy is when a kernel must have been gone for its grace to be over. Without a grace no
// clock is asked: it may have been ahead when the kernel went.
func goneBy(now time.Time, grace time.Duration) time.Time {
	if grace == 0 {
		return time.Unix(0, math.MaxInt64)
	}
	return now.Add(-grace)
}

func (r *Registry) planGC(ctx context.Context, q queryer, then time.Time) (GC, error) {
	var plan GC
	sizes, err := r.blobSizes()
	if err != nil {
		return plan, err
	}
	refs, err := blobRefs(q)
	if err != nil {
		return plan, err
	}
	k, err := readKeeper(q, then, r.candidates(ctx, refs, sizes))
	if err == nil && ctx.Err() != nil { // what could not be read is no damage
		err = context.Cause(ctx)
	}
	if err != nil {
		return plan, err
	}
	drop := map[string]*Garbage{}
	for _, a := range k.artifacts {
		g := Garbage{Package: a.pkg, Version: a.version, Release: a.release, Digest: a.digest}
		if g.Why = k.why(a); g.Why != "" {
			plan.Artifacts = append(plan.Artifacts, g)
		} else if k.longGone[a.release] && k.installed[a.digest] {
			g.Why = "installed, though the kernel is gone"
			plan.Held = append(plan.Held, g)
		}
	}
	for i := range plan.Artifacts {
		drop[plan.Artifacts[i].Digest] = &plan.Artifacts[i]
	}
	plan.weigh(refs, sizes, drop, k.longGone)
	plan.Headers, err = r.unusedHeaders(then)
	for _, h := range plan.Headers {
		plan.Bytes += h.Bytes
	}
	return plan, err
}

// weigh says what each artifact that goes takes along, and finds the other blobs that go.
func (plan *GC) weigh(refs []blobRef, sizes map[string]int64, drop map[string]*Garbage, longGone map[string]bool) {
	stays, why := map[string]bool{}, map[string]string{}
	for _, ref := range refs {
		switch {
		case drop[ref.artifact] != nil:
		case longGone[ref.logFor]:
			why[ref.blob] = "log of a build for a kernel that is gone"
		default:
			stays[ref.blob] = true
		}
	}
	for _, ref := range refs {
		if g := drop[ref.artifact]; g != nil && !stays[ref.blob] {
			g.Bytes += sizes[ref.blob]
			plan.Bytes += sizes[ref.blob]
			stays[ref.blob] = true // it counts once
		}
	}
	for _, blob := range slices.Sorted(maps.Keys(sizes)) {
		if !stays[blob] {
			plan.Blobs = append(plan.Blobs, Litter{blob, sizes[blob], cmp.Or(why[blob], "nothing names it")})
			plan.Bytes += sizes[blob]
		}
	}
}

// blobSizes are the sizes in bytes of all blobs.
func (r *Registry) blobSizes() (map[string]int64, error) {
	dir, err := r.tree.OpenRoot(blobDir) // one path to walk for each of very many
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := readNames(dir, ".")
	if err != nil {
		return nil, err
	}
	sizes := make(map[string]int64, len(names))
	for _, name := range names {
		if checkDigest(name) != nil {
			continue
		}
		info, err := dir.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		sizes[name] = info.Size()
	}
	return sizes, nil
}

// candidates is what is known of artifacts that a rollback could take.
type candidates struct {
	modules map[string][]string // the digests of the .ko files, by artifact
	whole   func(modules []string) bool
	sound   func(modules []string) bool // reads them
}

func (r *Registry) candidates(ctx context.Context, refs []blobRef, sizes map[string]int64) candidates {
	c := candidates{modules: map[string][]string{}}
	for _, ref := range refs {
		if ref.module {
			c.modules[ref.artifact] = append(c.modules[ref.artifact], ref.blob)
		}
	}
	c.whole = func(modules []string) bool {
		return !slices.ContainsFunc(modules, func(d string) bool { _, here := sizes[d]; return !here })
	}
	c.sound = func(modules []string) bool {
		return !slices.ContainsFunc(modules, func(d string) bool { return r.checkBlob(ctx, d) != nil })
	}
	return c
}

// fallback is what a rollback would take in the place of current; "" for none. older are the
// artifacts that were there before, the latest first; version tells that of each that is still
// here. Files are read only where another one could be taken.
func (c candidates) fallback(older []string, current string, version map[string]string) string {
	older = slices.DeleteFunc(older, func(d string) bool {
		same := version[d] == version[current] && slices.Equal(c.modules[d], c.modules[current])
		return version[d] == "" || same || !c.whole(c.modules[d])
	})
	for i, d := range older {
		if i == len(older)-1 || c.sound(c.modules[d]) {
			return d
		}
	}
	return ""
}

// keptRow is what a keeper looks at of an artifact.
type keptRow struct {
	digest, pkg, version, release string
	imported                      bool
	headers                       bool // were given: the kernel need not be here
}

// keeper knows why artifacts stay.
type keeper struct {
	artifacts  []keptRow // by package, version and release, the newest last
	newest     map[keptRow]string
	registered map[[2]string]bool // name and version
	installed  map[string]bool    // or about to be, or given back
	fallback   map[string]bool    // what a rollback takes
	pins       Pins
	gone       map[string]bool // releases
	longGone   map[string]bool // those, for longer than the grace
}

func readKeeper(q queryer, then time.Time, c candidates) (*keeper, error) {
	k := &keeper{
		newest: map[keptRow]string{}, registered: map[[2]string]bool{}, installed: map[string]bool{},
		fallback: map[string]bool{}, gone: map[string]bool{}, longGone: map[string]bool{},
	}
	var err error
	if k.artifacts, err = collect(q, func(rows *sql.Rows, a *keptRow) error {
		return rows.Scan(&a.digest, &a.pkg, &a.version, &a.release, &a.imported, &a.headers)
	}, `SELECT digest, package, version, release, imported, record ->> 'headers' IS NOT NULL FROM artifact ORDER BY package, version, release, id`); err != nil {
		return nil, err
	}
	for _, a := range k.artifacts {
		k.newest[a.target()] = a.digest
	}
	versions, err := collect(q, func(rows *sql.Rows, v *[2]string) error { return rows.Scan(&v[0], &v[1]) }, `SELECT name, version FROM source`)
	if err != nil {
		return nil, err
	}
	for _, v := range versions {
		k.registered[v] = true
	}
	if k.pins, err = readPins(q); err != nil {
		return nil, err
	}
	if err := k.readInstalls(q, c); err != nil {
		return nil, err
	}
	kernels, err := readKernels(q)
	for _, g := range kernels {
		k.gone[g.Release] = !g.Gone.IsZero()
		// A clock that was set back since makes it longer.
		k.longGone[g.Release] = k.gone[g.Release] && !g.Gone.After(then)
	}
	return k, err
}

// target is an artifact's package, version and release alone.
func (a keptRow) target() keptRow {
	return keptRow{pkg: a.pkg, version: a.version, release: a.release}
}

// readInstalls reads what is installed and what would be put back in its place.
func (k *keeper) readInstalls(q queryer, c candidates) error {
	rows, err := installRows(q, "")
	if err != nil {
		return err
	}
	ins, err := readIntents(q, "")
	if err != nil {
		return err
	}
	history, err := readPast(q, `1`)
	if err != nil {
		return err
	}
	version := map[string]string{}
	for _, a := range k.artifacts {
		version[a.digest] = a.version
	}
	keep := func(rows []Install, of func(Install) past) {
		for _, i := range rows {
			if k.installed[i.Artifact] {
				continue
			}
			k.installed[i.Artifact] = true
			k.fallback[c.fallback(of(i).before(i.Artifact), i.Artifact, version)] = true
		}
	}
	now := func(i Install) past { return history[place{i.Package, i.Release}] }
	keep(rows, now)
	for _, in := range ins {
		keep(in.Before, now)
		keep(in.Target, func(i Install) past { return now(i).after(in.Op, i.Artifact) })
	}
	return nil
}

// why says why an artifact can go; "" when it stays.
func (k *keeper) why(a keptRow) string {
	newest := k.newest[a.target()] == a.digest
	pin, pinned := k.pins.For(a.pkg, a.release)
	pinned = pinned && pin.Version == a.version && (pin.Release != "" || !k.longGone[a.release])
	switch {
	case a.imported, a.headers && newest, k.installed[a.digest], k.fallback[a.digest],
		pinned && (pin.Artifact == a.digest || pin.Artifact == "" && newest):
		return ""
	case k.longGone[a.release]:
		return "the kernel is gone"
	case k.gone[a.release]:
		return ""
	case !newest:
		return "superseded"
	case !k.registered[[2]string{a.pkg, a.version}]:
		return "the version is not registered any more"
	}
	return ""
}

// CollectGarbage removes what PlanGC finds: the rows first, in one transaction, then
// the blobs. When it is cut off in between, the next one removes the rest. It returns
// what it removed. Nobody else may store meanwhile.
func (r *Registry) CollectGarbage(ctx context.Context, now time.Time, grace time.Duration) (GC, error) {
	var plan GC
	err := r.write(func(tx *sql.Tx) (err error) {
		then := goneBy(now, grace)
		if plan, err = r.planGC(ctx, tx, then); err != nil || ctx.Err() != nil {
			return cmp.Or(err, context.Cause(ctx))
		}
		return dropRows(tx, plan, then)
	})
	if err == nil {
		err = errors.Join(r.dropUnnamed(), r.dropHeaders(plan.Headers))
	}
	if err != nil {
		return GC{}, fmt.Errorf("collect garbage: %w", err)
	}
	return plan, nil
}

// dropRows deletes the rows of a plan's artifacts, and has the history of kernels that
// are gone since before then name no log that no artifact has.
func dropRows(tx *sql.Tx, plan GC, then time.Time) error {
	for _, a := range plan.Artifacts {
		if _, err := tx.Exec(`DELETE FROM artifact WHERE digest = ?`, a.Digest); err != nil {
			return err
		}
	}
	_, err := tx.Exec(`UPDATE attempt SET log = '' WHERE log <> ''
		AND release IN (SELECT release FROM kernel WHERE gone <> 0 AND gone <= ?)
		AND log NOT IN (SELECT record ->> 'log' FROM artifact WHERE record ->> 'log' IS NOT NULL)`, then.UnixNano())
	return err
}

// dropUnnamed deletes every blob that no row names.
func (r *Registry) dropUnnamed() error {
	sizes, err := r.blobSizes()
	if err != nil {
		return err
	}
	return r.dropBlobs(slices.Collect(maps.Keys(sizes)))
}
