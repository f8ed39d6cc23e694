package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"kmodctl/internal/dkms"
	"kmodctl/registry"
)

// scriptLimit ends a script of a package.
const scriptLimit = 10 * time.Minute

// scriptOf runs one of the scripts that the dkms.conf of a source names for a kernel.
func (d *dkmsRun) scriptOf(ctx context.Context, src registry.Source, release, name string, choose func(dkms.Conf) string) error {
	conf, err := d.evaluate(src, d.kernel(dkmsTarget{release: release}))
	if err != nil {
		return err
	}
	return d.script(ctx, src, name, choose(conf))
}

// script runs a script of a package and its arguments as root, in the folder of the source: POST_ADD, PRE_INSTALL,
// POST_INSTALL and POST_REMOVE change the machine, so no sandbox would do. Hence it must be switched on, nobody but
// root may have been able to write it, and what is run is told.
func (d *dkmsRun) script(ctx context.Context, src registry.Source, name, text string) error {
	argv := strings.Fields(text)
	if len(argv) == 0 {
		return nil
	}
	what := fmt.Sprintf("%s of %s/%s, %s", name, src.Name, src.Version, text)
	inside := path.Join(dkmsSources, src.Name+"-"+src.Version)
	dir := d.hostPath(inside)
	why := d.unfitScript(dir, argv[0])
	switch {
	case why != "" && d.dryRun:
		d.would("not run %s: %s", what, why)
		return nil
	case why != "":
		d.changed("note: not run: %s: %s", what, why)
		return nil
	case d.dryRun:
		d.would("run as root %s", what)
		return nil
	}
	d.changed("running as root %s", what)
	ctx, cancel := context.WithTimeout(ctx, scriptLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, argv[0]), argv[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, d.err, d.err
	if !d.root.IsHost() {
		cmd.Path, cmd.Dir, cmd.SysProcAttr = path.Join(inside, argv[0]), inside, &syscall.SysProcAttr{Chroot: string(d.root)}
	}
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C"}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %s: %w", what, err)
	}
	return nil
}

// unfitScript says why a script of a source is not run, "" when it is.
func (d *dkmsRun) unfitScript(dir, script string) string {
	if !d.scripts {
		return "scripts of packages are switched off (dkms.scripts in /etc/kmodctl/config.toml)"
	}
	if !filepath.IsLocal(script) {
		return "it is not in its source"
	}
	info, err := os.Stat(filepath.Join(dir, script))
	switch {
	case dir == "" || err != nil:
		return "it is not there"
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return "it is not executable"
	}
	for at := dir; at != "/"; at = filepath.Dir(at) { // the folders that lead there
		if info, err := os.Lstat(at); err != nil || !rootsAlone(info) {
			return "others than root may write to " + at
		}
	}
	err = filepath.WalkDir(dir, func(at string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
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
