package main

import (
	"context"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settled is for how long nothing must change before a build begins: an editor saves in several steps.
const settled = 100 * time.Millisecond

// watch builds folders, and again each time that a file in one of them was changed. A build
// that fails is reported and the next one waited for; Ctrl-C ends it.
func (e *env) watch(ctx context.Context, dirs []string, o buildOptions) error {
	if len(dirs) == 0 {
		return usagef("build --watch takes the folders to watch: kmodctl build --watch ./hello")
	}
	for _, dir := range dirs {
		if !isPath(dir) {
			return usagef("build --watch %s: a folder can be watched, a name cannot: ./%[1]s", dir)
		}
	}
	if e.dryRun {
		return usagef("build --watch goes on building: --dry-run has nothing to print")
	}
	for {
		// What is saved from here on counts, also while the build reads the folder.
		changed, err := watchFolders(dirs)
		if err != nil {
			return err
		}
		if err := e.build(ctx, dirs, o); err != nil && ctx.Err() == nil {
			e.report(err)
		}
		e.say("waiting for changes")
		err = changed.wait(ctx)
		changed.Close()
		if err != nil {
			return err
		}
	}
}

// folders watches all folders below some, inotify(7).
type folders struct{ *fsnotify.Watcher }

func watchFolders(dirs []string) (folders, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return folders{}, err
	}
	f := folders{w}
	for _, dir := range dirs {
		if err := f.add(dir); err != nil {
			w.Close()
			return folders{}, err
		}
	}
	return f, nil
}

// add watches a folder and all below it.
func (f folders) add(dir string) error {
	dir, err := filepath.EvalSymlinks(dir) // WalkDir follows none
	if err != nil {
		return err
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return f.Add(path)
	})
}

// wait returns when something was changed and then nothing for a while, or with ctx's cause.
func (f folders) wait(ctx context.Context) error {
	var quiet <-chan time.Time
	for {
		select {
		case e := <-f.Events:
			if e.Op != fsnotify.Chmod { // backup programs and the like
				quiet = time.After(settled)
			}
		case err := <-f.Errors:
			return err
		case <-quiet:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
