package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"kmodctl/internal/ko"
	"kmodctl/loader"
)

func cmdList(e *env) *cli.Command {
	return &cli.Command{
		Name:      "list",
		Usage:     "list the modules that the kernel has, and which of them are ours",
		ArgsUsage: "[MODULE ...]",
		Description: examples("SIZE is in bytes; USED BY are the modules that need it; TAINT are the kernel's letters: O out of tree, E unsigned, P\n"+
			"proprietary; PACKAGE is set where the registry built it. Of modules that are named, one that is not loaded is an error.",
			"kmodctl list", "kmodctl list --json", "kmodctl list hello || kmodctl load hello"),
		BashComplete: completeLive(e),
		Action:       func(c *cli.Context) error { return e.list(c.Context, c.Args().Slice()) },
	}
}

// liveModule is one line of list.
type liveModule struct {
	loader.Live
	Package string `json:"package,omitempty"` // NAME@VERSION when the registry has a module of that name
	Note    string `json:"note,omitempty"`    // whether what is live is another build than the registry's
}

func (e *env) list(ctx context.Context, names []string) error {
	release, err := e.running()
	if err != nil {
		return err
	}
	state, err := loader.ReadState(e.root)
	if err != nil {
		return fmt.Errorf("list modules: %w", err)
	}
	if len(names) > 0 {
		all := state.Modules
		state.Modules = nil
		for _, name := range names {
			at := slices.IndexFunc(all, func(m loader.Live) bool { return m.Name == ko.NormalizeName(name) })
			if at < 0 {
				return fmt.Errorf("list modules: %w", &loader.NotLiveError{Module: name})
			}
			state.Modules = append(state.Modules, all[at])
		}
	}
	ours, err := e.ownModules(ctx, release)
	if err != nil { // what runs is told all the same
		e.changed("note: whose the modules are is not known: %v", err)
	}
	modules := []liveModule{}
	for _, live := range state.Modules {
		m := liveModule{Live: live}
		if own, ok := ours[live.Name]; ok {
			m.Package = own.Package + "@" + own.Version
			if otherBuild(live, own.Module) {
				m.Note = anotherBuild
			}
		}
		modules = append(modules, m)
	}
	if e.json {
		return e.document("list", map[string]any{"release": release, "modules": modules})
	}
	t := e.table("MODULE", "SIZE", "REFCNT", "USED BY", "STATE", "TAINT", "PACKAGE")
	for _, m := range modules {
		t.row(m.Name, fmt.Sprint(m.Size), fmt.Sprint(m.Refcnt), strings.Join(m.Holders, ","), m.State, m.Taint, strings.TrimSpace(m.Package+" "+m.Note))
	}
	return t.flush()
}

// ownModules are the registry's modules for a kernel, by name.
func (e *env) ownModules(ctx context.Context, release string) (map[string]keptModule, error) {
	reg, err := e.reader(ctx)
	if err != nil {
		return nil, err
	}
	defer reg.Close()
	kept, err := e.modulesOf(reg, release)
	if err != nil {
		return nil, err
	}
	return kept.modules, nil
}
