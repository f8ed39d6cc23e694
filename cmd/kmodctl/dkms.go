package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"kmodctl/build"
	"kmodctl/internal/dkms"
	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

// dkmsVersion is the DKMS whose command line, exit codes and status lines these are.
const dkmsVersion = "3.4.3"

// runDKMS is the whole program when it is called by the name dkms.
func runDKMS(ctx context.Context, argv []string, stdout, stderr io.Writer) int {
	e := &env{out: stdout, err: newScreen(stderr), front: "Error! "}
	e.err.columns = nil // dpkg gives its scripts a terminal, and what is on it goes to a log
	err := e.dkms(ctx, argv[1:])
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	var told partly
	if err != nil && (!errors.As(err, &told) || told.of > 1) {
		e.report(err)
	} else if err == nil && e.incomplete {
		return exitFailed
	}
	return dkmsCode(err)
}

// dkmsCode is the exit code that DKMS 3.4 has for the cause of an error; 1 for causes that it does not know.
func dkmsCode(err error) int {
	var (
		said     dkmsError
		sig      interrupted
		kbuild   *build.Error
		conf     *dkms.Error
		headers  missingHeaders
		noKernel *kernel.NotFoundError
		needs    *needsError
		absent   *registry.NotFoundError
		gone     *registry.NoModulesError
		newer    newerOriginal
		owned    *registry.PackageError
		exit     *exec.ExitError
		program  *exec.Error
		script   scriptFailed
	)
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &said):
		return said.code
	case errors.As(err, &sig), errors.Is(err, context.Canceled):
		return exitCode(err)
	case errors.As(err, &script):
		if script.op == registry.OpPreInstall {
			return 101
		}
		return 1
	case errors.As(err, &kbuild):
		switch kbuild.Step {
		case "patch":
			return 6
		case "collect":
			return 7
		case "prepare", "post_build": // PRE_BUILD, POST_BUILD: that of the script
			if errors.As(err, &exit) && exit.ExitCode() > 0 {
				return exit.ExitCode()
			}
		}
		return 10
	case errors.As(err, &program): // make or the compiler is not installed
		return 10
	case errors.As(err, &needs):
		return 13
	case errors.As(err, &headers), errors.As(err, &noKernel):
		return 21
	case errors.As(err, &conf):
		return 8
	case errors.As(err, &absent):
		return 3
	case errors.As(err, &gone), errors.As(err, &newer), errors.As(err, &owned):
		return 6
	}
	return 1
}

// wordAt looks what file of this machine a word of the command line names.
func wordAt(word string) int {
	info, err := os.Stat(word)
	switch {
	case err != nil:
		return wordName
	case info.Mode().IsRegular() && strings.HasSuffix(word, dkms.ConfFile):
		return wordConf
	case info.Mode().IsRegular():
		return wordOfFile
	}
	if conf, err := os.Stat(filepath.Join(word, dkms.ConfFile)); info.IsDir() && err == nil && conf.Mode().IsRegular() {
		return wordTree
	}
	return wordName
}

// dkms carries out one command line of DKMS.
func (e *env) dkms(ctx context.Context, words []string) error {
	call, err := parseDKMS(words, wordAt)
	switch {
	case err != nil:
		return err
	case call.help:
		_, err := io.WriteString(e.out, dkmsUsage)
		return err
	case call.showVersion:
		_, err := fmt.Fprintln(e.out, "dkms-"+dkmsVersion)
		return err
	}
	e.quiet, e.verbose, e.dryRun = call.quiet, call.verbose, call.dryRun
	if call.quiet {
		e.out = io.Discard
	}
	for _, note := range call.notes {
		e.say("note: %s", note)
	}
	if err := call.check(); err != nil {
		return err
	}
	if err := e.setRoot(cmp.Or(os.Getenv("KMODCTL_ROOT"), "/")); err != nil {
		return err
	}
	if err := e.elsewhere(call); err != nil {
		return err
	}
	if call.action == "status" {
		return e.dkmsStatus(ctx, call)
	}
	d := &dkmsRun{job: &job{env: e, failed: map[target]error{}, named: map[string]bool{}, force: call.force || call.forceVersion, despite: call.force || call.rpmSafe}, dkmsCall: call}
	running, err := kernel.Running()
	if err != nil {
		return err
	}
	machine, err := kernel.Machine()
	if err != nil {
		return err
	}
	d.kernels = d.dkmsCall.targets(running, machine)
	if os.Getenv("DPKG_MAINTSCRIPT_NAME") == "" { // who installs a package has seen it
		e.tellUnheeded(ctx)
	}
	d.job.directives, d.directed = call.directives, call.module
	return d.run(ctx)
}

// elsewhere refuses what would put the tree, the sources or the modules in other places: the registry is one for a
// machine. KMODCTL_ROOT is for another machine's.
func (e *env) elsewhere(c dkmsCall) error {
	for _, o := range []struct{ option, given, ours string }{
		{"--dkmstree", c.dkmsTree, dkmsTreePath}, {"--sourcetree", c.sourceTree, dkmsSources}, {"--installtree", c.installTree, "/lib/modules"},
	} {
		if o.given != "" && path.Clean(o.given) != o.ours && path.Clean(o.given) != "/usr"+o.ours {
			return dkmsFail(1, "%s %s: it is %s here; for another machine below a folder, set KMODCTL_ROOT", o.option, o.given, o.ours)
		}
	}
	switch {
	case c.config != "":
		e.say("note: --config is passed over: the configuration is that of the kernel's headers")
	case c.symlinks:
		e.say("note: --symlink-modules is passed over: modules are installed as files")
	case c.modprobe:
		e.say("note: --modprobe-on-install is passed over: kmodctl load MODULE loads what was installed")
	}
	return nil
}

// dkmsStatus prints what is added, built and installed. Whoever may read the registry may ask; nothing is changed.
func (e *env) dkmsStatus(ctx context.Context, call dkmsCall) error {
	reg, err := e.reader(ctx)
	if err != nil {
		return err
	}
	defer reg.Close()
	known, err := e.dkmsKnown(reg)
	if err != nil {
		return err
	}
	disk, err := e.dkmsOnDisk()
	if err != nil {
		return err
	}
	for _, m := range unknownOf(disk, known, func(dkmsModule, dkmsBuild) bool { return true }) {
		for i, b := range m.builds {
			m.builds[i].differs = b.installed && e.strays(m, b)
		}
		i := slices.IndexFunc(known, func(k dkmsModule) bool { return k.name == m.name && k.version == m.version })
		if i < 0 {
			known = append(known, m)
		} else {
			known[i].builds = append(known[i].builds, m.builds...)
		}
	}
	lines, broken := dkmsStatus(known, call)
	for _, line := range lines {
		fmt.Fprintln(e.out, line)
	}
	for _, m := range broken {
		e.changed("Error! %s: its source in %s, or the link to it, is gone", m, dkmsSources)
	}
	view, err := e.openView()
	if err != nil || view == nil {
		return err
	}
	defer view.tree.Close()
	view.tell(e)
	return nil
}

// dkmsRun is one command of dkms that changes something.
type dkmsRun struct {
	*job
	dkmsCall
	kernels []dkmsTarget
}

func (d *dkmsRun) run(ctx context.Context) error {
	if err := d.mayWrite(); err != nil {
		return err
	}
	if d.action == "generate_mok" {
		return d.generateMOK(ctx)
	}
	reg, err := d.open(ctx, "dkms "+d.action)
	if err != nil {
		return err
	}
	d.reg = reg
	defer d.close(reg)
	if err := d.known(); err != nil {
		return err
	}
	if err := (&adoption{job: d.job}).all(ctx); err != nil {
		return err
	}
	adopted := len(d.errs)
	if err := d.act(ctx); err != nil {
		return err
	}
	if errs := d.errs[adopted:]; len(errs) > 0 {
		return partly{failed: len(errs), of: max(d.tried, len(errs)), err: errs[0]}
	}
	return nil
}

func (d *dkmsRun) act(ctx context.Context) error {
	if d.archive != "" && d.module == "" && d.action != "mktarball" {
		if err := d.loadTarball(ctx); err != nil || d.action == "add" || d.action == "ldtarball" || strings.HasSuffix(d.archive, ".rpm") {
			return err
		}
	}
	switch d.action {
	case "mktarball":
		return d.makeTarball(ctx)
	case "add":
		_, err := d.add(ctx)
		return err
	case "build":
		return d.build(ctx, false)
	case "install":
		return d.build(ctx, true)
	case "uninstall":
		return d.uninstall(ctx)
	case "unbuild", "remove":
		return d.unbuild(ctx)
	case "autoinstall", "kernel_postinst":
		return d.autoinstall(ctx)
	case "match":
		return d.match(ctx)
	case "kernel_preinst":
		d.say("nothing to do: what was built from other headers than those to come is built anew after them")
		return nil
	case "kernel_prerm":
		return d.kernelGoes(ctx)
	}
	return dkmsFail(2, "unknown action %q", d.action)
}

// mayWrite says no to who is not root.
func (d *dkmsRun) mayWrite() error {
	if d.ownRegistry() && !d.dryRun {
		return dkmsFail(1, "%s needs root", d.action)
	}
	return nil
}

// known checks that the module of an action that works on one is there.
func (d *dkmsRun) known() error {
	if !slices.Contains([]string{"remove", "unbuild", "uninstall", "build", "install", "mktarball"}, d.action) || d.module == "" {
		return nil
	}
	_, err := d.reg.Source(d.module, d.version)
	var absent *registry.NotFoundError
	if !errors.As(err, &absent) {
		return err
	}
	disk, err := d.dkmsOnDisk()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(disk, func(m dkmsModule) bool { return m.name == d.module && m.version == d.version })
	switch {
	case i >= 0 && disk[i].broken:
		return dkmsFail(4, "%s/%s is broken: its source in %s, or the link to it, is gone", d.module, d.version, dkmsSources)
	case i < 0 && d.action != "build" && d.action != "install":
		return dkmsFail(3, "%s/%s is not added", d.module, d.version)
	}
	return nil
}
