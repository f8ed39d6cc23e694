package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"kmodctl/internal/ko"
	"kmodctl/loader"
)

func cmdReload(e *env) *cli.Command {
	return &cli.Command{
		Name:      "reload",
		Usage:     "replace a live module by the build that is installed now",
		ArgsUsage: "MODULE|FILE.ko [PARAMETER=VALUE ...]",
		Description: examples("The new file is checked before the old module is removed. Parameters keep their live values, unless\n"+
			"modprobe.d or the command line set them. A module that is in use stays, and who uses it is told: with\n"+
			"--with-holders the modules that use it are replaced too, with --wait other users are waited for.\n"+
			"If the kernel refuses the new module, the old one is loaded again from its file. Without that file, which is\n"+
			"found by the build-id of the live module, nothing is removed unless --force.",
			"kmodctl reload hello", "kmodctl reload hello count=3", "kmodctl reload ./hello.ko", "kmodctl reload --with-holders stack --dry-run"),
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "force", Usage: "remove the live module although there is no way back to it"},
			&cli.BoolFlag{Name: "unchecked", Usage: "remove the live module although the kernel would refuse the new one"},
		}, removeFlags()...),
		BashComplete: completeLive(e),
		Action: func(c *cli.Context) error {
			if c.NArg() == 0 {
				return usagef("reload takes a module: kmodctl reload NAME [PARAMETER=VALUE ...]")
			}
			if err := checkParams(c.Args().First(), c.Args().Tail()); err != nil {
				return err
			}
			if _, err := e.running(); err != nil {
				return err
			}
			machine, err := e.machine(c)
			if err != nil {
				return err
			}
			defer machine.Close()
			if err := waiting(c, machine); err != nil {
				return err
			}
			l, err := e.loading(c.Context, "")
			if err != nil {
				return err
			}
			defer l.own.close()
			l.machine = machine
			if l.state, err = loader.ReadState(e.root); err != nil {
				return fmt.Errorf("reload %s: %w", c.Args().First(), err)
			}
			req := loader.SwapRequest{WithHolders: c.Bool("with-holders"), Wait: machine.Wait > 0, Force: c.Bool("force")}
			return l.reload(c.Context, req, c.Args().First(), c.Args().Tail(), !c.Bool("unchecked"))
		},
	}
}

// reload plans the swap of a live module, checks the new files, and carries it out.
func (l *loading) reload(ctx context.Context, req loader.SwapRequest, name string, params []string, checked bool) error {
	req.Load = loader.LoadRequest{Name: name, Params: params, Index: l.index, Config: l.config, Lookup: l.own.find, State: l.state, Release: l.release}
	if isModuleFile(name) {
		req.Load.Name, req.Load.File = "", name
	}
	req.Old = l.fileOf
	swap, err := loader.PlanSwap(req)
	switch {
	case l.own.err != nil:
		return l.own.err
	case err != nil:
		return l.whoUses(err)
	case checked:
		if err := l.checkSwap(swap); err != nil {
			return err
		}
	}
	if l.dryRun {
		return l.printSwap(swap)
	}
	result, err := l.machine.RunSwap(ctx, swap)
	l.tell(result)
	for _, note := range notes(&loader.Plan{Notes: swap.Notes}, result) {
		l.say("note: %s", note)
	}
	if l.json && (err == nil || inUse(err) != nil) {
		err = errors.Join(l.document("result", ended{result, inUse(err)}), err)
	}
	return err
}

// checkSwap refuses a swap whose new modules the kernel would not take once the old
// ones are gone.
func (l *loading) checkSwap(swap *loader.Swap) error {
	after := &loader.State{Builtin: l.state.Builtin}
	for _, m := range l.state.Modules {
		if !slices.ContainsFunc(swap.Remove.Steps, func(s loader.Step) bool { return s.Module == m.Name }) {
			after.Modules = append(after.Modules, m)
		}
	}
	findings := loader.Check(swap.Insert, loader.NewTarget(l.root, l.release, l.index, l.own.find, after))
	return l.ofPackage(refusedBy(l.release, findings))
}

func (l *loading) printSwap(swap *loader.Swap) error {
	if l.json {
		return l.document("reload-plan", swap)
	}
	l.printPlan(swap.Remove)
	l.printPlan(swap.Insert)
	for _, s := range swap.Back.Steps {
		fmt.Fprintf(l.out, "if that fails: insert %s\n", s.Path)
	}
	for _, note := range swap.Notes {
		l.say("note: %s", note)
	}
	return nil
}

// fileOf finds the file that a live module came from, by its build-id: the one that
// would be loaded now, or any that the registry has built for the kernel.
func (l *loading) fileOf(live loader.Live) (string, bool) {
	if live.BuildID == "" {
		return "", false
	}
	is := func(path string) bool {
		info, err := ko.Open(path)
		return err == nil && info.BuildID == live.BuildID
	}
	indexed, _, _ := l.index.Find(live.Name)
	if indexed != "" && is(indexed) {
		return indexed, true
	}
	if l.own.kept == nil && l.own.err == nil {
		l.own.open()
	}
	if l.own.err != nil {
		return "", false
	}
	if path, ok := l.own.kept.find(live.Name); ok && is(path) {
		return path, true
	}
	m, ok, err := l.own.reg.BuildOf(l.release, live.BuildID)
	if err != nil || !ok {
		l.own.err = err
		return "", false
	}
	path := l.own.reg.BlobPath(m.Digest)
	digest, err := fileDigest(path)
	return path, err == nil && digest == m.Digest
}
