package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/registry"
)

// job carries packages through build -> registry -> install, and passes plain
// values between them: the rooms do not know each other.
type job struct {
	*env
	reg    *registry.Registry
	tried  int              // steps that were begun
	errs   []error          // of the steps that failed: each has been reported
	failed map[target]error // builds that failed: what is installed stays
	willBe map[target]bool  // in a dry run, what would be built
	force  bool             // shadow newer modules too

	jobs    *build.Jobserver // of the builds that go on; nil is one compiler at a time
	events  bool             // a line of JSON tells of each step of a build
	timings bool             // a line tells where a build's time went
	kept    bool             // folders of builds are left

	mu       sync.Mutex // of all that follows, and of tried, errs and failed: several builds go on at once
	installs []installStep
	newest   map[artifactKey]*registry.Artifact // once read
	pins     registry.Pins                      // read with them
	only     []string                           // names of the packages that are asked for; all when there are none
	planner  build.Planner
	planning sync.Once                  // of the planner's set-up
	named    map[string]bool            // packages of which the user named the version
	headers  []string                   // names of what the kernels' headers were given by; none when they are installed
	given    map[string]registry.Source // what the command is about, by name
	folders  map[string]string          // folders inside the root: their host paths
	weaker   sync.Once                  // to tell that builds are not isolated as well as can be
}

// know reads, once, what most steps of a command ask for: all newest artifacts, and
// the pins. A pinned artifact stands for the newest of its version.
func (j *job) know() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.newest != nil {
		return nil
	}
	all, err := j.reg.Newest(j.only...)
	if err != nil {
		return err
	}
	if j.pins, err = j.reg.Pins(); err != nil {
		return err
	}
	for _, p := range j.pins {
		if p.Artifact == "" {
			continue
		}
		if a, ok, err := j.reg.ArtifactByDigest(p.Artifact); err != nil {
			return err
		} else if ok {
			all = append(all, a)
		}
	}
	newest := make(map[artifactKey]*registry.Artifact, len(all))
	for i, a := range all {
		newest[artifactKey{a.Package, a.Version, a.Release}] = &all[i]
	}
	j.newest = newest
	return nil
}

// artifactKey is what an artifact is of and for.
type artifactKey struct{ pkg, version, release string }

// artifact is the pinned or the newest artifact of a source for a kernel.
func (j *job) artifact(src registry.Source, release string) (registry.Artifact, bool, error) {
	if err := j.know(); err != nil {
		return registry.Artifact{}, false, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	a, ok := j.newest[artifactKey{src.Name, src.Version, release}]
	if !ok {
		return registry.Artifact{}, false, nil
	}
	return *a, true, nil
}

// made puts an artifact that was just built in the place of the newest.
func (j *job) made(a registry.Artifact) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.newest != nil {
		j.newest[artifactKey{a.Package, a.Version, a.Release}] = &a
	}
}

// choice is a source, and the kernels that a command works on it for.
type choice struct {
	registry.Source
	kernels []kernel.Release
}

func (c choice) covers(release string) bool {
	return slices.ContainsFunc(c.kernels, func(k kernel.Release) bool { return k.Name == release })
}

// choose says for which kernels it is another version of a source: the pinned one,
// where there is a pin and the user has not named a version.
func (j *job) choose(sources []registry.Source, kernels []kernel.Release) (out []choice, err error) {
	if err := j.know(); err != nil {
		return nil, err
	}
	for _, src := range sources {
		first := len(out)
		for _, k := range kernels {
			chosen := src
			if p, ok := j.pins.For(src.Name, k.Name); ok && p.Version != src.Version && !j.named[src.Name] {
				var lost *registry.NotFoundError
				if chosen, err = j.reg.Source(src.Name, p.Version); errors.As(err, &lost) {
					chosen = registry.Source{Name: src.Name, Version: p.Version} // its artifact may be here still
				} else if err != nil {
					return nil, err
				}
			}
			i := slices.IndexFunc(out[first:], func(c choice) bool { return c.Version == chosen.Version })
			if i < 0 {
				i = len(out) - first
				out = append(out, choice{Source: chosen})
			}
			out[first+i].kernels = append(out[first+i].kernels, k)
		}
	}
	return out, nil
}

// target is a package and the kernel release that it is for.
type target struct{ pkg, release string }

// installStep is one package to be installed for one kernel, and how that went.
type installStep struct {
	Package string `json:"package"`
	Version string `json:"version"`
	Release string `json:"release"`
	Outcome string `json:"outcome,omitempty"` // installed, failed or kept (in the registry only); "" in a dry run
	Why     string `json:"why,omitempty"`
}

// buildStep is a step of the plan, and how it went.
type buildStep struct {
	build.Step
	Outcome string `json:"outcome,omitempty"` // built or failed; "" when nothing was to be done, and in a dry run
	Error   string `json:"error,omitempty"`

	Class       build.Class `json:"class,omitempty"`        // of a failed one
	LastRelease string      `json:"last_release,omitempty"` // as failedBuild has it
	LastVersion string      `json:"last_version,omitempty"`
}

// results tells how each step went.
func (j *job) results(steps []build.Step) (out []buildStep) {
	for _, s := range steps {
		b := buildStep{Step: s}
		if err := j.failed[target{s.Package, s.Release}]; err != nil {
			b.Outcome, b.Error, b.Class = "failed", err.Error(), build.ClassOf(err)
			var f failedBuild
			if errors.As(err, &f) {
				b.LastRelease, b.LastVersion = f.lastRelease, f.lastVersion
			}
		} else if s.Action == build.ActionBuild && !j.dryRun {
			b.Outcome = "built"
		}
		out = append(out, b)
	}
	return out
}

// begun counts a step that may fail.
func (j *job) begun() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.tried++
}

// fail reports a step that failed and lets the others go on.
func (j *job) fail(err error) {
	j.mu.Lock()
	j.errs = append(j.errs, err)
	j.mu.Unlock()
	j.report(err)
}

// notBuilt reports a build that failed: what is installed of its package stays.
func (j *job) notBuilt(to target, err error) {
	j.mu.Lock()
	j.failed[to] = err
	j.mu.Unlock()
	j.fail(err)
}

func (j *job) hasFailed(to target) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failed[to] != nil
}

// outcome is the error of the whole command.
func (j *job) outcome() error {
	if len(j.errs) == 0 {
		return nil
	}
	return partly{failed: len(j.errs), of: max(j.tried, len(j.errs)), err: j.errs[len(j.errs)-1]}
}

// plans returns the planner of the command, which knows what the registry has kept of files.
func (j *job) plans() *build.Planner {
	j.planning.Do(func() {
		j.planner.FileFact = func(path, what string, ask func(string) (string, error)) (string, error) {
			return j.reg.FileFact(path, what, ask) // repair opens another one
		}
	})
	return &j.planner
}

// plan decides what is to be done for each source and kernel.
func (j *job) plan(choices []choice) ([]build.Step, error) {
	var steps []build.Step
	for _, c := range choices {
		steps = slices.Grow(steps, len(c.kernels))
		m, unfit := manifestOf(c.Source)
		if c.Digest == "" {
			unfit = &registry.NotFoundError{Name: c.Name, Version: c.Version}
		}
		for _, k := range c.kernels {
			step, err := j.step(c.Source, m, unfit, k)
			if err != nil {
				return nil, err
			}
			steps = append(steps, step)
		}
	}
	return steps, nil
}

// step decides what is to be done for a source, of which m is the manifest or unfit tells why there
// is none, and a kernel.
func (j *job) step(src registry.Source, m *build.Manifest, unfit error, k kernel.Release) (build.Step, error) {
	step := build.Step{Package: src.Name, Version: src.Version, Release: k.Name}
	art, ok, err := j.artifact(src, k.Name)
	if err != nil {
		return step, err
	}
	p, _ := j.pins.For(src.Name, k.Name)
	switch {
	case ok && p.Artifact == art.Digest:
		step.Action, step.Reason, step.InputHash = build.ActionCurrent, pinnedBuild, art.InputHash
		return step, nil
	case unfit != nil: // a newer kmodctl may have added it
		step.Action, step.Reason, step.Err = build.ActionFail, unfit.Error(), unfit
		return step, nil
	}
	return j.decide(src, m, k, build.Made{Hash: art.InputHash, Inputs: func() ([]build.Input, error) {
		whole, _, err := j.reg.ArtifactByDigest(art.Digest)
		return buildInputs(whole.Inputs), err
	}})
}

// decide is the step of a source, of which m is the manifest, beside what was made of it.
func (j *job) decide(src registry.Source, m *build.Manifest, k kernel.Release, made build.Made) (build.Step, error) {
	needs, lack, err := j.needs(m, k)
	if err != nil {
		return build.Step{}, err
	}
	step := j.plans().Decide(m, src.Digest, k, needs, made)
	if lack != nil && step.Action != build.ActionSkip {
		step.Action, step.Reason, step.Err = build.ActionFail, lack.Error(), lack
		if lack.skip {
			step.Action, step.Err = build.ActionSkip, nil
		}
	}
	return step, nil
}

// manifestOf reads the manifest of a source as the registry has it.
func manifestOf(src registry.Source) (*build.Manifest, error) {
	return build.ParseManifest(src.Name+"@"+src.Version+"/"+build.ManifestFile, []byte(src.Manifest))
}

// pinnedBuild is the reason of a step that a pin of one artifact makes needless.
const pinnedBuild = "pinned to this build"

func buildInputs(in []registry.Input) (out []build.Input) {
	for _, i := range in {
		out = append(out, build.Input(i))
	}
	return out
}

// buildAll runs the steps that have to be built, as many at once as the machine has room
// for, the longest first, and goes on when one fails. As soon as a kernel has all of
// its own, place is called for it; an error of place ends nothing else.
func (j *job) buildAll(ctx context.Context, choices []choice, steps []build.Step, kernels []kernel.Release, place func(kernel.Release) error) error {
	todo := j.due(steps)
	var errs []error
	last := func(k kernel.Release) func() {
		return func() {
			if err := place(k); err != nil {
				j.mu.Lock()
				defer j.mu.Unlock()
				errs = append(errs, err)
			}
		}
	}
	if len(todo) == 0 {
		for _, k := range kernels {
			last(k)()
		}
		return errors.Join(errs...)
	}
	end, err := j.openJobs(j.reg)
	if err != nil {
		return err
	}
	defer end()
	expected, err := j.expected(todo)
	if err != nil {
		return err
	}
	rows := j.err.plan(titles(todo), expected, j.jobs.Tokens())
	var tasks []build.Task
	of := map[string][]int{} // the builds for a kernel
	for i, s := range todo {
		src := sourceOf(choices, s)
		seconds := expected[i].Seconds()
		if seconds == 0 {
			seconds = j.guess(src)
		}
		of[s.Release] = append(of[s.Release], i)
		tasks = append(tasks, build.Task{Seconds: seconds, After: neededBy(s, todo), Run: func() { j.buildStep(ctx, src, s, rows[i]) }})
	}
	for _, k := range kernels {
		tasks = append(tasks, build.Task{After: of[k.Name], Run: last(k)})
	}
	if err := j.jobs.Schedule(ctx, tasks); err != nil {
		return err
	}
	return errors.Join(errs...)
}

// due are the steps that have to be built; of those that cannot be, and in a dry run
// of all, it tells.
func (j *job) due(steps []build.Step) (todo []build.Step) {
	j.willBe = map[target]bool{}
	for _, s := range steps {
		to := target{s.Package, s.Release}
		switch {
		case s.Action == build.ActionBuild && j.dryRun:
			j.willBe[to] = true
			j.would("build %s %s for %s: %s", s.Package, s.Version, s.Release, s.Reason)
		case s.Action == build.ActionBuild:
			todo = append(todo, s)
		case s.Action == build.ActionFail:
			j.begun()
			j.notBuilt(to, fmt.Errorf("build %s for %s: %w", s.Package, s.Release, s.Err))
		}
	}
	return todo
}

// openJobs makes the jobserver of the builds to come, in a work folder; end takes it away.
func (j *job) openJobs(in *registry.Registry) (end func(), err error) {
	dir, done, err := in.NewWork("jobs")
	if err != nil {
		return nil, err
	}
	if j.jobs, err = build.NewJobserver(dir, build.Parallel()); err != nil {
		done()
		return nil, err
	}
	return func() {
		j.jobs.Close()
		done()
	}, nil
}

// expected is how long each build takes by what the last one of its package took, for
// the same kernel if there was one; 0 where there was none.
func (j *job) expected(todo []build.Step) ([]time.Duration, error) {
	builds, err := j.reg.Builds()
	if err != nil {
		return nil, err
	}
	last := map[target]float64{}
	for _, b := range builds {
		last[target{b.Package, b.Release}], last[target{pkg: b.Package}] = b.Seconds, b.Seconds
	}
	out := make([]time.Duration, len(todo))
	for i, s := range todo {
		seconds, ok := last[target{s.Package, s.Release}]
		if !ok {
			seconds = last[target{pkg: s.Package}]
		}
		out[i] = time.Duration(seconds * float64(time.Second))
	}
	return out, nil
}

// guess orders packages that were never built, by the size of their sources: seconds, of a sort.
func (j *job) guess(src registry.Source) float64 {
	info, err := os.Stat(j.reg.BlobPath(src.Digest))
	if err != nil {
		return 0
	}
	return float64(info.Size()) / (100 << 10)
}

func titles(steps []build.Step) (texts []string) {
	for _, s := range steps {
		texts = append(texts, fmt.Sprintf("build %s %s for %s", s.Package, s.Version, s.Release))
	}
	return texts
}

func sourceOf(choices []choice, s build.Step) registry.Source {
	i := slices.IndexFunc(choices, func(c choice) bool { return c.Name == s.Package && c.Version == s.Version })
	return choices[i].Source
}

// buildStep builds one package for one kernel, and tells how that went.
func (j *job) buildStep(ctx context.Context, src registry.Source, s build.Step, shown *row) {
	j.begun()
	w := &follower{j: j, step: s, shown: shown}
	w.begin()
	err := j.buildOne(ctx, src, s, w.at)
	switch {
	case ctx.Err() != nil:
		w.end("interrupted", nil)
	case err != nil:
		w.end("failed", err)
		j.notBuilt(target{s.Package, s.Release}, err)
	default:
		w.end("built", nil)
		text := fmt.Sprintf("built %s %s for %s in %.1f s", s.Package, s.Version, s.Release, time.Since(w.begun).Seconds())
		if s.Toolchain.Note != "" {
			text = "note: " + s.Toolchain.Note + "\n" + text
		}
		j.say("%s", text)
		if j.timings {
			j.say("  %s", w.timings())
		}
	}
}

// buildAlone builds one package for one kernel, while nothing else is built.
func (j *job) buildAlone(ctx context.Context, src registry.Source, s build.Step) (err error) {
	end, err := j.openJobs(j.reg)
	if err != nil {
		return err
	}
	defer end()
	shown := j.err.plan(titles([]build.Step{s}), make([]time.Duration, 1), 1)[0]
	shown.begin()
	defer shown.end()
	var failed error
	err = j.jobs.Schedule(ctx, []build.Task{{Run: func() {
		failed = j.buildOne(ctx, src, s, func(step, _ string) { shown.at(step) })
	}}})
	return errors.Join(failed, err)
}

// buildOne builds one package for one kernel and puts the artifact into the
// registry. The attempt and its log are kept, however it ends.
func (j *job) buildOne(ctx context.Context, src registry.Source, s build.Step, at func(step, what string)) (err error) {
	work, done, err := j.reg.NewWork(s.Package)
	if err != nil {
		return err
	}
	defer done()
	log, err := os.OpenFile(filepath.Join(work, "log"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	attempt, err := j.reg.BeginAttempt(registry.Attempt{
		Op: registry.OpBuild, Package: s.Package, Version: s.Version, Release: s.Release,
		Started: time.Now(), InputHash: s.InputHash, Inputs: registryInputs(s.Inputs),
	})
	if err != nil {
		return err
	}
	defer func() {
		attempt.Outcome = registry.OutcomeOK
		if err != nil {
			attempt.Outcome, attempt.Error, attempt.Class = registry.OutcomeFailed, err.Error(), string(build.ClassOf(err))
			if ctx.Err() != nil {
				attempt.Outcome = registry.OutcomeInterrupted
			}
		}
		attempt.Seconds = time.Since(attempt.Started).Seconds()
		err = errors.Join(err, j.reg.FinishAttempt(attempt))
	}()

	made, err := j.produce(ctx, src, s, work, log, at)
	digest, logErr := j.keepLog(context.WithoutCancel(ctx), log)
	attempt.Log = digest
	if err != nil {
		return errors.Join(j.explained(err, s), logErr)
	}
	if logErr != nil {
		return logErr
	}
	if made.isolation.Level() != build.LevelStrict {
		j.weaker.Do(func() { j.say("note: isolation: %s", made.isolation) })
	}
	at("store", "")
	art, err := j.reg.PutArtifact(ctx, registry.Artifact{
		Package: s.Package, Version: s.Version, Release: s.Release,
		InputHash: s.InputHash, Inputs: registryInputs(s.Inputs), Modules: made.modules, Log: digest, Headers: j.headers,
		Compiler: s.Toolchain.Identity, Isolation: made.isolation.Level(), Built: attempt.Started, Seconds: time.Since(attempt.Started).Seconds(),
	}, made.files)
	if err != nil {
		return err
	}
	attempt.Artifact = art.Digest
	j.made(art)
	return nil
}

// product is what a build has made.
type product struct {
	modules   []registry.Module
	files     map[string]string // by the name of each module: its .ko, where the build user cannot change it
	isolation build.Isolation
}

// produce builds a step from the registry's copy of its source, inside work, a folder
// for this alone.
func (j *job) produce(ctx context.Context, src registry.Source, s build.Step, work string, log io.Writer, at func(step, what string)) (p product, err error) {
	at("copy", "")
	source := filepath.Join(work, "source")
	if err := os.Mkdir(source, 0o755); err != nil {
		return p, err
	}
	if j.kept {
		defer j.keepFolder(source, s)
	}
	if err := j.reg.Extract(src, source); err != nil {
		return p, err
	}
	symvers, err := j.writeSymvers(source, s)
	if err != nil {
		return p, fmt.Errorf("build %s for %s: %w", s.Package, s.Release, err)
	}
	built, isolation, err := build.Run(ctx, build.Job{
		Manifest: s.Manifest, Kernel: s.Kernel, Root: s.Kernel.Root, Source: source, Symvers: symvers,
		Toolchain: s.Toolchain, Log: log, Jobserver: j.jobs, At: at, TimeLimit: j.timeLimit,
	})
	if err != nil {
		return p, err
	}
	at("take", "")
	p = product{files: map[string]string{}, isolation: isolation}
	for _, b := range built {
		m, file, err := take(source, b, work)
		if err != nil {
			return p, err
		}
		p.modules = append(p.modules, m)
		p.files[m.Name] = file
	}
	return p, nil
}

func registryInputs(in []build.Input) (out []registry.Input) {
	for _, i := range in {
		out = append(out, registry.Input(i))
	}
	return out
}

func (j *job) keepLog(ctx context.Context, log *os.File) (string, error) {
	if _, err := log.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	digest, _, err := j.reg.PutBlob(ctx, log)
	return digest, err
}

// take copies a built .ko out of the source's folder, where the build user could
// change it under us, and reads what the registry keeps of it from that copy.
func take(source string, b build.Built, work string) (m registry.Module, file string, err error) {
	name, err := filepath.Rel(source, b.File)
	if err != nil {
		return m, "", err
	}
	file = filepath.Join(work, b.Name+".ko")
	if err := registry.TakeFile(source, name, file); err != nil {
		return m, "", err
	}
	info, err := ko.Open(file)
	if err != nil {
		return m, "", err
	}
	m = moduleFacts(info)
	m.File = filepath.Base(b.File)
	return m, file, nil
}

// moduleFacts is what the registry keeps of what a .ko says of itself.
func moduleFacts(info *ko.Info) registry.Module {
	return registry.Module{
		Name: info.Name, BuildID: info.BuildID, Vermagic: info.Vermagic,
		SrcVersion: info.SrcVersion, Version: info.Version, Depends: info.Depends,
	}
}

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
			if ok && !j.hasFailed(to) && (damaged[to] || j.willBe[to] || !j.inPlace(art, placed[to])) {
				due = append(due, art)
			}
		}
		return j.installFor(ctx, k, j.withholdSome(k, due, installs, thorough))
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
		}
		return nil
	}
	for len(due) > 0 {
		end := j.err.show("install for " + k.Name)
		res, err := j.reg.Install(ctx, k.Name, due)
		end()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			if len(res.Changes) > 0 || res.Depmod {
				j.begun()
				for _, art := range due {
					j.installed(art, "installed", "")
					j.changed("installed %s %s for %s%s", art.Package, art.Version, k.Name, originals(res, art.Package, "shadows"))
				}
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

// installed notes how an install went.
func (j *job) installed(art registry.Artifact, outcome, why string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.installs = append(j.installs, installStep{art.Package, art.Version, art.Release, outcome, why})
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
// reads the files too.
func (j *job) inPlace(art registry.Artifact, rows []registry.Install) bool {
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
		index, err := os.Stat(filepath.Join(dir, "../../modules.dep"))
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
