package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"kmodctl/internal/ko"
	"kmodctl/loader"
)

func cmdOptions(e *env) *cli.Command {
	return &cli.Command{
		Name:      "options",
		Usage:     "print the parameters that a module is given whenever it is loaded, or set them",
		ArgsUsage: "MODULE [PARAMETER=VALUE ...]",
		Description: examples("They are kept in "+loader.ModprobeFile+", which boot, udev and modprobe follow too; lines of yours in it stay.\n"+
			"Names and values are checked against the module, where a kernel has it. Without parameters it prints all that the\n"+
			"module would get, each with the file and line that says so; (not used) is what a later one takes the place of.",
			"kmodctl options snd_hda_intel", "kmodctl options snd_hda_intel power_save=1", "kmodctl options snd_hda_intel --unset power_save"),
		Flags:        []cli.Flag{&cli.StringSliceFlag{Name: "unset", Usage: "take `PARAMETER` away again"}},
		BashComplete: completeParams(e),
		Action: func(c *cli.Context) error {
			if c.NArg() == 0 {
				return usagef("options takes a module: kmodctl options NAME [PARAMETER=VALUE ...]")
			}
			s, err := e.setting(c, c.Args().First())
			if err != nil {
				return err
			}
			return s.options(c, c.Args().Tail(), c.StringSlice("unset"))
		},
	}
}

func (s *setting) options(c *cli.Context, params, unset []string) error {
	if len(params)+len(unset) > 0 {
		if err := s.setOptions(c, params, unset); err != nil {
			return err
		}
		if s.json {
			s.doc.Options = optionLines(s.config().OptionsOf(s.module))
		}
		return s.finish()
	}
	s.doc.Options = optionLines(s.config().OptionsOf(s.module))
	if s.json || len(s.doc.Options) == 0 {
		if len(s.doc.Options) == 0 {
			s.note("%s is given no options", s.module)
		}
		return s.finish()
	}
	t := s.table("OPTION", "AT")
	for _, o := range s.doc.Options {
		at := o.At
		if o.Loses {
			at += " (not used)"
		}
		t.row(o.Option, at)
	}
	if err := t.flush(); err != nil {
		return err
	}
	return s.finish()
}

// setOptions writes options of the module, and notes what stands against them.
func (s *setting) setOptions(c *cli.Context, params, unset []string) error {
	if err := s.builtin(); err != nil {
		return err
	}
	if err := s.check(params); err != nil {
		return err
	}
	err := s.rewrite(c.Context, loader.ModprobeFile, func(text []byte) ([]byte, error) {
		return loader.SetOptions(text, s.module, params, unset)
	})
	if err != nil {
		return err
	}
	for _, d := range s.config().OptionsOf(s.module) {
		if isOurs(d.At, loader.ModprobeFile) {
			continue
		}
		for _, other := range d.Params() {
			switch name := nameOfParam(other); {
			case slices.ContainsFunc(params, func(p string) bool { return nameOfParam(p) == name }) && laterFile(d.At):
				s.note("%s at %s comes later, and is what the module gets", other, d.At)
			case slices.Contains(unset, name):
				s.note("%s at %s stays", other, d.At)
			}
		}
	}
	if s.live() != "" && len(s.doc.Files) > 0 {
		s.note("%s is loaded: what was set is for its next load (kmodctl reload %s)", s.module, s.module)
	}
	return nil
}

// optionLines are the options of lines, with what becomes of those that are named twice.
func optionLines(lines []loader.Directive) (all []optionLine) {
	for _, d := range lines {
		for _, option := range d.Params() {
			for i := range all {
				all[i].Loses = all[i].Loses || nameOfParam(all[i].Option) == nameOfParam(option)
			}
			all = append(all, optionLine{Option: option, At: d.At})
		}
	}
	return all
}

func nameOfParam(param string) string {
	name, _, _ := strings.Cut(param, "=")
	return ko.NormalizeName(name)
}
