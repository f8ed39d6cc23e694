package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"kmodctl/internal/dkms"
)

// forcedFolder has files with the names of packages that are installed whatever else is there: NAME, or NAME_version-override for one whose
// modules may be older than the kernel's (Ubuntu's drivers bring them).
const forcedFolder = "/usr/share/dkms/modules_to_force_install"

// forced reports whether a package may take the place of newer modules, and whether it is installed even when its PRE_INSTALL fails.
func (e *env) forced(name string) (older, despite bool) {
	entries, err := e.root.ReadDir(forcedFolder)
	if err != nil {
		return false, false
	}
	for _, entry := range entries {
		text, err := e.root.ReadFile(path.Join(forcedFolder, entry.Name()))
		if err != nil {
			continue
		}
		words := strings.Fields(string(text))
		despite = despite || slices.Contains(words, name)
		older = older || despite || slices.Contains(words, name+"_version-override")
	}
	return older, despite
}

// unheeded are the settings of framework.conf that have no effect here, and why.
var unheeded = map[string]string{
	"dkms_tree":           "it is " + dkmsTreePath,
	"source_tree":         "sources are in " + dkmsSources + ", or in the folder that kmodctl add is given",
	"install_tree":        "it is /lib/modules",
	"symlink_modules":     "modules are installed as files",
	"modprobe_on_install": "kmodctl load MODULE loads what was installed",
	"build_environment":   "builds have the compiler of their kernel, and none of root's environment: put its folder into MAKE or PRE_BUILD",
	"compress_gzip_opts":  "modules are compressed as the kernel reads them",
	"compress_xz_opts":    "modules are compressed as the kernel reads them",
	"compress_zstd_opts":  "modules are compressed as the kernel reads them",
	"parallel_jobs":       "all builds share this machine's processors",
	"sign_file":           "kmodctl signs as the kernel's sign-file does; sign.command of " + configFile + " names another program",
}

// tellUnheeded says which settings of framework.conf have no effect.
func (e *env) tellUnheeded(ctx context.Context) {
	frame, err := dkms.ReadFramework(ctx, e.root, "")
	if err != nil {
		e.say("note: %v", err)
		return
	}
	usual := map[string]string{"dkms_tree": dkmsTreePath, "source_tree": dkmsSources, "install_tree": "/lib/modules"}
	for _, name := range slices.Sorted(maps.Keys(frame)) {
		if why := unheeded[name]; why != "" && frame[name] != "" && path.Clean(frame[name]) != usual[name] {
			e.say("note: %s of framework.conf is passed over: %s", name, why)
		}
	}
	if isToken(frame["mok_signing_key"]) {
		e.say("note: mok_signing_key of framework.conf is passed over: a key in a token signs by sign.command of %s", configFile)
	}
}

// postTransaction runs what framework.conf has as post_transaction, once for each kernel whose modules have changed, as DKMS
// does: a command for the shell, of the administrator's own. A failure is told.
func (j *job) postTransaction(ctx context.Context, release string) {
	frame, err := dkms.ReadFramework(ctx, j.root, release)
	command := frame["post_transaction"]
	if err != nil || command == "" {
		return
	}
	what := fmt.Sprintf("post_transaction of framework.conf for %s: %s", release, command)
	switch why := j.unfitTransaction(); {
	case why != "" && j.dryRun:
		j.would("not run %s: %s", what, why)
		return
	case why != "":
		j.changed("note: not run: %s: %s", what, why)
		return
	case j.dryRun:
		j.would("run as root %s", what)
		return
	}
	j.scripting.Lock()
	defer j.scripting.Unlock()
	j.changed("running as root %s", what)
	if err := j.runTransaction(ctx, command, release); err != nil {
		j.changed("note: post_transaction: %v", err)
	}
}

// unfitTransaction says why post_transaction is not run, "" when it is.
func (j *job) unfitTransaction() string {
	conf, err := j.configuration()
	switch {
	case err != nil:
		return err.Error()
	case !conf.DKMS.Scripts:
		return scriptsOff
	case os.Getuid() != 0:
		return "that needs root"
	}
	dir, err := j.root.Path("/etc/dkms")
	if err != nil {
		return err.Error()
	}
	return othersMayWrite(dir)
}

func (j *job) runTransaction(ctx context.Context, command, release string) error {
	tree, err := j.inside(dkmsTreePath)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(tree, "post_transaction.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	shell := "/bin/bash"
	if _, err := j.root.Path(shell); errors.Is(err, fs.ErrNotExist) {
		shell = "/bin/sh"
	}
	return j.asRoot(ctx, "/", shell, []string{"-c", command}, log, "kernelver="+release)
}
