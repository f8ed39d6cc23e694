package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"

	"kmodctl/build"
)

// version is set by the Makefile from git.
var version = "devel"

func cmdVersion(e *env) *cli.Command {
	return &cli.Command{
		Name:        "version",
		Usage:       "print kmodctl's version",
		Description: examples("The builder's number is part of what an artifact is made from.", "kmodctl version"),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			v := version
			if info, ok := debug.ReadBuildInfo(); ok && v == "devel" && info.Main.Version != "" {
				v = info.Main.Version
			}
			if e.json {
				return e.document("version", map[string]string{"version": v, "go": runtime.Version(), "builder": build.Builder})
			}
			_, err := fmt.Fprintf(e.out, "kmodctl %s (%s, builder %s)\n", v, runtime.Version(), build.Builder)
			return err
		},
	}
}
