package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

// scriptLimit ends a script of a package.
const scriptLimit = 10 * time.Minute

const scriptsOff = "scripts of packages are switched off (dkms.scripts in " + configFile + ")"

// script is one of the scripts of a dkms.conf that change the machine, POST_ADD, PRE_INSTALL, POST_INSTALL and
// POST_REMOVE, and what it is run for. The zero script is none.
type script struct {
	op      string // registry.OpPostAdd and its like
	text    string // a file of the source, and its arguments; "" for none
	release string // of the kernel; "" of POST_ADD
	src     registry.Source
	err     error // why it is not known
}

// directive is the name of the script in a dkms.conf.
func (s script) directive() string { return strings.ToUpper(s.op) }

func (s script) String() string {
	return fmt.Sprintf("%s of %s/%s, %s", s.directive(), s.src.Name, s.src.Version, s.text)
}

// scriptFailed is a script that ended with an error.
type scriptFailed struct {
	script
	err  error
	said string // its last line
}

func (s scriptFailed) Error() string {
	text := fmt.Sprintf("run %s: %v", s.script, s.err)
	if s.said != "" {
		text += ": " + s.said
	}
	return text
}

func (s scriptFailed) Unwrap() error { return s.err }

// scriptOf reads in the dkms.conf of a source which script it has for an operation on a kernel.
func (j *job) scriptOf(src registry.Source, op, release string) script {
	s := script{op: op, release: release, src: src}
	if !hasConf(src) {
		return s
	}
	conf, err := j.confOf(src, j.kernelNamed(release))
	if err != nil {
		if strings.Contains(src.Manifest, s.directive()) {
			s.err = fmt.Errorf("find %s of %s/%s: %w", s.directive(), src.Name, src.Version, err)
		}
		return s
	}
	s.text = map[string]string{registry.OpPostAdd: conf.PostAdd, registry.OpPreInstall: conf.PreInstall,
		registry.OpPostInstall: conf.PostInstall, registry.OpPostRemove: conf.PostRemove}[op]
	return s
}

// scriptsOf is scriptOf of what is installed of packages on a kernel: asked before it is taken away, with its source maybe.
func (j *job) scriptsOf(installs []registry.Install, op, release string, packages ...string) (all []script) {
	for to, rows := range byTarget(installs) {
		for _, name := range packages {
			if to != (target{name, release}) {
				continue
			}
			if src, err := j.reg.Source(name, rows[0].Version); err == nil { // an artifact may be here without its source
				all = append(all, j.scriptOf(src, op, release))
			}
		}
	}
	return all
}

// kernelNamed is a kernel of the machine, or what a name alone tells.
func (e *env) kernelNamed(release string) kernel.Release {
	if release == "" {
		return e.anyKernel()
	}
	k, err := kernel.Get(e.root, release)
	if err != nil {
		arch, _ := kernel.Machine()
		return kernel.Release{Name: release, Arch: arch, Root: e.root}
	}
	return k
}

// runScripts runs what is to be run after something that is done: an error is one of the command's, and stops nothing.
func (j *job) runScripts(ctx context.Context, all ...script) {
	for _, s := range all {
		if err := j.runScript(ctx, s); err != nil {
			j.begun()
			j.fail(err)
		}
	}
}

// runScript runs a script of a package and its arguments as root, in the folder of the source: it changes the machine,
// so no sandbox would do. Hence scripts must be switched on, nobody but root may have been able to write it, and what is
// run is told and kept in the history.
func (j *job) runScript(ctx context.Context, s script) error {
	argv := strings.Fields(s.text)
	if s.err != nil || len(argv) == 0 {
		return s.err
	}
	j.scripting.Lock() // they are not made for company
	defer j.scripting.Unlock()
	dir, file, why := j.fitScript(s.src, argv[0])
	switch {
	case why != "" && j.dryRun:
		j.would("not run %s: %s", s, why)
		return nil
	case why != "":
		j.changed("note: not run: %s: %s", s, why)
		return nil
	case j.dryRun:
		j.would("run as root %s", s)
		return nil
	}
	j.changed("running as root %s", s)
	return j.perform(ctx, s, func(log *os.File) error {
		return j.asRoot(ctx, j.root.Inside(dir), j.root.Inside(file), argv[1:], log)
	})
}

// asRoot runs a program of the root in one of its folders, with what it says in a log, and ends it with its children when it takes too long.
func (j *job) asRoot(ctx context.Context, dir, file string, args []string, log *os.File, env ...string) error {
	bounded, cancel := context.WithTimeoutCause(ctx, scriptLimit, fmt.Errorf("not done after %v", scriptLimit))
	defer cancel()
	cmd := exec.CommandContext(bounded, file, args...)
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if !j.root.IsHost() {
		cmd.SysProcAttr.Chroot = string(j.root)
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Stdout, cmd.Stderr = log, log // not through us: what it leaves running keeps us waiting for nothing
	if err := cmd.Run(); err != nil {
		return cmp.Or(context.Cause(bounded), err)
	}
	return nil
}

// perform has run write what a script says to a log; that and how it ended become a part of the history.
func (j *job) perform(ctx context.Context, s script, run func(log *os.File) error) (err error) {
	work, done, err := j.reg.NewWork(s.src.Name)
	if err != nil {
		return err
	}
	defer done()
	log, err := os.OpenFile(filepath.Join(work, "log"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	head, err := fmt.Fprintf(log, "%s %s: %s, %s %s\n", s.src.Name, s.src.Version, s.directive(), s.text, s.release)
	if err != nil {
		return err
	}
	attempt, err := j.reg.BeginAttempt(registry.Attempt{Op: s.op, Package: s.src.Name, Version: s.src.Version, Release: s.release, Started: time.Now()})
	if err != nil {
		return err
	}
	defer func() { err = j.finish(ctx, attempt, err) }()
	err = run(log)
	digest, logErr := j.keepLog(context.WithoutCancel(ctx), log)
	attempt.Log = digest
	said, readErr := os.ReadFile(log.Name())
	said = bytes.TrimSpace(said[min(head, len(said)):])
	if err != nil {
		failed := scriptFailed{script: s, err: err}
		if j.quiet {
			failed.said = string(said[bytes.LastIndexByte(said, '\n')+1:])
		}
		err = failed
	}
	if len(said) > 0 && !j.quiet {
		fmt.Fprintf(j.err, "%s\n", said)
	}
	return errors.Join(err, logErr, readErr)
}

// fitScript finds a script of a source, in the folder that the source was added from, or else the administrator's own of
// that name; why says why it must not be run.
func (j *job) fitScript(src registry.Source, script string) (dir, file, why string) {
	conf, err := j.configuration()
	inside := j.root.Inside(src.Origin)
	switch {
	case err != nil:
		return "", "", err.Error()
	case !conf.DKMS.Scripts:
		return "", "", scriptsOff
	case os.Getuid() != 0:
		return "", "", "that needs root"
	case !j.root.IsHost() && inside == src.Origin:
		return "", "", src.Origin + " is outside of " + string(j.root)
	case !filepath.IsLocal(script):
		return "", "", "it is not in its source"
	}
	if dir, err = j.root.Path(inside); err != nil {
		return "", "", "its source is not there"
	}
	folder := dir
	if own, err := j.root.Path(ownFolder(src.Name)); err == nil {
		if file, err = j.root.Path(path.Join(ownFolder(src.Name), script)); err == nil {
			folder = own
		}
	}
	if file == "" {
		if file, err = j.root.Path(path.Join(inside, script)); err != nil {
			return "", "", "it is not there"
		}
	}
	info, err := os.Lstat(file)
	switch {
	case !strings.HasPrefix(file, folder+"/"):
		return "", "", "it leads out of " + j.root.Inside(folder)
	case err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return "", "", "it is not executable"
	}
	if why := othersMayWrite(folder); why != "" || folder == dir {
		return dir, file, why
	}
	return dir, file, othersMayWrite(dir)
}

// othersMayWrite says what of a folder, or of the folders that lead there, others than root may write to, "" when nothing.
func othersMayWrite(dir string) string {
	for at := dir; at != "/"; at = filepath.Dir(at) {
		if info, err := os.Lstat(at); err != nil || !rootsAlone(info) {
			return "others than root may write to " + at
		}
	}
	err := filepath.WalkDir(dir, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && !rootsAlone(info) {
			err = fmt.Errorf("others than root may write to %s", at)
		}
		return err
	})
	if err != nil {
		return err.Error()
	}
	return ""
}

// rootsAlone reports whether a file is root's and nobody else may write to it.
func rootsAlone(info fs.FileInfo) bool {
	owner := info.Sys().(*syscall.Stat_t).Uid
	return owner == 0 && (info.Mode()&fs.ModeSymlink != 0 || info.Mode()&0o022 == 0 || info.Mode()&fs.ModeSticky != 0 && info.IsDir())
}

// beforeInstall runs PRE_INSTALL of what is to be installed for a kernel, and returns that of which it went well; of that it
// notes POST_INSTALL, for installFor.
func (j *job) beforeInstall(ctx context.Context, k kernel.Release, choices []choice, due []registry.Artifact) (fit []registry.Artifact) {
	if len(due) == 0 || j.cannotInstall(k) != "" {
		return due
	}
	for _, art := range due {
		src := sourceOf(choices, art.Package, art.Version)
		err := j.runScript(ctx, j.scriptOf(src, registry.OpPreInstall, k.Name))
		switch {
		case err != nil && j.goesOn(src):
			j.changed("note: %v", err)
		case err != nil:
			j.begun()
			j.fail(err)
			j.installed(art, "failed", err.Error())
			continue
		}
		j.mu.Lock()
		if j.postInstall == nil {
			j.postInstall = map[target]script{}
		}
		j.postInstall[target{art.Package, k.Name}] = j.scriptOf(src, registry.OpPostInstall, k.Name)
		j.mu.Unlock()
		fit = append(fit, art)
	}
	return fit
}

// goesOn reports whether a package is installed even where its PRE_INSTALL fails.
func (j *job) goesOn(src registry.Source) bool {
	_, despite := j.forced(src.Name)
	return despite || j.despite
}

// afterInstall runs POST_INSTALL of what was installed, where beforeInstall has noted it.
func (j *job) afterInstall(ctx context.Context, art registry.Artifact) {
	j.mu.Lock()
	s := j.postInstall[target{art.Package, art.Release}]
	j.mu.Unlock()
	j.runScripts(ctx, s)
}
