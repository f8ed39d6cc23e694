package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"github.com/xrash/smetrics"
)

// arrange puts flags before arguments, since urfave/cli v2 stops reading flags
// at the first argument: `build hello -k R` becomes `build -k R -- hello`, and a
// global flag is found behind the command too. Values keep their commas.
func arrange(app *cli.App, argv []string) ([]string, error) {
	var global, local, args []string
	var cmd *cli.Command
	words := argv[1:]
	for i := 0; i < len(words); i++ {
		word := words[i]
		if word == "--" {
			args = append(args, words[i+1:]...)
			break
		}
		if !strings.HasPrefix(word, "-") || word == "-" {
			if cmd == nil {
				if word == "help" { // kmodctl help build
					global = append(global, "--help")
					continue
				}
				if cmd = app.Command(word); cmd == nil {
					return nil, unknownCommand(app, word)
				}
				continue
			}
			args = append(args, word)
			continue
		}
		name, _, hasValue := strings.Cut(strings.TrimLeft(word, "-"), "=")
		flag, into := findFlag(app.Flags, name), &global
		if cmd != nil && (flag == nil || findFlag(cmd.Flags, name) != nil) {
			flag, into = findFlag(cmd.Flags, name), &local
		}
		switch {
		case name == "help" || name == "h":
		case name == "version" && cmd == nil:
			cmd = app.Command("version")
			continue
		case flag == nil:
			return nil, unknownFlag(app, cmd, word, name)
		}
		*into = append(*into, word)
		if takesValue(flag) && !hasValue {
			if i++; i == len(words) {
				return nil, usagef("flag %s needs a value", word)
			}
			*into = append(*into, words[i])
		}
	}
	if i := slices.Index(global, "--help"); i >= 0 && cmd != nil {
		global, local = slices.Delete(global, i, i+1), append(local, "--help")
	}
	out := append([]string{argv[0]}, global...)
	if cmd != nil {
		out = append(append(out, cmd.Name), local...)
		out = append(append(out, "--"), args...)
	}
	return out, nil
}

// splitPackage takes NAME or NAME@VERSION apart. An empty version is not the newest one: remove
// would take that.
func splitPackage(arg string) (name, version string, err error) {
	name, version, named := strings.Cut(arg, "@")
	switch {
	case name == "":
		return "", "", usagef("the name of a package is empty (an unset variable?)")
	case named && version == "":
		return "", "", usagef("%s: the version is empty (an unset variable?)", arg)
	}
	return name, version, nil
}

func findFlag(flags []cli.Flag, name string) cli.Flag {
	for _, f := range flags {
		for _, n := range f.Names() {
			if n == name {
				return f
			}
		}
	}
	return nil
}

func takesValue(f cli.Flag) bool {
	d, ok := f.(cli.DocGenerationFlag)
	return ok && d.TakesValue()
}

func unknownCommand(app *cli.App, name string) error {
	var names []string
	for _, c := range app.Commands {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	return usagef("unknown command %q%s", name, nearestOf(name, names))
}

func unknownFlag(app *cli.App, cmd *cli.Command, word, name string) error {
	flags, of := app.Flags, ""
	if cmd != nil {
		flags, of = slices.Concat(cmd.Flags, app.Flags), " of "+cmd.Name
	}
	var names []string
	for _, f := range flags {
		for _, n := range f.Names() {
			if len(n) > 1 {
				names = append(names, "--"+n)
			}
		}
	}
	return usagef("unknown flag %s%s%s", word, of, nearestOf("--"+name, names))
}

// nearestOf names the one of names that may have been meant.
func nearestOf(name string, names []string) string {
	best, distance := "", 3
	for _, n := range names {
		if d := smetrics.WagnerFischer(name, n, 1, 1, 1); d < distance {
			best, distance = n, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (nearest: %q)", best)
}
