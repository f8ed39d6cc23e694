package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"kmodctl/loader"
)

func cmdList(e *env) *cli.Command {
	return &cli.Command{
		Name:        "list",
		Usage:       "list the modules that the kernel has, and which of them are ours",
		Description: examples("SIZE is in bytes; USED BY are the modules that need it; PACKAGE is set where the registry built it.", "kmodctl list", "kmodctl list --json"),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			return e.list(c.Context)
		},
	}
}

// liveModule is one line of list.
type liveModule struct {
	loader.Live
	Package string `json:"package,omitempty"` // NAME@VERSION when the registry has a module of that name
	Note    string `json:"note,omitempty"`    // whether what is live is another build than the registry's
}

func (e *env) list(ctx context.Context) error {
	release, err := e.running()
	if err != nil {
		return err
	}
	state, err := loader.ReadState(e.root)
	if err != nil {
		return fmt.Errorf("list modules: %w", err)
	}
	reg, err := e.reader(ctx)
	if err != nil {
		return err
	}
	defer reg.Close()
	kept, err := e.modulesOf(reg, release)
	if err != nil {
		return err
	}
	modules := []liveModule{}
	for _, live := range state.Modules {
		m := liveModule{Live: live}
		if ours, ok := kept.modules[live.Name]; ok {
			m.Package = ours.Package + "@" + ours.Version
			if otherBuild(live, ours.Module) {
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
