package main

import (
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
		Description: examples("With -r also the modules that it needed and that nothing uses any more.",
			"kmodctl unload hello", "kmodctl unload -r stack_user"),
		Flags:        []cli.Flag{&cli.BoolFlag{Name: "recursive", Aliases: []string{"r"}, Usage: "also unload dependencies that became unused"}},
		BashComplete: completeLive(e),
		Action: func(c *cli.Context) error {
			if c.NArg() == 0 {
				return usagef("unload takes at least one module: kmodctl unload NAME")
			}
			if _, err := e.running(); err != nil {
				return err
			}
			if e.json && c.NArg() > 1 {
				return usagef("unload prints one document for one module: name one with --json")
			}
			for _, name := range c.Args().Slice() {
				if isModuleFile(name) {
					return usagef("unload takes the name of a module, not a file: kmodctl unload %s", ko.NameOfFile(name))
				}
				state, err := loader.ReadState(e.root)
				if err != nil {
					return fmt.Errorf("unload %s: %w", name, err)
				}
				plan, err := loader.PlanUnload(name, c.Bool("recursive"), state)
				if err != nil {
					return err
				}
				if err := e.act(c.Context, plan); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
