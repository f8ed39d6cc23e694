package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

func cmdKernels(e *env) *cli.Command {
	return &cli.Command{
		Name:        "kernels",
		Usage:       "list the kernels of this machine and what each lacks for a build",
		Description: examples("Sorted as versions, oldest first.", "kmodctl kernels", "kmodctl kernels --json", "kmodctl --root /mnt/image kernels"),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			all, err := e.kernels(nil)
			if err != nil {
				return err
			}
			if e.json {
				return e.document("kernels", map[string]any{"kernels": all})
			}
			t := e.table("RELEASE", "ARCH", "RUNNING", "BUILD TREE", "COMPILER", "MISSING")
			for _, k := range all {
				running, tree, cc := "", "", ""
				if k.Running {
					running = "yes"
				}
				if k.Tree != nil {
					tree, cc = k.Tree.Path, k.Tree.CC
				}
				var missing []string
				for _, m := range k.Missing {
					text := m.What
					if m.Remedy != "" {
						text += ": " + m.Remedy
					}
					missing = append(missing, text)
				}
				t.row(k.Name, k.Arch, running, tree, cc, strings.Join(missing, "; "))
			}
			return t.flush()
		},
	}
}
