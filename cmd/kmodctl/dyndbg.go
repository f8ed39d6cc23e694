package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"kmodctl/loader"
)

func cmdDyndbg(e *env) *cli.Command {
	return &cli.Command{
		Name:      "dyndbg",
		Usage:     "print the debug messages that a live module can print, or turn them on and off",
		ArgsUsage: "MODULE [on|off]",
		Description: examples("These are pr_debug, dev_dbg and their like: the kernel's dynamic debug. They go to the kernel log.\n"+
			"on lasts until the module is unloaded; to see what it says while it is loaded: kmodctl load NAME dyndbg=+p.",
			"kmodctl dyndbg xhci_hcd", "kmodctl dyndbg xhci_hcd on", "kmodctl log -f xhci_hcd"),
		BashComplete: func(c *cli.Context) {
			if c.NArg() == 0 {
				completeLive(e)(c)
			} else if !completing(c, e) {
				fmt.Fprintln(e.out, "on\noff")
			}
		},
		Action: func(c *cli.Context) error {
			name, how := c.Args().First(), c.Args().Get(1)
			if c.NArg() == 0 || c.NArg() > 2 || how != "" && how != "on" && how != "off" {
				return usagef("dyndbg takes a module, and on or off: kmodctl dyndbg %s", c.Command.ArgsUsage)
			}
			if err := loader.CheckName(name); err != nil {
				return usageError{err.Error()}
			}
			if !e.root.IsHost() {
				return usagef("debug messages are the running kernel's: --root %s has none", e.root)
			}
			return e.dyndbg(name, how)
		},
	}
}

func (e *env) dyndbg(name, how string) error {
	messages, err := loader.DebugMessages(e.root, name)
	if err == nil && how != "" && len(messages) == 0 {
		err = fmt.Errorf("it has no debug messages")
	}
	if err == nil && how != "" && !e.dryRun {
		if err = loader.SetDebug(e.root, name, how == "on"); err == nil {
			messages, err = loader.DebugMessages(e.root, name)
		}
	}
	if err != nil {
		return fmt.Errorf("dyndbg %s: %w", name, err)
	}
	on := 0
	for _, m := range messages {
		if m.On() {
			on++
		}
	}
	switch {
	case e.json:
		if messages == nil {
			messages = []loader.DebugMessage{}
		}
		return e.document("dyndbg", map[string]any{"dry_run": e.dryRun, "module": name, "messages": messages})
	case how != "" && e.dryRun:
		e.would("would turn %s the %d debug messages of %s, of which %d are on", how, len(messages), name, on)
		return nil
	case how != "":
		e.changed("of %d debug messages of %s %d are on", len(messages), name, on)
		return nil
	}
	t := e.table("AT", "FUNCTION", "FLAGS", "MESSAGE")
	for _, m := range messages {
		t.row(fmt.Sprintf("%s:%d", m.File, m.Line), m.Function, m.Flags, m.Text)
	}
	return t.flush()
}
