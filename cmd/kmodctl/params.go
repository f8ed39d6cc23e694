package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/urfave/cli/v2"

	"kmodctl/internal/ko"
	"kmodctl/loader"
)

func cmdParams(e *env) *cli.Command {
	return &cli.Command{
		Name:      "params",
		Usage:     "print the parameters of a module with their live values, or change those that can be changed while it runs",
		ArgsUsage: "MODULE|FILE.ko [PARAMETER=VALUE ...]",
		Description: examples("SET says of a loaded module which parameters root can change live, and which are taken at load only. Names and\n"+
			"values are checked before anything is written, and nothing is written when one of several cannot be set. What is\n"+
			"set lasts until the module is unloaded; kmodctl options keeps it.",
			"kmodctl params snd_hda_intel", "kmodctl params params count=7 verbose=1", "kmodctl params params count=7 --dry-run"),
		BashComplete: completeParams(e),
		Action: func(c *cli.Context) error {
			if c.NArg() == 0 {
				return usagef("params takes a module: kmodctl params NAME [PARAMETER=VALUE ...]")
			}
			return e.params(c.Context, c.Args().First(), c.Args().Tail())
		},
	}
}

// paramsDocument is what params prints.
type paramsDocument struct {
	DryRun  bool          `json:"dry_run"`
	Module  string        `json:"module"`
	Live    string        `json:"live,omitempty"` // as in info; "built in" when it is part of the image
	Params  []paramValue  `json:"params"`
	Changes []paramChange `json:"changes,omitempty"`
}

// paramValue is a parameter: what the file says of it, and what runs.
type paramValue struct {
	ko.Param
	Value    *string `json:"value,omitempty"` // nil when it is not loaded, or not shown to this user
	Writable bool    `json:"writable"`        // while it is loaded
}

// paramChange is a parameter that was, or would be, set.
type paramChange struct {
	Name string `json:"name"`
	From string `json:"from"`
	To   string `json:"to"`
}

// builtIn is the state of a module that is part of the kernel image.
const builtIn = "built in"

func (e *env) params(ctx context.Context, name string, sets []string) error {
	if len(sets) > 0 && !e.root.IsHost() {
		return usagef("parameters are set in the running kernel: --root %s has none (kmodctl options is for the next load)", e.root)
	}
	m, live, err := e.paramsOf(ctx, name)
	if err != nil {
		return err
	}
	doc := paramsDocument{DryRun: e.dryRun, Module: m.Name, Live: m.live}
	if doc.Changes, err = planParams(m, live, sets); err != nil {
		return err
	}
	for i, c := range doc.Changes {
		if e.dryRun {
			e.would("would set %s of %s: %q -> %q", c.Name, m.Name, c.From, c.To)
			continue
		}
		if doc.Changes[i].To, err = loader.SetParam(e.root, m.Name, c.Name, c.To); err != nil {
			return err
		}
		e.changed("set %s of %s: %q -> %q", c.Name, m.Name, c.From, doc.Changes[i].To)
	}
	switch {
	case e.json:
		if len(doc.Changes) > 0 && !e.dryRun {
			if live, err = loader.LiveParams(e.root, m.Name); err != nil {
				return err
			}
		}
		doc.Params = withValues(m.Params, live)
		return e.document("params", doc)
	case len(sets) > 0:
		return nil
	}
	return e.printParams(m, withValues(m.Params, live))
}

// paramsOf finds a module and its live parameters, nil when it is not loaded. A module of which there is no file is known by
// what the kernel shows of it.
func (e *env) paramsOf(ctx context.Context, name string) (m namedModule, live []loader.LiveParam, err error) {
	f, err := e.finder(ctx, "")
	if err == nil {
		defer f.close()
	}
	if err == nil || isModuleFile(name) {
		m, err = f.find(name)
	}
	if !e.root.IsHost() || err != nil && isModuleFile(name) {
		return m, nil, err
	}
	if err != nil {
		m = namedModule{Info: &ko.Info{Name: ko.NormalizeName(name)}}
	}
	live, liveErr := loader.LiveParams(e.root, m.Name)
	var absent *loader.NotLiveError
	switch {
	case errors.As(liveErr, &absent):
		return m, nil, err
	case m.live == "" && m.path == "":
		m.live = builtIn
	case m.live == "":
		m.live = "live"
	}
	return m, live, liveErr
}

// withValues joins what the file says of the parameters with what runs, which may have others.
func withValues(declared []ko.Param, live []loader.LiveParam) []paramValue {
	all := []paramValue{}
	for _, p := range declared {
		v := paramValue{Param: p}
		if at := findParam(live, p.Name); at >= 0 {
			v.take(live[at])
		}
		all = append(all, v)
	}
	for _, l := range live {
		if !slices.ContainsFunc(declared, func(p ko.Param) bool { return ko.NormalizeName(p.Name) == ko.NormalizeName(l.Name) }) {
			v := paramValue{Param: ko.Param{Name: l.Name}}
			v.take(l)
			all = append(all, v)
		}
	}
	return all
}

func (v *paramValue) take(l loader.LiveParam) {
	v.Writable = l.Writable
	if l.Readable {
		v.Value = &l.Value
	}
}

func findParam(live []loader.LiveParam, name string) int {
	return slices.IndexFunc(live, func(l loader.LiveParam) bool { return ko.NormalizeName(l.Name) == ko.NormalizeName(name) })
}

// planParams holds what is to be set against the module and what runs. The error is a *loader.ParamError, or a loadTimeError.
func planParams(m namedModule, live []loader.LiveParam, sets []string) (changes []paramChange, err error) {
	var late []string
	for _, set := range sets {
		name, value, ok := strings.Cut(set, "=")
		if !ok || name == "" {
			return nil, usagef("params %s: %q is not PARAMETER=VALUE", m.Name, set)
		}
		at := findParam(live, name)
		if at < 0 || slices.ContainsFunc(m.Params, func(p ko.Param) bool { return ko.NormalizeName(p.Name) == ko.NormalizeName(name) }) {
			if err := loader.CheckParam(m.Info, set); err != nil {
				return nil, err
			}
		}
		if at < 0 || !live[at].Writable {
			late = append(late, name)
		} else {
			changes = append(changes, paramChange{live[at].Name, live[at].Value, value})
		}
	}
	if len(late) > 0 {
		return nil, loadTimeError{module: m.Name, state: m.live, late: late, sets: sets}
	}
	return changes, nil
}

// loadTimeError is an attempt to set what can be given only when the module is loaded.
type loadTimeError struct {
	module, state string // "" when it is not loaded, builtIn when it is part of the kernel image
	late          []string
	sets          []string
}

func (l loadTimeError) Error() string {
	what := fmt.Sprintf("set %s of %s: ", strings.Join(l.late, ", "), l.module)
	switch l.state {
	case "":
		return what + "it is not loaded"
	case builtIn:
		return what + "it is built in, and takes that at boot only"
	}
	return what + "it takes that only when it is loaded"
}

// remedy is the command that gives the module what it was to be set to.
func (l loadTimeError) remedy() string {
	sets := strings.Join(shellWords(l.sets), " ")
	switch l.state {
	case "":
		return fmt.Sprintf("kmodctl load %s %s", l.module, sets)
	case builtIn:
		return fmt.Sprintf("%s.%s on the kernel's command line, then reboot", l.module, strings.Join(l.sets, " "+l.module+"."))
	}
	return fmt.Sprintf("kmodctl reload %s %s", l.module, sets)
}

// shellWords quotes what a shell would take apart.
func shellWords(words []string) (quoted []string) {
	for _, w := range words {
		if strings.ContainsFunc(w, func(r rune) bool {
			return !strings.ContainsRune("_-+=.,:/@%", r) && !unicode.IsLetter(r) && !unicode.IsDigit(r)
		}) {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		quoted = append(quoted, w)
	}
	return quoted
}

func (e *env) printParams(m namedModule, all []paramValue) error {
	if len(all) == 0 {
		e.say("%s has no parameters", m.Name)
		return nil
	}
	t := e.table("PARAMETER", "TYPE", "VALUE", "SET", "DESCRIPTION")
	for _, p := range all {
		value, when := "", ""
		if m.live != "" {
			when = "at load"
		}
		if p.Value != nil {
			value = fmt.Sprintf("%q", *p.Value)
			if !strings.ContainsAny(*p.Value, " \t\n") && *p.Value != "" {
				value = *p.Value
			}
		}
		if p.Writable {
			when = "live"
		}
		t.row(p.Name, p.Type, value, when, strings.Join(strings.Fields(p.Description), " "))
	}
	if m.live == anotherBuild {
		e.say("note: %s; types and descriptions are of %s", m.live, m.path)
	}
	return t.flush()
}
