package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"kmodctl/build"
	"kmodctl/internal/dkms"
	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

// manifests returns what reads the manifest of a source for a kernel. A kmod.toml says the same for all of them. A dkms.conf
// is evaluated for each, by a child process; what it said is remembered as long as nothing that it depends on changes.
func (j *job) manifests(src registry.Source) func(kernel.Release) (*build.Manifest, error) {
	if hasConf(src) {
		return func(k kernel.Release) (*build.Manifest, error) { return j.confs.manifest(j, src, k) }
	}
	m, err := build.ParseManifest(src.Name+"@"+src.Version+"/"+build.ManifestFile, []byte(src.Manifest))
	return func(kernel.Release) (*build.Manifest, error) { return m, err }
}

// hasConf reports whether the manifest of a source is a dkms.conf.
func hasConf(src registry.Source) bool {
	at := func(name string) bool {
		return slices.ContainsFunc(src.Files, func(f registry.File) bool { return f.Path == name })
	}
	return at(dkms.ConfFile) && !at(build.ManifestFile)
}

// confs are the manifests that were made of dkms.confs in this command, and what every dkms.conf depends on.
type confs struct {
	mu    sync.Mutex
	known map[artifactKey]confManifest
	admin map[string]string // the administrator's files about packages: text by name
	frame string            // the administrator's settings of DKMS itself, and the state of /usr/src
	place func(location string) string
}

type confManifest struct {
	*build.Manifest
	err error
}

func (c *confs) manifest(j *job, src registry.Source, k kernel.Release) (*build.Manifest, error) {
	if k.Tree == nil || len(k.Missing) > 0 { // nothing can be built: which Decide says
		return &build.Manifest{Name: src.Name, Version: src.Version}, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := artifactKey{src.Name, src.Version, k.Name}
	if m, ok := c.known[key]; ok {
		return m.Manifest, m.err
	}
	if err := c.look(j.root); err != nil {
		return nil, err
	}
	var m confManifest
	var conf dkms.Conf
	if conf, m.err = c.read(j, src, k); m.err == nil {
		m.Manifest = confToManifest(src, conf, k, c.place)
		if err := m.Valid(); err != nil {
			m.err = fmt.Errorf("read %s@%s/%s: %w", src.Name, src.Version, dkms.ConfFile, err)
		} else {
			m.DKMS.Own, m.err = ownFiles(j.root, m.Manifest)
		}
	}
	c.known[key] = m
	return m.Manifest, m.err
}

// confOf is what the dkms.conf of a source says for a kernel, which needs no headers.
func (j *job) confOf(src registry.Source, k kernel.Release) (dkms.Conf, error) {
	if k.Tree == nil {
		return j.evaluate(src, k)
	}
	j.confs.mu.Lock()
	defer j.confs.mu.Unlock()
	if err := j.confs.look(j.root); err != nil {
		return dkms.Conf{}, err
	}
	return j.confs.read(j, src, k)
}

// tellConf says what is odd about the dkms.conf of a source: deprecated and misspelt directives. That it cannot be read is the build's to say.
func (j *job) tellConf(src registry.Source) {
	if !hasConf(src) || j.quiet {
		return
	}
	conf, err := j.confOf(src, j.anyKernel())
	if err != nil {
		return
	}
	for _, w := range conf.Warnings {
		j.say("note: %s of %s %s: %s", dkms.ConfFile, src.Name, src.Version, w)
	}
}

// look reads, once, what is the same for all packages.
func (c *confs) look(root kernel.Root) error {
	if c.known != nil {
		return nil
	}
	c.place = placesIn(root)
	files, err := confFiles(root, "/etc/dkms")
	if err != nil {
		return err
	}
	more, err := confFiles(root, "/etc/dkms/framework.conf.d")
	if err != nil {
		return err
	}
	const own = "framework.conf"
	if text, ok := files[own]; ok {
		more[own] = text
		delete(files, own)
	}
	c.admin = files
	var all strings.Builder
	for _, name := range slices.Sorted(maps.Keys(more)) {
		fmt.Fprintf(&all, "%s %q\n", name, more[name])
	}
	// Some look there for the sources of others.
	if host, err := root.Path("/usr/src"); err == nil {
		if info, err := os.Stat(host); err == nil {
			fmt.Fprintf(&all, "/usr/src %d\n", info.ModTime().UnixNano())
		}
	}
	c.frame = all.String()
	c.known = map[artifactKey]confManifest{}
	return nil
}

// confFiles reads the *.conf of a folder, which need not be there: text by name.
func confFiles(root kernel.Root, dir string) (map[string]string, error) {
	entries, err := root.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	files := map[string]string{}
	for _, e := range entries {
		if e.IsDir() || !strings.HasSuffix(e.Name(), ".conf") {
			continue
		}
		text, err := root.ReadFile(path.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) { // a link that leads nowhere
			continue
		} else if err != nil {
			return nil, err
		}
		files[e.Name()] = string(text)
	}
	return files, nil
}

// confReader is the version of how a dkms.conf is evaluated: raise it when the same file comes to say something else.
const confReader = "1"

// read evaluates the dkms.conf of a source for a kernel, or remembers what it said.
func (c *confs) read(j *job, src registry.Source, k kernel.Release) (conf dkms.Conf, err error) {
	config, err := j.reg.FileFact(k.Tree.ConfigFile, "sha256", build.DigestFile)
	if err != nil {
		return conf, err
	}
	given := sha256.New()
	fmt.Fprintf(given, "%s %s %s %s %s\n%s", confReader, src.Digest, k.Name, k.Arch, config, c.frame)
	if directives := j.directivesFor(src.Name); len(directives) > 0 {
		fmt.Fprintf(given, "directives %q\n", directives)
	}
	for _, name := range slices.Sorted(maps.Keys(c.admin)) {
		if strings.HasPrefix(name, src.Name) { // one for another kernel counts too: when it changes, this is asked once in vain
			fmt.Fprintf(given, "%s %q\n", name, c.admin[name])
		}
	}
	text, err := j.reg.ConfFact(src, k.Name, fmt.Sprintf("%x", given.Sum(nil)), func() (string, error) {
		conf, err := j.evaluate(src, k)
		if err != nil {
			return "", err
		}
		text, err := json.Marshal(conf)
		return string(text), err
	})
	if err != nil {
		return conf, err
	}
	return conf, json.Unmarshal([]byte(text), &conf)
}

// evaluate runs a dkms.conf over the registry's copy of its source, which the child may enter.
func (j *job) evaluate(src registry.Source, k kernel.Release) (conf dkms.Conf, err error) {
	in := dkms.Source{Dir: src.Origin, Text: []byte(src.Manifest), Name: src.Name, Version: src.Version, Directives: j.directivesFor(src.Name)}
	if there, _ := j.reg.Source(src.Name, src.Version); j.dryRun && there.Digest != src.Digest { // it is not added
		return dkms.Evaluate(context.Background(), in, k)
	}
	dir, err := os.MkdirTemp("", "kmodctl-conf-")
	if err != nil {
		return conf, err
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(os.Chmod(dir, 0o755), j.reg.Extract(src, dir)); err != nil {
		return conf, err
	}
	in.Dir = dir
	return dkms.Evaluate(context.Background(), in, k)
}

// directivesFor are the directives of the command line for a package.
func (j *job) directivesFor(name string) []string {
	if j.directed != "" && j.directed != name {
		return nil
	}
	return j.directives
}

// placesIn is dkms.DestLocation as a folder below a release's, asked once for each of the few locations that there are.
func placesIn(root kernel.Root) func(location string) string {
	known := map[string]string{}
	return func(location string) string {
		if _, ok := known[location]; !ok {
			known[location] = strings.Trim(path.Clean(dkms.DestLocation(root, location)), "/")
		}
		return known[location]
	}
}

// confToManifest is what a dkms.conf says for a kernel, as the builder takes it.
func confToManifest(src registry.Source, c dkms.Conf, k kernel.Release, place func(location string) string) *build.Manifest {
	text := func(s string) string {
		if k.Name == "" {
			return s
		}
		return strings.ReplaceAll(s, k.Name, build.AnyRelease)
	}
	m := &build.Manifest{
		Name: src.Name, Version: src.Version, Build: build.Recipe{Needs: c.Depends},
		DKMS: &build.DKMS{Make: text(c.Make), PreBuild: text(c.PreBuild), PostBuild: text(c.PostBuild), Excluded: c.Excluded, Manual: !c.AutoInstall},
	}
	for _, file := range c.Patches {
		m.Build.Patches = append(m.Build.Patches, build.Patch{File: path.Join("patches", file)})
	}
	for _, mod := range c.Modules {
		if mod.Excluded != "" {
			continue
		}
		out := build.Module{Name: mod.Name, Dir: mod.Location, Whole: !mod.Strip, Place: place(mod.DestLocation)}
		if mod.Dest != mod.Name {
			out.As = mod.Dest
		}
		m.Modules = append(m.Modules, out)
	}
	return m
}

// onlyAutomatic leaves out what is only built when it is asked for: a dkms.conf without AUTOINSTALL.
func onlyAutomatic(steps []build.Step) {
	for i := range steps {
		if s := &steps[i]; s.Action == build.ActionBuild && s.Manifest.DKMS != nil && s.Manifest.DKMS.Manual {
			s.Action, s.Reason = build.ActionSkip, "its "+dkms.ConfFile+" has no AUTOINSTALL: kmodctl build "+s.Package
		}
	}
}

// forKernel refuses a module that was built for another kernel than it was to be: a Makefile may ask uname -r.
func forKernel(m registry.Module, s build.Step) error {
	if release, _, _ := strings.Cut(m.Vermagic, " "); release != s.Release {
		return &build.Error{Package: s.Package, Release: s.Release, Step: "collect", Err: fmt.Errorf("%s was built for %s: its Makefile does not heed the kernel that it is told", m.File, release)}
	}
	return nil
}

// identify reads the manifest of a folder, a kmod.toml or else a dkms.conf, and whose it is.
func (e *env) identify(ctx context.Context, dir string) (text, name, version string, err error) {
	file := filepath.Join(dir, build.ManifestFile)
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && isConfFolder(dir) {
		return e.identifyConf(ctx, dir)
	}
	if err != nil {
		return "", "", "", err
	}
	m, err := build.ParseManifest(file, data)
	if err != nil {
		return "", "", "", err
	}
	return string(data), m.Name, m.Version, nil
}

func (e *env) identifyConf(ctx context.Context, dir string) (text, name, version string, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", "", "", err
	}
	defer root.Close()
	f, err := root.Open(dkms.ConfFile)
	if err != nil {
		return "", "", "", err
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		return "", "", "", err
	}
	k := e.anyKernel()
	conf, err := dkms.Evaluate(ctx, dkms.Source{Dir: dir, Text: data}, k)
	if err != nil {
		return "", "", "", err
	}
	src := registry.Source{Name: conf.Name, Version: conf.Version}
	if err := confToManifest(src, conf, k, placesIn(k.Root)).Valid(); err != nil {
		return "", "", "", fmt.Errorf("read %s: %w", filepath.Join(dir, dkms.ConfFile), err)
	}
	return string(data), conf.Name, conf.Version, nil
}

// checkFolder checks a source before anything is begun.
func (e *env) checkFolder(ctx context.Context, dir string) error {
	if isConfFolder(dir) {
		_, _, _, err := e.identifyConf(ctx, dir)
		return err
	}
	_, err := build.CheckSource(dir)
	return err
}

// folderManifest reads the manifest of a folder for the kernels that it is then asked for.
func (e *env) folderManifest(ctx context.Context, dir string) (name string, manifest func(kernel.Release) (*build.Manifest, error), err error) {
	if !isConfFolder(dir) {
		m, err := build.CheckSource(dir)
		if err != nil {
			return "", nil, err
		}
		return m.Name, func(kernel.Release) (*build.Manifest, error) { return m, nil }, nil
	}
	text, name, version, err := e.identifyConf(ctx, dir)
	src := registry.Source{Name: name, Version: version}
	return name, func(k kernel.Release) (*build.Manifest, error) {
		conf, err := dkms.Evaluate(ctx, dkms.Source{Dir: dir, Text: []byte(text), Name: name, Version: version}, k)
		if err != nil {
			return nil, err
		}
		return confToManifest(src, conf, k, placesIn(e.root)), nil
	}, err
}

// isConfFolder reports whether a folder has a dkms.conf and no kmod.toml.
func isConfFolder(dir string) bool {
	info, err := os.Stat(filepath.Join(dir, dkms.ConfFile))
	if err != nil || !info.Mode().IsRegular() {
		return false
	}
	_, err = os.Lstat(filepath.Join(dir, build.ManifestFile))
	return errors.Is(err, fs.ErrNotExist)
}

// anyKernel is a kernel to evaluate a dkms.conf for when all that is asked is its name: the newest that can be built for.
func (e *env) anyKernel() kernel.Release {
	kernels, _ := kernel.Find(e.root)
	for _, k := range slices.Backward(kernels) {
		if k.Tree != nil {
			return k
		}
	}
	return kernel.Release{Root: e.root}
}
