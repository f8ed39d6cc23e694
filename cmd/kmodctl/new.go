package main

import (
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"
)

//go:embed skeleton/*
var skeleton embed.FS

func cmdNew(e *env) *cli.Command {
	return &cli.Command{
		Name:      "new",
		Usage:     "begin a module: a folder with a manifest, a Kbuild file and a source that builds",
		ArgsUsage: "NAME",
		Description: examples("The folder NAME must not exist. What it holds builds, loads and unloads as it is.",
			"kmodctl new hello", "kmodctl run ./hello"),
		Action: func(c *cli.Context) error {
			name, err := oneArg(c, "name")
			if err != nil {
				return err
			}
			if e.json {
				return usagef("new has no --json")
			}
			return e.newModule(name)
		},
	}
}

// moduleName is what both a C identifier and a file can be.
var moduleName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z][a-z0-9_]{0,54}$`) })

func (e *env) newModule(name string) error {
	dir := filepath.Clean(name)
	name = filepath.Base(dir)
	if !moduleName().MatchString(name) {
		return usagef("new %s: a module's name is lower case letters, digits and _, and begins with a letter (at most 55)", name)
	}
	files, err := skeleton.ReadDir("skeleton")
	if err != nil {
		return err
	}
	if e.dryRun {
		for _, f := range files {
			fmt.Fprintln(e.out, "write", filepath.Join(dir, skeletonName(f.Name(), name)))
		}
		return nil
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("new %s: %w", name, err)
	}
	for _, f := range files {
		text, err := skeleton.ReadFile("skeleton/" + f.Name())
		if err != nil {
			return err
		}
		body := strings.ReplaceAll(string(text), "@NAME@", name)
		if err := os.WriteFile(filepath.Join(dir, skeletonName(f.Name(), name)), []byte(body), 0o644); err != nil {
			return fmt.Errorf("new %s: %w", name, err)
		}
	}
	if !strings.Contains(dir, "/") {
		dir = "./" + dir
	}
	e.say("wrote %s: kmodctl run %s loads it in a virtual machine", dir, dir)
	return nil
}

// skeletonName is the name that a file of the skeleton gets: Go's tools would take
// a .c file for cgo, so it is kept under another ending.
func skeletonName(file, name string) string {
	return strings.TrimSuffix(strings.Replace(file, "NAME", name, 1), ".txt")
}
