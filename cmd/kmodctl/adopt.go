package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"kmodctl/build"
	"kmodctl/internal/dkms"
	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/registry"
)

func cmdAdopt(e *env) *cli.Command {
	return &cli.Command{
		Name:  "adopt",
		Usage: "take over what DKMS has added, built and installed",
		Description: examples("Reads /var/lib/dkms and makes it the registry's: sources are copied, built modules become artifacts, and those\n"+
			"that are installed stay where they are. Nothing is built: what fits its kernel (vermagic, and the CRC of every\n"+
			"symbol where there are headers) counts as built from today's inputs, anything else as due for the next build.\n"+
			"Modules of the kernel that DKMS had put aside go back to their places, where ours shadow them. The command dkms\n"+
			"does this by itself, before it changes anything.",
			"kmodctl adopt --dry-run", "kmodctl adopt"),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			reg, err := e.open(c.Context, "adopt")
			if err != nil {
				return err
			}
			defer e.close(reg)
			a := &adoption{job: &job{env: e, reg: reg, failed: map[target]error{}}}
			if err := a.all(c.Context); err != nil {
				return err
			}
			if e.json {
				if err := e.document("adopt", map[string]any{"dry_run": e.dryRun, "adopted": orEmpty(a.done)}); err != nil {
					return err
				}
			} else if a.tried == 0 && !e.dryRun {
				e.say("nothing to do: DKMS has nothing that is not known")
			}
			for _, m := range a.broken {
				e.changed("note: %s is left as it is: its source in %s, or the link to it, is gone", m, dkmsSources)
			}
			return a.outcome()
		},
	}
}

// adoption takes over what is in the tree of DKMS.
type adoption struct {
	*job
	done   []adopted
	broken []string // modules without a source
}

// adopted is what was taken over: a source, or with Release a build of it.
type adopted struct {
	Name      string `json:"name"`
	Version   string `json:"version"`
	Release   string `json:"release,omitempty"`
	Installed bool   `json:"installed,omitempty"`
	Why       string `json:"why,omitempty"` // it will be built anew all the same
}

// dkmsRelease is how the name of a kernel begins in the tree of DKMS.
var dkmsRelease = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9]+\.`) })

// dkmsOnDisk are the modules in the tree of DKMS, judged as DKMS judges them: of a tree, nothing else tells what was
// done. It changes nothing and reads no dkms.conf.
func (e *env) dkmsOnDisk() (out []dkmsModule, err error) {
	folders := func(name string) (names []string) {
		entries, readErr := e.root.ReadDir(name)
		if readErr != nil && !errors.Is(readErr, fs.ErrNotExist) {
			err = readErr
		}
		for _, d := range entries {
			if d.IsDir() {
				names = append(names, d.Name())
			}
		}
		return names
	}
	for _, name := range folders(dkmsTreePath) {
		for _, version := range folders(path.Join(dkmsTreePath, name)) {
			m := dkmsModule{name: name, version: version}
			at := path.Join(dkmsTreePath, name, version)
			link, source := e.sourceOf(m)
			beside, besideErr := e.root.Path(path.Join(dkmsSources, name+"-"+version))
			switch {
			case link && source == "", !link && besideErr == nil && beside != "":
				m.broken = true
			case !link:
				continue
			}
			for _, release := range folders(at) {
				if !dkmsRelease().MatchString(release) {
					continue
				}
				for _, arch := range folders(path.Join(at, release)) {
					if _, err := e.root.Path(path.Join(at, release, arch, "module")); err != nil || arch[0] == '.' {
						continue
					}
					b := dkmsBuild{dkmsTarget: dkmsTarget{release, arch}}
					active, err := e.root.Path(path.Join(dkmsTreePath, name, "kernel-"+release+"-"+arch))
					b.installed = err == nil && e.root.Inside(active) == e.root.Inside(e.hostPath(path.Join(at, release, arch)))
					_, err = e.root.Path(path.Join(dkmsTreePath, name, "original_module", release, arch))
					b.originals = err == nil
					m.builds = append(m.builds, b)
				}
			}
			out = append(out, m)
		}
	}
	return out, err
}

// strays reports whether not all modules of a build of DKMS are installed as they were built. Where only a dkms.conf
// says where that would be, none does.
func (e *env) strays(m dkmsModule, b dkmsBuild) bool {
	place := dkms.DestLocation(e.root, "")
	built := path.Join(dkmsTreePath, m.name, m.version, b.release, b.arch, "module")
	entries, err := e.root.ReadDir(built)
	return place != "" && err == nil && slices.ContainsFunc(entries, func(d fs.DirEntry) bool {
		if !strings.Contains(d.Name(), ".ko") {
			return false // Module.symvers
		}
		want, err := e.root.ReadFile(path.Join(built, d.Name()))
		if err != nil {
			return true
		}
		have, err := e.root.ReadFile(path.Join("/lib/modules", b.release, place, d.Name()))
		return err != nil || !bytes.Equal(have, want)
	})
}

// sourceOf says whether a module has the link of DKMS to its source, and where that leads: "" where nothing is.
func (e *env) sourceOf(m dkmsModule) (link bool, dir string) {
	name := path.Join(dkmsTreePath, m.name, m.version, "source")
	parent := e.hostPath(path.Dir(name))
	if info, err := os.Lstat(filepath.Join(parent, "source")); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		return false, ""
	}
	return true, e.hostPath(name)
}

// hostPath is where this process finds a file inside the root, "" where there is none.
func (e *env) hostPath(name string) string {
	host, err := e.root.Path(name)
	if err != nil {
		return ""
	}
	return host
}

// unknownOf are the modules on the disk that known does not have, and the builds; done reports whether one that it has
// needs no further look.
func unknownOf(disk, known []dkmsModule, done func(m dkmsModule, b dkmsBuild) bool) (out []dkmsModule) {
	for _, m := range disk {
		i := slices.IndexFunc(known, func(k dkmsModule) bool { return k.name == m.name && k.version == m.version })
		if i < 0 {
			out = append(out, m)
			continue
		}
		m.builds = slices.DeleteFunc(m.builds, func(b dkmsBuild) bool {
			return slices.ContainsFunc(known[i].builds, func(k dkmsBuild) bool { return k.release == b.release }) && done(m, b)
		})
		if m.broken = false; len(m.builds) > 0 {
			out = append(out, m)
		}
	}
	return out
}

// all takes over everything that the registry does not have.
func (a *adoption) all(ctx context.Context) error {
	disk, err := a.dkmsOnDisk()
	if err != nil || len(disk) == 0 {
		return err
	}
	known, err := a.dkmsKnown(a.reg)
	if err != nil {
		return err
	}
	view, err := a.openView()
	if err != nil || view == nil {
		return err
	}
	defer view.tree.Close()
	// A build that we have not put there is DKMS's: one that was killed may have taken over only part of it.
	ours := func(m dkmsModule, b dkmsBuild) bool {
		at := path.Join(m.name, m.version, b.release, b.arch, "module") + "/"
		return slices.ContainsFunc(slices.Collect(maps.Keys(view.made)), func(name string) bool { return strings.HasPrefix(name, at) })
	}
	for _, m := range unknownOf(disk, known, ours) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if m.broken {
			a.broken = append(a.broken, m.name+"/"+m.version)
			continue
		}
		a.begun()
		if err := a.module(ctx, m); err != nil {
			a.fail(fmt.Errorf("adopt %s/%s: %w", m.name, m.version, err))
		}
	}
	return nil
}

// module takes over a version of a module and its builds.
func (a *adoption) module(ctx context.Context, m dkmsModule) error {
	_, dir := a.sourceOf(m)
	src, err := a.source(ctx, m, dir)
	if err != nil {
		return err
	}
	// One that cannot be read tells nothing of places; what was built is there all the same, and the next build tells why not.
	conf, _ := dkms.Evaluate(ctx, dkms.Source{Dir: dir, Text: []byte(src.Manifest), Name: m.name, Version: m.version}, kernel.Release{Root: a.root})
	var errs []error
	for _, b := range m.builds {
		if a.dryRun {
			a.tell(m, b, "")
			continue
		}
		if err := a.build(ctx, src, conf, b); err != nil {
			errs = append(errs, fmt.Errorf("for %s: %w", b.release, err))
		}
	}
	return errors.Join(errs...)
}

// source is the registry's copy of a module's source, made if need be.
func (a *adoption) source(ctx context.Context, m dkmsModule, dir string) (registry.Source, error) {
	src, err := a.reg.Source(m.name, m.version)
	var absent *registry.NotFoundError
	if !errors.As(err, &absent) {
		return src, err
	}
	text, err := os.ReadFile(filepath.Join(dir, dkms.ConfFile))
	if err != nil {
		return src, err
	}
	if a.dryRun {
		a.would("adopt %s %s from %s", m.name, m.version, dir)
		src = registry.Source{Name: m.name, Version: m.version, Manifest: string(text)}
	} else if src, _, err = a.reg.AddSource(ctx, dir, m.name, m.version, string(text)); err == nil {
		a.changed("adopted %s %s from %s", m.name, m.version, dir)
	}
	a.done = append(a.done, adopted{Name: m.name, Version: m.version})
	return src, err
}

// tell says that a build was taken over, or would be.
func (a *adoption) tell(m dkmsModule, b dkmsBuild, why string) {
	state := "built"
	if b.installed {
		state = "installed"
	}
	line, args := "%s %s for %s, which is %s", []any{m.name, m.version, b.release, state}
	if a.dryRun {
		a.would("adopt "+line, args...)
	} else {
		a.changed("adopted "+line, args...)
	}
	if why != "" {
		a.changed("note: %s %s for %s will be built anew: %s", m.name, m.version, b.release, why)
	}
	a.done = append(a.done, adopted{m.name, m.version, b.release, b.installed, why})
}

// build makes an artifact of what DKMS has built for a kernel, and rows of what is installed of it.
func (a *adoption) build(ctx context.Context, src registry.Source, conf dkms.Conf, b dkmsBuild) error {
	at := path.Join(dkmsTreePath, src.Name, src.Version, b.release, b.arch)
	work, done, err := a.reg.NewWork("adopt")
	if err != nil {
		return err
	}
	defer done()
	found, err := a.modules(path.Join(at, "module"), work)
	if err != nil {
		return err
	}
	art, why, err := a.artifact(ctx, src, b, found, conf)
	if err != nil {
		return err
	}
	if art.Digest == "" {
		if art, err = a.keep(ctx, art, at, found); err != nil {
			return err
		}
	}
	var back []registry.Original
	if b.installed {
		if back, err = a.installed(ctx, conf, art, b, found); err != nil {
			return err
		}
	}
	a.tell(dkmsModule{name: src.Name, version: src.Version}, b, why)
	return a.clear(src, b, back)
}

// keep stores an artifact with its log and its modules.
func (a *adoption) keep(ctx context.Context, art registry.Artifact, at string, found []foundModule) (_ registry.Artifact, err error) {
	if text, err := a.root.ReadFile(path.Join(at, "log", "make.log")); err == nil {
		head := fmt.Sprintf("%s %s for %s, built by DKMS\n", art.Package, art.Version, art.Release) // a log begins with the name: docs/registry-format.md
		if art.Log, _, err = a.reg.PutBlob(ctx, bytes.NewReader(append([]byte(head), text...))); err != nil {
			return art, err
		}
	}
	files := map[string]string{}
	for _, f := range found {
		files[f.Name] = f.plain
	}
	return a.reg.PutArtifact(ctx, art, files)
}

// foundModule is a module as DKMS keeps it.
type foundModule struct {
	registry.Module
	plain string // its file without compression
	file  string // the name that it is kept by, and installed
	sum   string // SHA-256 in hex of that file
	info  *ko.Info
}

// modules reads the modules of a folder inside the root, and writes them to work without compression. A signature
// stays: they are installed as they are.
func (a *adoption) modules(dir, work string) (out []foundModule, err error) {
	entries, err := a.root.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, d := range entries {
		stem, ending, ok := strings.Cut(d.Name(), ".ko")
		if !ok || ending != "" && ending != ".gz" && ending != ".xz" && ending != ".zst" {
			continue // Module.symvers
		}
		data, err := a.root.ReadFile(path.Join(dir, d.Name()))
		if err != nil {
			return nil, err
		}
		f := foundModule{file: d.Name(), plain: filepath.Join(work, stem+".ko"), sum: sha256Of(data)}
		plain, _, err := ko.Decompress(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.Name(), err)
		}
		if f.info, err = ko.Read(plain); err != nil {
			return nil, fmt.Errorf("%s: %w", d.Name(), err)
		}
		if err := os.WriteFile(f.plain, plain, 0o600); err != nil {
			return nil, err
		}
		f.Module = moduleFacts(f.info)
		f.File, f.Digest = stem+".ko", sha256Of(plain)
		out = append(out, f)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no module", dir)
	}
	return out, nil
}

// artifact is what the registry keeps of a build of DKMS. One that fits its kernel counts as built from
// today's inputs, since DKMS wrote down none; why says what speaks against that. One that is stored already has a Digest.
func (a *adoption) artifact(ctx context.Context, src registry.Source, b dkmsBuild, found []foundModule, conf dkms.Conf) (art registry.Artifact, why string, err error) {
	art = registry.Artifact{Package: src.Name, Version: src.Version, Release: b.release}
	for _, f := range found {
		f.Place = strings.Trim(a.places(conf, f)[0], "/")
		art.Modules = append(art.Modules, f.Module)
	}
	stored, ok, err := a.reg.Artifact(src.Name, src.Version, b.release)
	other := func(m registry.Module) bool {
		return !slices.ContainsFunc(art.Modules, func(n registry.Module) bool { return n.Name == m.Name && n.Digest == m.Digest })
	}
	if err != nil || ok && len(stored.Modules) == len(art.Modules) && !slices.ContainsFunc(stored.Modules, other) {
		return stored, "", err
	}
	if info, err := os.Stat(a.hostPath(path.Join(dkmsTreePath, src.Name, src.Version, b.release, b.arch, "module"))); err == nil {
		art.Built = info.ModTime()
	}
	k, err := kernel.Get(a.root, b.release)
	var gone *kernel.NotFoundError
	if err != nil && !errors.As(err, &gone) {
		return art, "", err
	}
	if why = misfit(k, b, found); why == "" && k.Tree != nil {
		steps, err := a.plan([]choice{{src, []kernel.Release{k}}})
		if err != nil {
			return art, "", err
		}
		switch s := steps[0]; s.Action {
		case build.ActionBuild:
			art.InputHash, art.Inputs = s.InputHash, registryInputs(s.Inputs)
			return art, "", nil
		default:
			why = s.Reason
		}
	}
	art.Inputs = []registry.Input{{Name: "built by DKMS", Value: art.Built.UTC().String()}}
	art.InputHash = build.Hash(buildInputs(art.Inputs))
	return art, why, nil
}

// misfit says why modules are not for a kernel, "" when they are, or nothing tells.
func misfit(k kernel.Release, b dkmsBuild, found []foundModule) string {
	var symbols map[string]kernel.Symbol
	if k.Tree != nil {
		var err error
		if symbols, err = k.Tree.Symbols(); err != nil {
			return err.Error()
		}
	}
	for _, f := range found {
		if f.info.Release() != b.release {
			return fmt.Sprintf("%s was built for %s", f.File, f.info.Release())
		}
		for _, i := range f.info.Imports {
			if s, known := symbols[i.Name]; known && i.HasCRC && s.CRC != i.CRC {
				return fmt.Sprintf("%s has another CRC for %s than the kernel", f.File, i.Name)
			}
		}
	}
	return ""
}

// installed makes rows of the modules that are installed as DKMS has built them, and puts back those of the
// kernel that it had put aside for them, which it returns.
func (a *adoption) installed(ctx context.Context, conf dkms.Conf, art registry.Artifact, b dkmsBuild, found []foundModule) ([]registry.Original, error) {
	rows, err := a.reg.Installs(art.Package)
	if err != nil {
		return nil, err
	}
	rows = slices.DeleteFunc(rows, func(r registry.Install) bool { return r.Release != art.Release })
	taken := len(rows) > 0 // by an adoption that was killed
	for _, f := range found {
		if taken {
			break
		}
		for _, place := range a.places(conf, f) {
			file := path.Join("/lib/modules", b.release, place, f.file)
			if data, err := a.root.ReadFile(file); err == nil && sha256Of(data) == f.sum {
				row := registry.Install{Module: f.Name, Path: file, Digest: f.sum}
				if f.info.Signature != nil {
					row.Signer = registry.SignerUnknown
				}
				rows = append(rows, row)
				break
			}
		}
	}
	if len(rows) == 0 {
		a.changed("note: none of the modules of %s %s for %s is where DKMS had installed it", art.Package, art.Version, art.Release)
		return nil, nil
	}
	back, err := a.putBack(conf, art, b, rows)
	if err != nil || taken {
		return back, err
	}
	return back, a.reg.TakeOver(ctx, art, rows, back)
}

// places are where DKMS may have installed a module, below the release's folder: where it would today, or where its conf says.
func (a *adoption) places(conf dkms.Conf, f foundModule) []string {
	written := writtenPlace(conf, f.File)
	return []string{dkms.DestLocation(a.root, written), written}
}

// writtenPlace is DEST_MODULE_LOCATION of a module that is installed by the name file; "" when the conf has none of that name.
func writtenPlace(conf dkms.Conf, file string) string {
	i := slices.IndexFunc(conf.Modules, func(m dkms.Module) bool { return m.Dest+".ko" == file })
	if i < 0 {
		return ""
	}
	return conf.Modules[i].DestLocation
}

// putBack gives the kernel's modules that DKMS had put aside their places again: it noted them, or they are where its conf says.
func (a *adoption) putBack(conf dkms.Conf, art registry.Artifact, b dkmsBuild, rows []registry.Install) (out []registry.Original, err error) {
	aside := path.Join(dkmsTreePath, art.Package, "original_module", b.release, b.arch)
	entries, err := a.root.ReadDir(aside)
	if err != nil {
		return nil, ignoreGone(err)
	}
	for _, d := range entries {
		stem, ending, ok := strings.Cut(d.Name(), ".ko")
		if !ok || strings.HasSuffix(ending, ".origin") || !d.Type().IsRegular() {
			continue
		}
		to := path.Join("/lib/modules", b.release, writtenPlace(conf, stem+".ko"), d.Name())
		if text, err := a.root.ReadFile(path.Join(aside, d.Name()+".origin")); err == nil {
			to, _, _ = strings.Cut(string(text), "\n")
		}
		data, err := a.root.ReadFile(path.Join(aside, d.Name()))
		if err != nil {
			return nil, err
		}
		taken := slices.ContainsFunc(rows, func(r registry.Install) bool { return r.Path == to })
		put := false
		if !taken {
			if put, err = registry.PutBack(a.root, b.release, to, bytes.NewReader(data)); err != nil {
				return nil, err
			}
		}
		if there, err := a.root.ReadFile(to); taken || err != nil || !bytes.Equal(there, data) {
			a.changed("note: %s stays in %s: there is another one by now", to, aside)
			continue
		}
		if put {
			a.changed("put %s back, which DKMS had put aside", to)
		}
		out = append(out, registry.Original{Release: b.release, Module: ko.NormalizeName(stem), Path: to, Digest: sha256Of(data), Size: int64(len(data))})
	}
	return out, nil
}

// clear takes away what the registry has now, for the view to be made of that.
func (a *adoption) clear(src registry.Source, b dkmsBuild, back []registry.Original) error {
	tree, err := os.OpenRoot(a.hostPath(dkmsTreePath))
	if err != nil {
		return err
	}
	defer tree.Close()
	aside := path.Join(src.Name, "original_module", b.release, b.arch)
	for _, o := range back {
		for _, end := range []string{"", ".origin"} {
			if err := ignoreGone(tree.Remove(path.Join(aside, path.Base(o.Path)+end))); err != nil {
				return err
			}
		}
	}
	for dir := aside; dir != src.Name; dir = path.Dir(dir) {
		if tree.Remove(dir) != nil { // not empty, or not there
			break
		}
	}
	for _, dir := range []string{path.Join(src.Name, src.Version, b.release, b.arch), path.Join(src.Name, src.Version, "build")} {
		if err := tree.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

func sha256Of(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
