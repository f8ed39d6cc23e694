package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/registry"
)

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
		src := sourceOf(choices, s.Package, s.Version)
		seconds := expected[i].Seconds()
		if seconds == 0 {
			seconds = j.guess(src)
		}
		run := func() { j.buildStep(ctx, src, s, rows[i]) }
		if s.Action == build.ActionReuse {
			seconds, run = 0, func() { j.reuseStep(ctx, s) }
		}
		of[s.Release] = append(of[s.Release], i)
		tasks = append(tasks, build.Task{Seconds: seconds, After: neededBy(s, todo), Run: run})
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
			why := s.Reason
			if s.PassedOver != "" {
				why += "; not reused: " + s.PassedOver
			}
			j.would("build %s %s for %s: %s", s.Package, s.Version, s.Release, why)
		case s.Action == build.ActionReuse && j.dryRun:
			j.willBe[to] = true
			j.would("reuse %s %s for %s: %s, and the build for %s fits", s.Package, s.Version, s.Release, s.Reason, s.From)
		case s.Action == build.ActionBuild || s.Action == build.ActionReuse:
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
	var names []string
	for _, s := range todo {
		names = append(names, s.Package)
	}
	builds, err := j.reg.Builds(names...)
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

func sourceOf(choices []choice, pkg, version string) registry.Source {
	i := slices.IndexFunc(choices, func(c choice) bool { return c.Name == pkg && c.Version == version })
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
		text := fmt.Sprintf("built %s %s for %s in %.1f s", s.Package, s.Version, s.Release, w.seconds())
		if s.Toolchain.Note != "" {
			text = "note: " + s.Toolchain.Note + "\n" + text
		}
		j.say("%s", text)
		if j.options.timings {
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
	shown := j.err.begin(titles([]build.Step{s})[0])
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
	attempt, err := j.attempt(registry.OpBuild, s)
	if err != nil {
		return err
	}
	defer func() { err = j.finish(ctx, attempt, err) }()

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

// attempt records that a step is tried.
func (j *job) attempt(op string, s build.Step) (registry.Attempt, error) {
	return j.reg.BeginAttempt(registry.Attempt{
		Op: op, Package: s.Package, Version: s.Version, Release: s.Release,
		Started: time.Now(), InputHash: s.InputHash, Inputs: registryInputs(s.Inputs),
	})
}

// finish records how an attempt ended, with err or well, and returns its error.
func (j *job) finish(ctx context.Context, attempt registry.Attempt, err error) error {
	attempt.Outcome = registry.OutcomeOK
	if err != nil {
		attempt.Outcome, attempt.Error, attempt.Class = registry.OutcomeFailed, err.Error(), string(build.ClassOf(err))
		if ctx.Err() != nil {
			attempt.Outcome = registry.OutcomeInterrupted
		}
	}
	return errors.Join(err, j.reg.FinishAttempt(attempt))
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
	if j.options.keep {
		defer j.keepFolder(source, s)
	}
	if err := extract(j.reg, src, j.root, s.Manifest, source); err != nil {
		return p, err
	}
	symvers, err := j.writeSymvers(source, s)
	if err != nil {
		return p, fmt.Errorf("build %s for %s: %w", s.Package, s.Release, err)
	}
	pristine, err := pristine(j.reg, src, s.Manifest, work)
	if err != nil {
		return p, err
	}
	built, isolation, err := build.Run(ctx, build.Job{
		Manifest: s.Manifest, Kernel: s.Kernel, Source: source, Pristine: pristine, Symvers: symvers,
		Toolchain: s.Toolchain, Log: log, Jobserver: j.jobs, At: at, TimeLimit: j.options.limit(), Nice: j.options.nice,
	})
	if err != nil {
		return p, err
	}
	at("take", "")
	p = product{files: map[string]string{}, isolation: isolation}
	for _, b := range built {
		m, file, err := take(source, b, work)
		if err == nil {
			err = forKernel(m, s)
		}
		if err != nil {
			return p, err
		}
		p.modules = append(p.modules, m)
		p.files[m.Name] = file
	}
	return p, nil
}

// pristine is a second copy of a source below work, which a dkms.conf finds in /usr/src; "" for a kmod.toml.
func pristine(reg *registry.Registry, src registry.Source, m *build.Manifest, work string) (string, error) {
	if m.DKMS == nil {
		return "", nil
	}
	dir := filepath.Join(work, "pristine")
	return dir, errors.Join(os.Mkdir(dir, 0o755), reg.Extract(src, dir))
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
	m.File, m.Place = b.As, b.Place
	if b.Place != "" { // of a dkms.conf, which may rename a module
		m.Name = b.Name
	}
	return m, file, nil
}

// moduleFacts is what the registry keeps of what a .ko says of itself.
func moduleFacts(info *ko.Info) registry.Module {
	return registry.Module{
		Name: info.Name, BuildID: info.BuildID, Vermagic: info.Vermagic,
		SrcVersion: info.SrcVersion, Version: info.Version, Depends: info.Depends,
	}
}
