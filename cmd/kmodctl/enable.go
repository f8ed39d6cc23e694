package main

import (
	"bytes"
	"fmt"
	"path"
	"strings"

	"github.com/urfave/cli/v2"

	"kmodctl/internal/ko"
	"kmodctl/loader"
)

func cmdEnable(e *env) *cli.Command {
	return &cli.Command{
		Name:      "enable",
		Usage:     "load a module at each boot",
		ArgsUsage: "MODULE [PARAMETER=VALUE ...]",
		Description: examples("Written to "+loader.ModulesLoadFile+"; parameters go where kmodctl options puts them. Modules whose devices\n"+
			"are there are loaded by udev without it. It is not loaded now.",
			"kmodctl enable nbd", "kmodctl enable nbd nbds_max=4"),
		BashComplete: completeParams(e),
		Action: func(c *cli.Context) error {
			if c.NArg() == 0 {
				return usagef("enable takes a module: kmodctl enable NAME [PARAMETER=VALUE ...]")
			}
			s, err := e.setting(c, c.Args().First())
			if err != nil {
				return err
			}
			if err := s.builtin(); err != nil {
				return err
			}
			if params := c.Args().Tail(); len(params) > 0 { // first, so that it is never loaded without them
				if err := s.setOptions(c, params, nil); err != nil {
					return err
				}
			}
			err = s.rewrite(c.Context, loader.ModulesLoadFile, func(text []byte) ([]byte, error) { return loader.SetLoad(text, s.module, true), nil })
			if err != nil {
				return err
			}
			if denials := s.config().Denials(s.module); len(denials) > 0 {
				s.note("%s is denied at %s", s.module, denials[0].At)
			}
			return s.finish()
		},
	}
}

func cmdDisable(e *env) *cli.Command {
	return &cli.Command{
		Name:      "disable",
		Usage:     "load a module at boot no more",
		ArgsUsage: "MODULE",
		Description: examples("Its options stay. A module whose device is there, or that another needs, is loaded all the same: that is what kmodctl\n"+
			"deny is for. Other files that load it at boot are told.",
			"kmodctl disable nbd"),
		BashComplete: completeModules(e),
		Action: func(c *cli.Context) error {
			s, err := e.oneSetting(c)
			if err != nil {
				return err
			}
			err = s.rewrite(c.Context, loader.ModulesLoadFile, func(text []byte) ([]byte, error) { return loader.SetLoad(text, s.module, false), nil })
			if err != nil {
				return err
			}
			for _, at := range s.loadedBy() {
				s.note("%s is loaded at boot by %s", s.module, at)
			}
			return s.finish()
		},
	}
}

// modulesLoadDirs are those of modules-load.d(5), the first one first: a file hides those of its name in the others.
var modulesLoadDirs = []string{"/etc/modules-load.d", "/run/modules-load.d", "/usr/local/lib/modules-load.d", "/usr/lib/modules-load.d", "/lib/modules-load.d"}

// loadedBy are the other places from which the module is loaded at boot.
func (s *setting) loadedBy() (places []string) {
	seen := map[string]bool{path.Base(loader.ModulesLoadFile): true}
	for _, dir := range modulesLoadDirs {
		files, _ := s.root.ReadDir(dir)
		for _, f := range files {
			if seen[f.Name()] || !strings.HasSuffix(f.Name(), ".conf") {
				continue
			}
			seen[f.Name()] = true
			text, _ := s.root.ReadFile(path.Join(dir, f.Name()))
			n := 0
			for line := range bytes.Lines(text) {
				n++
				if ko.NormalizeName(strings.TrimSpace(string(line))) == s.module {
					places = append(places, fmt.Sprintf("%s:%d", path.Join(dir, f.Name()), n))
				}
			}
		}
	}
	return places
}
