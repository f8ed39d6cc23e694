package main

import "github.com/urfave/cli/v2"

func cmdResign(e *env) *cli.Command {
	return &cli.Command{
		Name:      "resign",
		Usage:     "sign again what another key has signed, as after key rotate",
		ArgsUsage: "[NAME|NAME@VERSION ...]",
		Description: examples("With the key that signs today. Modules that are signed by it are left alone, and so are unsigned ones\n"+
			"unless the configuration has them signed. Nothing is built. Each kernel is one change: a module is\n"+
			"at every moment signed by the old key or by the new one.",
			"kmodctl resign --all", "kmodctl resign hello -k 6.1.0-56-amd64", "kmodctl resign --all --dry-run"),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Usage: "all packages"},
			kernelFlag("only for kernel `RELEASE` (repeatable)"),
		},
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			return e.signInstalled(c.Context, signingCommand{"resign", c.Args().Slice(), c.Bool("all"), c.StringSlice("kernel"), true})
		},
	}
}
