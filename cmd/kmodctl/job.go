package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/registry"
)

// job carries packages through build -> registry -> install. It is the only
// place that knows all three, and passes plain values between them.
type job struct {
	*env
	reg   *registry.Registry
	errs  []error         // of the steps that failed: each has been reported
	stale map[string]bool // package and release whose build failed: what is installed stays
	done  int             // steps that changed something

	folders map[string]string // folders inside the root: their host paths
}

// fail reports a step that failed and lets the others go on.
func (j *job) fail(err error) {
	j.errs = append(j.errs, err)
	j.report(err)
}

// outcome is the error of the whole command, of steps that were n in number.
func (j *job) outcome(n int) error {
	if len(j.errs) == 0 {
		return nil
	}
	return partly{failed: len(j.errs), of: max(n, len(j.errs)), err: j.errs[len(j.errs)-1]}
}

// tool is a compiler's version line, from the registry's cache while the file is
// the same: a command that has nothing to do starts no process.
func (j *job) tool(path string) (string, error) {
	if identity, ok, err := j.reg.Tool(path); err != nil || ok {
		return identity, err
	}
	identity, err := build.ToolIdentity(path)
	if err != nil {
		return "", err
	}
	if err := j.reg.PutTool(path, identity); err != nil && !errors.Is(err, registry.ErrReadOnly) {
		return "", err
	}
	return identity, nil
}

// plan decides what is to be done for each source and kernel.
func (j *job) plan(sources []registry.Source, kernels []kernel.Release) ([]build.Step, error) {
	var steps []build.Step
	for _, src := range sources {
		m, err := build.ParseManifest(src.Name+"@"+src.Version+"/"+build.ManifestFile, []byte(src.Manifest))
		if err != nil {
			return nil, err
		}
		for _, k := range kernels {
			var built []build.Input
			art, ok, err := j.reg.Artifact(src.Name, src.Version, k.Name)
			if err != nil {
				return nil, err
			}
			if ok {
				built = buildInputs(art.Inputs)
			}
			step, err := build.Decide(m, src.Digest, k, built, j.tool)
			if err != nil {
				return nil, fmt.Errorf("plan %s for %s: %w", src.Name, k.Name, err)
			}
			steps = append(steps, step)
		}
	}
	return steps, nil
}

func buildInputs(in []registry.Input) (out []build.Input) {
	for _, i := range in {
		out = append(out, build.Input(i))
	}
	return out
}

// buildAll runs the steps that have to be built, one after the other, and goes on
// when one fails.
func (j *job) buildAll(ctx context.Context, sources []registry.Source, steps []build.Step) error {
	byName := map[string]registry.Source{}
	for _, s := range sources {
		byName[s.Name+"@"+s.Version] = s
	}
	var todo []build.Step
	for _, s := range steps {
		if s.Action == build.ActionBuild {
			todo = append(todo, s)
		}
	}
	show := j.progress(len(todo))
	for _, s := range todo {
		start := time.Now()
		end := show.step(fmt.Sprintf("build %s %s for %s", s.Package, s.Version, s.Release))
		err := j.buildOne(ctx, byName[s.Package+"@"+s.Version], s)
		end()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			j.fail(err)
			j.stale[s.Package+" "+s.Release] = true
			continue
		}
		j.done++
		if s.Toolchain.Note != "" {
			j.say("note: %s", s.Toolchain.Note)
		}
		j.changed("built %s %s for %s in %.1f s", s.Package, s.Version, s.Release, time.Since(start).Seconds())
	}
	return nil
}

// buildOne builds one package for one kernel and puts the artifact into the
// registry. The attempt and its log are kept, however it ends.
func (j *job) buildOne(ctx context.Context, src registry.Source, s build.Step) (err error) {
	work, done, err := j.reg.NewWork(s.Package)
	if err != nil {
		return err
	}
	defer done()
	attempt, err := j.reg.BeginAttempt(registry.Attempt{
		Op: "build", Package: s.Package, Version: s.Version, Release: s.Release,
		Started: time.Now(), InputHash: s.InputHash,
	})
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(work, "log"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	defer func() {
		attempt.Outcome = "ok"
		if err != nil {
			attempt.Outcome, attempt.Error = "failed", err.Error()
			if ctx.Err() != nil {
				attempt.Outcome = "interrupted"
			}
		}
		attempt.Seconds = time.Since(attempt.Started).Seconds()
		err = errors.Join(err, j.reg.FinishAttempt(attempt))
	}()

	source := filepath.Join(work, "source")
	if err := os.Mkdir(source, 0o755); err != nil {
		return err
	}
	if err := j.reg.Extract(src, source); err != nil {
		return err
	}
	built, err := build.Run(ctx, build.Job{
		Manifest: s.Manifest, Kernel: s.Kernel, Root: j.root, Source: source,
		Toolchain: s.Toolchain, Log: log, Jobs: runtime.NumCPU(),
	})
	digest, logErr := j.keepLog(context.WithoutCancel(ctx), log)
	attempt.Log = digest
	if err != nil {
		return errors.Join(err, logErr)
	}
	if logErr != nil {
		return logErr
	}
	art := registry.Artifact{
		Package: s.Package, Version: s.Version, Release: s.Release,
		InputHash: s.InputHash, Inputs: registryInputs(s.Inputs), Log: digest,
		Compiler: s.Toolchain.Identity, Built: attempt.Started, Seconds: time.Since(attempt.Started).Seconds(),
	}
	files := map[string]string{}
	for _, b := range built {
		m, err := facts(b)
		if err != nil {
			return err
		}
		art.Modules = append(art.Modules, m)
		files[m.Name] = b.File
	}
	_, err = j.reg.PutArtifact(ctx, art, files)
	return err
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

// facts is what the registry keeps of a built .ko.
func facts(b build.Built) (registry.Module, error) {
	info, err := ko.Open(b.File)
	if err != nil {
		return registry.Module{}, err
	}
	return registry.Module{
		Name: info.Name, File: filepath.Base(b.File), BuildID: info.BuildID, Vermagic: info.Vermagic,
		SrcVersion: info.SrcVersion, Version: info.Version, Depends: info.Depends,
	}, nil
}

// installAll installs the newest artifact of each source for each kernel: one
// module index update per kernel, and none where all is in place.
func (j *job) installAll(ctx context.Context, sources []registry.Source, kernels []kernel.Release) error {
	installs, err := j.reg.Installs()
	if err != nil {
		return err
	}
	for _, k := range kernels {
		var due []registry.Artifact
		for _, src := range sources {
			art, ok, err := j.reg.Artifact(src.Name, src.Version, k.Name)
			if err != nil {
				return err
			}
			if ok && !j.stale[src.Name+" "+k.Name] && !j.inPlace(art, installs) {
				due = append(due, art)
			}
		}
		if len(due) == 0 {
			continue
		}
		if k.Modules == "" { // its headers came first: the kernel's own hook will install
			if j.done > 0 || j.verbose {
				j.say("%s is not installed yet, only its headers: %s kept in the registry", k.Name, strings.Join(names(due), ", "))
			}
			continue
		}
		if why := j.cannotInstall(); why != "" {
			for _, art := range due {
				for _, m := range art.Modules {
					j.changed("%s %s for %s: %s: %s", art.Package, art.Version, k.Name, why, j.reg.BlobPath(m.Digest))
				}
			}
			continue
		}
		end := j.progress(1).step("install for " + k.Name)
		res, err := j.reg.Install(ctx, k.Name, due)
		end()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			j.fail(err)
			continue
		}
		if len(res.Changes) > 0 {
			j.done++
			j.changed("installed %s for %s", strings.Join(names(due), ", "), k.Name)
		}
	}
	return nil
}

func names(as []registry.Artifact) (out []string) {
	for _, a := range as {
		out = append(out, a.Package+" "+a.Version)
	}
	return out
}

// cannotInstall says why this user's artifacts stay in the registry, "" when they
// can be installed.
func (j *job) cannotInstall() string {
	if os.Getuid() != 0 && j.root.IsHost() {
		return "not installed, which needs root (sudo kmodctl build DIR)"
	}
	return ""
}

// inPlace reports whether what is installed is art, as far as a look at the rows
// and the files' sizes can tell; status reads the files too.
func (j *job) inPlace(art registry.Artifact, installs []registry.Install) bool {
	in := map[string]registry.Install{}
	for _, i := range installs {
		if i.Release == art.Release && i.Package == art.Package {
			in[i.Module] = i
		}
	}
	if len(in) != len(art.Modules) {
		return false
	}
	for _, m := range art.Modules {
		i, ok := in[m.Name]
		if !ok || i.Artifact != art.Digest {
			return false
		}
		if info, err := os.Lstat(filepath.Join(j.folder(filepath.Dir(i.Path)), filepath.Base(i.Path))); err != nil || info.Size() != i.Size {
			return false
		}
	}
	return true
}

// folder resolves a folder inside the root, once: packages share a few.
func (j *job) folder(name string) string {
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
