package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"kmodctl/internal/ko"
	"kmodctl/loader"
)

func cmdUnload(e *env) *cli.Command {
	return &cli.Command{
		Name:      "unload",
		Usage:     "remove a module from the running kernel",
		ArgsUsage: "MODULE ...",
		Description: examples("A module that is in use stays, and who uses it is told: modules, processes that have a device of it open,\n"+
			"mounts, sockets. With --with-holders the modules that use it go first, with -r those that it needed and\n"+
			"that nothing uses any more go last; --dry-run shows them. A remove line of modprobe.d is shown, and run with\n"+
			"--run-commands only.",
			"kmodctl unload hello", "kmodctl unload -r stack_user", "kmodctl unload --with-holders stack --dry-run", "kmodctl unload chardev --wait 10s"),
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "recursive", Aliases: []string{"r"}, Usage: "also unload dependencies that became unused"},
			&cli.BoolFlag{Name: "run-commands", Usage: "run the commands of remove lines of modprobe.d in place of the removal, as modprobe does"},
		}, removeFlags()...),
		BashComplete: completeLive(e),
		Action: func(c *cli.Context) error {
			if c.NArg() == 0 {
				return usagef("unload takes at least one module: kmodctl unload NAME")
			}
			if e.json && c.NArg() > 1 {
				return usagef("unload prints one document for one module: name one with --json")
			}
			for _, name := range c.Args().Slice() {
				if isModuleFile(name) {
					return usagef("unload takes the name of a module, not a file: kmodctl unload %s", ko.NameOfFile(name))
				}
			}
			if _, err := e.running(); err != nil {
				return err
			}
			l, err := e.machine(c)
			if err != nil {
				return err
			}
			defer l.Close()
			if err := waiting(c, l); err != nil {
				return err
			}
			for _, name := range c.Args().Slice() {
				req := loader.UnloadRequest{Name: name, WithHolders: c.Bool("with-holders"), WithUnused: c.Bool("recursive"), Wait: l.Wait > 0,
					Config: loader.ReadConfig(e.root, false), RunCommands: c.Bool("run-commands")}
				if err := e.unload(c.Context, l, req); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// unload plans the removal of a module and carries it out. Of one that is in use
// it also finds out by whom.
func (e *env) unload(ctx context.Context, l *loader.Loader, req loader.UnloadRequest) error {
	state, err := loader.ReadState(l.Root)
	if err != nil {
		return fmt.Errorf("unload %s: %w", req.Name, err)
	}
	req.State = state
	plan, err := loader.PlanUnload(req)
	if err == nil {
		return e.act(ctx, l, plan)
	}
	return e.whoUses(err)
}

// whoUses adds to the error of a module in use who uses it, and prints that as a
// document too.
func (e *env) whoUses(err error) error {
	used := inUse(err)
	if used == nil {
		return err
	}
	used.Users = loader.Users(e.root, used.Module)
	if e.json {
		err = errors.Join(e.document("result", ended{InUse: used}), err)
	}
	return err
}
