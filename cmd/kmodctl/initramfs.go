package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"slices"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

// initramfsTools make the initramfs of one kernel: Debian's, Fedora's and Arch's. The first that is here does it.
var initramfsTools = []struct {
	path string
	args func(release string) []string
}{
	{"/usr/sbin/update-initramfs", func(r string) []string { return []string{"-u", "-k", r} }},
	{"/usr/bin/dracut", func(r string) []string { return []string{"--force", "--kver", r} }},
	{"/usr/bin/mkinitcpio", func(string) []string { return []string{"-P"} }}, // its presets know no release
}

// remakeCommand remakes the initramfs of a kernel; nil when the root has nothing that does.
func (e *env) remakeCommand(release string) []string {
	for _, t := range initramfsTools {
		if _, err := e.root.Path(t.path); err == nil {
			return append([]string{t.path}, t.args(release)...)
		}
	}
	return nil
}

// initramfsOf is the host path of a kernel's initramfs, or "".
func (e *env) initramfsOf(release string) (string, error) {
	for _, name := range []string{"/boot/initrd.img-" + release, "/boot/initramfs-" + release + ".img"} {
		file, err := e.root.Path(name)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return file, err
		}
	}
	return "", nil
}

// initramfsModules prints the modules, by kernel and name, that must be in the initramfs of kernels: what makes one asks for them.
func (e *env) initramfsModules(ctx context.Context, releases []string) error {
	reg, err := e.reader(ctx)
	if err != nil {
		return err
	}
	defer reg.Close()
	installs, err := reg.Installs()
	if err != nil {
		return err
	}
	for _, i := range installs {
		if !slices.Contains(releases, i.Release) {
			continue
		}
		if wanted, err := wantsInitramfs(reg, i.Package, i.Version); err == nil && wanted {
			fmt.Fprintln(e.out, i.Module)
		}
	}
	return nil
}

// initramfsStale has the initramfs of a kernel remade when the command has put all in its place, firmware and options too, if
// one of what was installed says that it must be in there.
func (j *job) initramfsStale(ctx context.Context, k kernel.Release, installed []registry.Artifact) {
	wanted := slices.ContainsFunc(installed, func(a registry.Artifact) bool {
		wanted, err := wantsInitramfs(j.reg, a.Package, a.Version)
		return err == nil && wanted
	})
	if wanted && !j.options.newKernel {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.afterBeside = append(j.afterBeside, func() error { return j.remakeInitramfs(ctx, k.Name) })
	}
}

// remakeInitramfs remakes the initramfs of a kernel. What is there stays when it fails.
func (e *env) remakeInitramfs(ctx context.Context, release string) error {
	command := e.remakeCommand(release)
	switch {
	case command == nil:
		return fmt.Errorf("remake initramfs of %s: found none of update-initramfs, dracut and mkinitcpio", release)
	case !e.root.IsHost():
		e.changed("the initramfs of %s is to be remade inside %s: %s", release, e.root, command)
		return nil
	}
	end := e.err.show("initramfs of " + release)
	out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput()
	end()
	if err != nil {
		return fmt.Errorf("remake initramfs of %s: %w: %s", release, err, firstLine(string(out)))
	}
	e.changed("remade the initramfs of %s", release)
	return nil
}

// wantsInitramfs reports whether the initramfs must hold the modules of a package.
func wantsInitramfs(reg *registry.Registry, pkg, version string) (bool, error) {
	src, err := reg.Source(pkg, version)
	if err != nil {
		return false, err
	}
	m, err := build.ParseManifest(build.ManifestFile, []byte(src.Manifest))
	return err == nil && m.Initramfs, nil // a dkms.conf cannot say it
}
