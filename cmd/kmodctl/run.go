package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/internal/vm"
	"kmodctl/registry"
)

func cmdRun(e *env) *cli.Command {
	return &cli.Command{
		Name:      "run",
		Usage:     "build a folder and load it into a kernel of its own, in a virtual machine",
		ArgsUsage: "DIR [PARAMETER=VALUE ...]",
		Description: examples("Boots a kernel of this machine in QEMU with the modules and nothing else, loads them in the\n"+
			"manifest's order, prints what they print, unloads them, and exits 0 when all went well.\n"+
			"It needs no root, no disk image, no network; the registry and this kernel are not touched.",
			"kmodctl run ./hello", "kmodctl run ./params count=3 ports=80,443", "kmodctl run ./hello -k 6.12.117+deb12-amd64"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "kernel", Aliases: []string{"k"}, Usage: "boot kernel `RELEASE`; default: the newest that can be built for"},
			&cli.StringFlag{Name: "image", Usage: "boot `FILE` (a vmlinuz of that release) instead of the machine's own"},
			&cli.DurationFlag{Name: "timeout", Value: 2 * time.Minute, Usage: "give up after `TIME` (default 2m)"},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() == 0 {
				return usagef("run takes a folder: kmodctl run DIR")
			}
			if e.json {
				return usagef("run prints what the module prints: it has no --json")
			}
			return e.runInVM(c.Context, c.Args().First(), c.Args().Tail(), c.String("kernel"), c.String("image"), c.Duration("timeout"))
		},
	}
}

func (e *env) runInVM(ctx context.Context, dir string, params []string, release, image string, timeout time.Duration) error {
	name, manifest, err := e.folderManifest(ctx, dir)
	if err != nil {
		return err
	}
	k, m, err := e.bootable(name, manifest, release, image)
	if err != nil {
		return err
	}
	if image == "" {
		if image, err = e.root.Path(k.Image); err != nil {
			return err
		}
	}
	if e.dryRun {
		fmt.Fprintf(e.out, "build %s %s for %s, boot %s, load and unload %s\n", m.Name, m.Version, k.Name, image, strings.Join(moduleNames(m), ", "))
		return nil
	}
	// The builder and the registry are the ones of every other command, on a
	// registry that lives as long as this run.
	reg, done, err := e.scratch(ctx, "run")
	if err != nil {
		return err
	}
	defer done()
	art, err := e.buildForRun(ctx, reg, dir, m, k)
	if err != nil {
		return err
	}
	guest, err := e.guestFiles(reg, art, k)
	if err != nil {
		return err
	}
	args, err := guestArgs(reg, art, params)
	if err != nil {
		return err
	}
	return e.boot(ctx, image, k, art, guest, args, timeout)
}

// scratch is a registry in a temporary folder, for one command; done removes it.
func (e *env) scratch(ctx context.Context, command string) (reg *registry.Registry, done func(), err error) {
	dir, err := os.MkdirTemp("", "kmodctl-"+command+"-")
	if err != nil {
		return nil, nil, err
	}
	err = os.Chmod(dir, 0o755) // the build user goes through it
	if err == nil {
		reg, err = registry.OpenWriter(ctx, filepath.Join(dir, "registry"), e.root, registry.WriterOptions{Command: "kmodctl " + command, Version: version})
	}
	if err != nil {
		os.RemoveAll(dir)
		return nil, nil, err
	}
	return reg, func() { reg.Close(); os.RemoveAll(dir) }, nil
}

func moduleNames(m *build.Manifest) (out []string) {
	for _, mod := range m.Modules {
		out = append(out, mod.Name)
	}
	return out
}

// bootable is the kernel to run on, and what the manifest says for it: the named one, or the newest that the package
// applies to and that has both a build tree and an image.
func (e *env) bootable(name string, manifest func(kernel.Release) (*build.Manifest, error), release, image string) (kernel.Release, *build.Manifest, error) {
	if release != "" {
		k, err := kernel.Get(e.root, release)
		switch {
		case err != nil:
			return k, nil, err
		case k.Tree == nil:
			return k, nil, missingHeaders{k}
		case k.Image == "" && image == "":
			return k, nil, fmt.Errorf("run on %s: its vmlinuz is not in /boot", release)
		}
		m, err := manifest(k)
		if err != nil {
			return k, nil, err
		}
		if ok, why, err := m.Applies(k); err != nil {
			return k, nil, fmt.Errorf("run %s on %s: %w", m.Name, release, err)
		} else if !ok {
			return k, nil, fmt.Errorf("run %s on %s: %s", m.Name, release, why)
		}
		return k, m, nil
	}
	all, err := kernel.Find(e.root)
	if err != nil {
		return kernel.Release{}, nil, err
	}
	var without []string
	for _, k := range slices.Backward(all) {
		m, err := manifest(k)
		if err != nil {
			return k, nil, err
		}
		ok, why, err := m.Applies(k)
		switch {
		case err != nil:
			why = err.Error()
		case ok && k.Tree != nil && (k.Image != "" || image != ""):
			return k, m, nil
		case ok:
			why = "no image of it in /boot"
		}
		without = append(without, k.Name+" ("+why+")")
	}
	return kernel.Release{}, nil, noBootable{name, without}
}

// noBootable is a machine without a kernel that a run could boot.
type noBootable struct {
	name string
	seen []string
}

func (n noBootable) Error() string {
	if len(n.seen) == 0 {
		return "run " + n.name + ": there is no kernel here"
	}
	return "run " + n.name + ": no kernel here will do: " + strings.Join(n.seen, ", ")
}

// unlogged is a failed build, of a run or a check, whose log is not kept.
type unlogged struct{ error }

func (u unlogged) Unwrap() error { return u.error }

func (e *env) buildForRun(ctx context.Context, reg *registry.Registry, dir string, m *build.Manifest, k kernel.Release) (registry.Artifact, error) {
	quiet := *e
	quiet.err, quiet.json = newScreen(io.Discard), false
	j := &job{env: &quiet, reg: reg, failed: map[target]error{}}
	src, _, err := j.add(ctx, dir)
	if err != nil {
		return registry.Artifact{}, err
	}
	choices := []choice{{src, []kernel.Release{k}}}
	steps, err := j.plan(choices)
	if err != nil {
		return registry.Artifact{}, err
	}
	end := e.err.show(fmt.Sprintf("build %s for %s", m.Name, k.Name))
	err = j.buildAll(ctx, choices, steps, nil, nil)
	end()
	if err == nil && len(j.errs) > 0 {
		err = unlogged{j.errs[0]}
	}
	if attempts, logErr := reg.Attempts(m.Name, k.Name, 1); e.verbose && logErr == nil && len(attempts) == 1 {
		if blob, logErr := reg.Blob(attempts[0].Log); logErr == nil {
			io.Copy(e.err, blob)
			blob.Close()
		}
	}
	if err != nil {
		return registry.Artifact{}, err
	}
	art, _, err := reg.Artifact(src.Name, src.Version, k.Name)
	return art, err
}

// guestFiles are the modules, the in-tree modules that they need, and the module
// index, each where the guest's kernel release has it.
func (e *env) guestFiles(reg *registry.Registry, art registry.Artifact, k kernel.Release) ([]vm.File, error) {
	var files []vm.File
	for _, m := range art.Modules {
		files = append(files, vm.File{Guest: guestModules + "/" + m.Name + ".ko", Host: reg.BlobPath(m.Digest)})
	}
	index := e.index(k.Name)
	inTree := map[string]bool{}
	for _, m := range art.Modules {
		for _, name := range m.Depends {
			if path, deps, ok := index.Find(name); ok {
				for _, p := range append(deps, path) {
					inTree[p] = true
				}
			}
		}
	}
	base := filepath.Join("/lib/modules", k.Name)
	for path := range inTree {
		rel, err := filepath.Rel(index.Dir, path)
		if err != nil || !filepath.IsLocal(rel) {
			return nil, fmt.Errorf("run on %s: dependency %s is outside its modules folder", k.Name, path)
		}
		files = append(files, vm.File{Guest: filepath.Join(base, rel), Host: path})
	}
	if len(inTree) > 0 {
		files = append(files, vm.File{Guest: base + "/modules.dep", Host: filepath.Join(index.Dir, "modules.dep")})
	}
	return files, nil
}

// guestModule begins a module's name among the guest's arguments.
const guestModule = "+"

// inOrder puts modules that others of them depend on before those; else the order stays.
func inOrder(modules []registry.Module) (out []registry.Module) {
	left := slices.Clone(modules)
	for len(left) > 0 {
		waits := func(m registry.Module) bool {
			return slices.ContainsFunc(left, func(n registry.Module) bool { return n.Name != m.Name && slices.Contains(m.Depends, n.Name) })
		}
		at := max(0, slices.IndexFunc(left, func(m registry.Module) bool { return !waits(m) })) // a circle is the kernel's to refuse
		out = append(out, left[at])
		left = slices.Delete(left, at, at+1)
	}
	return out
}

// guestArgs are the guest's arguments: each module in the manifest's order, those that it depends on before it, its
// parameters behind it. A parameter goes to the module that declares it.
func guestArgs(reg *registry.Registry, art registry.Artifact, params []string) ([]string, error) {
	args := []string{"guest"}
	left := slices.Clone(params)
	for _, m := range inOrder(art.Modules) {
		args = append(args, guestModule+m.Name)
		info, err := ko.Open(reg.BlobPath(m.Digest))
		if err != nil {
			return nil, err
		}
		left = slices.DeleteFunc(left, func(param string) bool {
			name, _, _ := strings.Cut(param, "=")
			mine := slices.ContainsFunc(info.Params, func(p ko.Param) bool { return p.Name == name })
			if mine {
				args = append(args, param)
			}
			return mine
		})
	}
	if len(left) > 0 {
		return nil, usagef("run %s: no module of it has a parameter %s", art.Package, left[0])
	}
	return args, nil
}

func (e *env) boot(ctx context.Context, image string, k kernel.Release, art registry.Artifact, files []vm.File, args []string, timeout time.Duration) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	accel, why := vm.Accel()
	if !e.verbose {
		why = accel
	}
	e.say("boot %s (%s)", k.Name, why)
	start := time.Now()
	code, err := vm.Run(ctx, vm.Config{
		Image: image, Init: self, Args: args, Files: files, Timeout: timeout, Output: e.out,
		Append: "oops=panic", // an oops in a module's init would hang the guest's program
	})
	if err != nil {
		return fmt.Errorf("run %s on %s: %w", art.Package, k.Name, err)
	}
	if code != 0 {
		return guestFailed{art.Package, k.Name, code}
	}
	e.say("ok: %s %s loaded and unloaded on %s in %.1f s", art.Package, art.Version, k.Name, time.Since(start).Seconds())
	return nil
}

// guestFailed is a run whose verdict is no; the guest has said why.
type guestFailed struct {
	name, release string
	code          int
}

func (g guestFailed) Error() string {
	return fmt.Sprintf("run %s on %s: not loaded and unloaded cleanly", g.name, g.release)
}
