package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/loader"
	"kmodctl/registry"
)

func cmdStatus(e *env) *cli.Command {
	return &cli.Command{
		Name:      "status",
		Usage:     "show what is built and installed for which kernel, and why not",
		ArgsUsage: "[NAME|NAME@VERSION ...]",
		Description: examples("One line per package and kernel. STATE is one of\n\n"+
			"   installed   the current artifact is in /lib/modules and in its index\n"+
			"   built       the current artifact is in the registry only\n"+
			"   added       known, not built yet\n"+
			"   stale       built from other inputs than today's: WHY names them\n"+
			"   failed      the last build of today's inputs failed, or none can begin: WHY says why\n"+
			"   damaged     what is installed is not what was installed: WHY says how\n"+
			"   gone        installed for a kernel that is no longer here: WHY says what forgets it\n"+
			"   skipped     the package does not apply to this kernel, or it has no headers",
			"kmodctl status", "kmodctl status hello --json"),
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			return e.status(c.Context, c.Args().Slice())
		},
	}
}

// The states of a package for a kernel.
const (
	stateInstalled = "installed"
	stateBuilt     = "built"
	stateAdded     = "added"
	stateStale     = "stale"
	stateFailed    = "failed"
	stateDamaged   = "damaged"
	stateGone      = "gone"
	stateSkipped   = "skipped"
)

// packageStatus is one package of status.
type packageStatus struct {
	Name          string         `json:"name"`
	Version       string         `json:"version"`
	Origin        string         `json:"origin"`
	OriginChanged []string       `json:"origin_changed,omitempty"` // files that differ from what was added, or why they cannot be compared
	OriginGone    bool           `json:"origin_gone,omitempty"`
	Kernels       []kernelStatus `json:"kernels"`
	Files         []fileStatus   `json:"files,omitempty"` // beside modules, that are not as they were installed
}

// fileStatus is a file beside the modules of a package, such as firmware.
type fileStatus struct {
	Path string `json:"path"`
	Kind string `json:"kind"` // missing, modified or edited, as verify has them
}

// kernelStatus is one package for one kernel.
type kernelStatus struct {
	Release   string         `json:"release"`
	State     string         `json:"state"`
	Why       string         `json:"why,omitempty"`
	Class     string         `json:"class,omitempty"`     // of the build that failed, if that is why
	Installed string         `json:"installed,omitempty"` // version in /lib/modules, when there is one
	Pinned    string         `json:"pinned,omitempty"`    // version that a pin says, when there is one
	Modules   []moduleStatus `json:"modules,omitempty"`
}

// moduleStatus is one module of a package for a kernel.
type moduleStatus struct {
	Name    string `json:"name"`
	Digest  string `json:"digest"`
	Path    string `json:"path,omitempty"`    // where it is installed
	Shadows string `json:"shadows,omitempty"` // the path of another file of this name, which loads once this one is uninstalled
	Live    string `json:"live,omitempty"`    // "live", anotherBuild, or "" when not loaded
}

func (e *env) status(ctx context.Context, args []string) error {
	reg, err := e.reader(ctx)
	if err != nil {
		return err
	}
	defer reg.Close()
	s := &statusReader{job: job{env: e, reg: reg}}
	sources, err := s.gather(ctx, args)
	if err != nil {
		return err
	}
	packages := make([]packageStatus, len(sources))
	var g errgroup.Group
	var next atomic.Int64
	for range runtime.NumCPU() {
		g.Go(func() (err error) {
			for i := next.Add(1) - 1; err == nil && int(i) < len(sources); i = next.Add(1) - 1 {
				packages[i], err = s.pkg(sources[i])
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	unfinished, holder, err := reg.Unfinished()
	if err != nil {
		return err
	}
	if e.json {
		return e.document("status", map[string]any{
			"packages": packages, "foreign": orEmpty(s.foreign), "unfinished": orEmpty(unfinished), "writer": holder,
		})
	}
	bare := s.leaveOutBare(packages)
	if err := e.printStatus(packages, s.foreign, unfinished, holder); err != nil {
		return err
	}
	for _, release := range bare {
		fmt.Fprintf(e.out, "kernel %s: it runs, but neither its modules nor its headers are here\n", release)
	}
	return nil
}

// leaveOutBare takes out what would be said of every package alike: that it is skipped for a kernel, running in a container or
// a virtual machine, that nothing can be installed for. It returns these kernels.
func (s *statusReader) leaveOutBare(packages []packageStatus) (bare []string) {
	for _, k := range s.kernels {
		if k.Running && k.Modules == "" && k.Tree == nil && k.Err == nil && len(packages) > 0 {
			bare = append(bare, k.Name)
		}
	}
	for i := range packages {
		packages[i].Kernels = slices.DeleteFunc(packages[i].Kernels, func(k kernelStatus) bool {
			return k.State == stateSkipped && slices.Contains(bare, k.Release)
		})
	}
	return bare
}

// orEmpty makes a list without elements [] in JSON rather than null.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// asked are the packages that the arguments name; all when there are none.
func (s *statusReader) asked(args []string) (sources []registry.Source, err error) {
	if len(args) == 0 {
		return s.reg.Sources()
	}
	for _, arg := range args {
		src, err := source(s.reg, arg)
		if err != nil {
			return nil, err
		}
		sources = append(sources, src)
		s.only = append(s.only, src.Name)
	}
	return sources, nil
}

// gather reads what the status of every package is made from, each kind of thing at
// once, and looks at files while the registry reads rows. It returns the packages.
func (s *statusReader) gather(ctx context.Context, args []string) ([]registry.Source, error) {
	var sources []registry.Source
	ask := func() (err error) {
		if sources, err = s.asked(args); err == nil {
			s.lookAtOrigins(ctx, sources)
		}
		return err
	}
	var rows []registry.Install
	var g errgroup.Group
	if len(args) == 0 {
		g.Go(ask)
	} else if err := ask(); err != nil { // of which packages the rest is read
		return nil, err
	}
	g.Go(s.know)
	g.Go(func() (err error) {
		if rows, err = s.reg.Installs(s.only...); err != nil {
			return err
		}
		g.Go(func() error { return s.lookAtFiles(rows) })
		if s.beside, err = s.reg.LookBeside(s.root); err != nil {
			return err
		}
		return s.knowMore()
	})
	g.Go(s.findKernels)
	if err := g.Wait(); err != nil {
		return nil, err
	}
	here := choice{kernels: s.kernels}
	s.installs = byTarget(rows)
	for _, i := range rows {
		if !here.covers(i.Release) && !slices.Contains(s.gone, i.Release) {
			s.gone = append(s.gone, i.Release) // in the order of the rows
		}
	}
	return sources, nil
}

func (s *statusReader) findKernels() (err error) {
	if s.kernels, err = kernel.Find(s.root); err != nil {
		return err
	}
	if s.root.IsHost() {
		s.running, _ = kernel.Running()
		s.live, _ = loader.ReadState(s.root) // a kernel without modules has none that are live
	}
	return nil
}

func (s *statusReader) lookAtFiles(rows []registry.Install) error {
	drift, err := registry.LookAt(s.root, rows, len(s.only) == 0)
	if err != nil {
		return err
	}
	machine := os.Getuid() == 0 || !s.root.IsHost() || len(rows) > 0 // the registry is the machine's, not a user's own: what is installed is its
	s.drift = map[target][]registry.Drift{}
	for _, d := range drift {
		if d.Package != "" {
			to := target{d.Package, d.Release}
			s.drift[to] = append(s.drift[to], d)
		} else if machine {
			s.foreign = append(s.foreign, d)
		}
	}
	return nil
}

// knowMore reads what only status wants to know.
func (s *statusReader) knowMore() error {
	s.failures = sync.OnceValues(func() (map[target][]registry.Attempt, error) {
		all, err := s.reg.Failures(s.only...)
		failures := map[target][]registry.Attempt{}
		for _, a := range all {
			to := target{a.Package, a.Release}
			failures[to] = append(failures[to], a)
		}
		return failures, err
	})
	originals, err := s.reg.Originals()
	if err != nil {
		return err
	}
	s.shadows = map[string]string{}
	for _, o := range originals {
		s.shadows[o.Release+" "+o.Module] = o.Path
	}
	return nil
}

// statusReader gathers, once, what the status of every package is made from.
type statusReader struct {
	job
	kernels  []kernel.Release
	installs map[target][]registry.Install
	drift    map[target][]registry.Drift
	foreign  []registry.Drift
	beside   []registry.Drift
	gone     []string                                      // releases with installs that are no kernel's any more
	failures func() (map[target][]registry.Attempt, error) // last builds that failed
	shadows  map[string]string                             // by release and module: the path of the original
	running  string
	live     *loader.State
	origins  map[string]origin          // by NAME@VERSION
	latest   map[string]registry.Source // by origin: the source last added from there; once asked for
}

func (s *statusReader) pkg(src registry.Source) (packageStatus, error) {
	p := packageStatus{Name: src.Name, Version: src.Version, Origin: src.Origin, Kernels: make([]kernelStatus, 0, len(s.kernels))}
	at := s.origins[src.Name+"@"+src.Version]
	p.OriginGone, p.OriginChanged = at.gone, at.changed
	for _, d := range s.beside {
		if d.Package == src.Name && d.Version == src.Version {
			p.Files = append(p.Files, fileStatus{d.Path, d.Kind})
		}
	}
	steps, err := s.plan([]choice{{src, s.kernels}})
	if err != nil {
		return p, err
	}
	for _, step := range steps {
		k, err := s.kernel(src, step)
		if err != nil {
			return p, err
		}
		p.Kernels = append(p.Kernels, k)
	}
	// A kernel that is gone may still have rows: nothing is hidden.
	for _, release := range s.gone {
		if rows := s.installs[target{src.Name, release}]; len(rows) > 0 && rows[0].Version == src.Version {
			p.Kernels = append(p.Kernels, kernelStatus{Release: release, State: stateGone, Installed: src.Version,
				Why: "the kernel is no longer here; kmodctl uninstall " + src.Name + " -k " + release + " forgets it"})
		}
	}
	return p, nil
}

// origin is what has become of the folder that a source was added from.
type origin struct {
	gone    bool
	changed []string // files, or why they cannot be compared
}

func (s *statusReader) lookAtOrigins(ctx context.Context, sources []registry.Source) {
	s.origins = map[string]origin{}
	for _, src := range sources {
		s.origins[src.Name+"@"+src.Version] = s.origin(ctx, src)
	}
}

// origin compares the folder that a source was added from with what was added. A
// folder that holds another version by now tells nothing of this one.
func (s *statusReader) origin(ctx context.Context, src registry.Source) (at origin) {
	if src.Origin == "" || src.Untouched() { // imported, or nothing to tell
		return at
	}
	if _, err := os.Stat(src.Origin); err != nil {
		at.gone = errors.Is(err, fs.ErrNotExist) // what this user cannot see is not known
		return at
	}
	if s.latest == nil {
		var err error
		if s.latest, err = s.reg.Latest(); err != nil {
			at.changed = []string{err.Error()}
			return at
		}
	}
	if s.latest[src.Origin].Version != src.Version || s.latest[src.Origin].Name != src.Name {
		return at
	}
	digest, files, err := registry.Digest(ctx, src.Origin)
	switch {
	case errors.Is(err, fs.ErrPermission) || err == nil && digest == src.Digest:
	case err != nil:
		at.changed = []string{err.Error()}
	default:
		at.changed = changedFiles(src.Files, files)
	}
	return at
}

// kernel judges one package for one kernel.
func (s *statusReader) kernel(src registry.Source, step build.Step) (kernelStatus, error) {
	k := kernelStatus{Release: step.Release}
	art, built, err := s.artifact(src, step.Release)
	if err != nil {
		return k, err
	}
	if pin, ok := s.pins.For(src.Name, step.Release); ok {
		k.Pinned = pin.Version
	}
	current := built
	paths := map[string]string{}
	loads := art // what a load takes
	for _, i := range s.installs[target{src.Name, step.Release}] {
		k.Installed = i.Version
		paths[i.Module] = i.Path
		current = current && i.Artifact == art.Digest
		if s.running == step.Release && i.Artifact != loads.Digest {
			if loads, _, err = s.reg.ArtifactByDigest(i.Artifact); err != nil {
				return k, err
			}
		}
	}
	current = current && len(paths) > 0
	for _, m := range art.Modules {
		shown := moduleStatus{Name: m.Name, Digest: m.Digest, Path: paths[m.Name], Live: s.liveState(step.Release, m.Name, loads)}
		if shown.Path != "" {
			shown.Shadows = s.shadows[step.Release+" "+m.Name]
		}
		k.Modules = append(k.Modules, shown)
	}
	failure, err := s.failure(step)
	k.State, k.Why = judge(step, built, current, s.damage(src, step.Release), firstLine(failure.Error))
	if k.State == stateFailed {
		k.Class = cmp.Or(failure.Class, string(build.ClassOf(step.Err)))
	}
	if k.Why == "" && step.Kernel.Err != nil {
		k.Why = step.Reason
	}
	return k, err
}

// judge orders the states: what needs a person first comes first.
func judge(step build.Step, built, installed bool, damage, failure string) (state, why string) {
	switch {
	case damage != "":
		return stateDamaged, damage
	case failure != "":
		return stateFailed, failure
	case step.Action == build.ActionFail:
		return stateFailed, step.Reason
	case step.Action == build.ActionBuild && built:
		return stateStale, step.Reason
	case installed:
		return stateInstalled, ""
	case built: // elsewhere, perhaps: that needs no headers here
		return stateBuilt, ""
	case step.Action == build.ActionSkip:
		return stateSkipped, step.Reason
	}
	return stateAdded, step.Reason
}

// failure is the last build, when that failed, was of today's inputs and they have no artifact.
func (s *statusReader) failure(step build.Step) (registry.Attempt, error) {
	if step.Action != build.ActionBuild {
		return registry.Attempt{}, nil
	}
	failures, err := s.failures()
	if err != nil {
		return registry.Attempt{}, err
	}
	for _, a := range failures[target{step.Package, step.Release}] {
		if a.Version == step.Version && a.InputHash == step.InputHash {
			return a, nil
		}
	}
	return registry.Attempt{}, nil
}

func (s *statusReader) damage(src registry.Source, release string) string {
	var found []string
	for _, d := range s.drift[target{src.Name, release}] {
		if d.Version == src.Version {
			found = append(found, d.Path+" is "+d.Kind)
		}
	}
	if len(found) == 0 {
		return ""
	}
	return strings.Join(found, ", ") + "; kmodctl install " + src.Name + "@" + src.Version + " puts it right"
}

// liveState is the state of a live module, and whether it is another build than that of art.
func (s *statusReader) liveState(release, module string, art registry.Artifact) string {
	if s.live == nil || s.running != release {
		return ""
	}
	for _, l := range s.live.Modules {
		switch {
		case l.Name != module:
		case slices.ContainsFunc(art.Modules, func(m registry.Module) bool { return otherBuild(l, m) }):
			return anotherBuild
		default:
			return l.State
		}
	}
	return ""
}

// changedFiles names the files that differ between two lists.
func changedFiles(old, now []registry.File) (out []string) {
	before := map[string]registry.File{}
	for _, f := range old {
		before[f.Path] = f
	}
	for _, f := range now {
		if was, ok := before[f.Path]; !ok {
			out = append(out, f.Path+" (new)")
		} else if was != f {
			out = append(out, f.Path)
		}
		delete(before, f.Path)
	}
	for path := range before {
		out = append(out, path+" (gone)")
	}
	slices.Sort(out)
	return out
}

func (e *env) printStatus(packages []packageStatus, foreign []registry.Drift, unfinished []string, holder string) error {
	if len(packages) == 0 {
		e.say("nothing is registered: kmodctl build DIR adds a module, kmodctl new NAME begins one")
	} else {
		t := e.table("PACKAGE", "VERSION", "KERNEL", "STATE", "MODULES", "WHY")
		for _, p := range packages {
			if len(p.Kernels) == 0 {
				t.row(p.Name, p.Version, "", stateAdded, "", "this machine has no kernel to build for")
			}
			for _, k := range p.Kernels {
				var modules []string
				for _, m := range k.Modules {
					text := m.Name
					if m.Live != "" {
						text += " (" + m.Live + ")"
					}
					if m.Shadows != "" && e.verbose {
						text += " (shadows " + m.Shadows + ")"
					}
					modules = append(modules, text)
				}
				why := classed(k.Class, k.Why)
				if k.Installed != "" && k.State != stateInstalled {
					why = strings.TrimPrefix(why+"; "+k.Installed+" is installed", "; ")
				}
				if k.Pinned != "" {
					why = strings.TrimPrefix(why+"; pinned to "+k.Pinned, "; ")
				}
				t.row(p.Name, p.Version, k.Release, k.State, strings.Join(modules, ","), why)
			}
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	for _, p := range packages {
		if len(p.OriginChanged) > 0 {
			fmt.Fprintf(e.out, "%s %s: %s changed since add: %s (kmodctl build %s)\n", p.Name, p.Version, p.Origin, strings.Join(p.OriginChanged, ", "), p.Origin)
		}
	}
	for _, p := range packages {
		for _, f := range p.Files {
			if f.Kind != registry.DriftEdited {
				fmt.Fprintf(e.out, "%s %s: %s is %s (%s)\n", p.Name, p.Version, f.Path, f.Kind, e.command("repair"))
			}
		}
	}
	for _, d := range foreign {
		fmt.Fprintf(e.out, "foreign: %s was not put there by kmodctl\n", d.Path)
	}
	for _, u := range unfinished {
		fmt.Fprintf(e.out, "unfinished: %s\n", u)
	}
	if len(unfinished) > 0 && holder == "" {
		fmt.Fprintf(e.out, "%s finishes it\n", e.command("build"))
	}
	if holder != "" {
		fmt.Fprintf(e.out, "at work: %s\n", holder)
	}
	return nil
}
