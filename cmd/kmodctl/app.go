package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"
)

// run is the whole program: it carries out argv and returns the exit code.
// Data goes to stdout, everything for people to stderr.
func run(ctx context.Context, argv []string, stdout, stderr io.Writer) int {
	e := &env{out: stdout, err: newScreen(stderr)}
	app := newApp(e)
	if last := argv[len(argv)-1]; last != "--generate-bash-completion" {
		arranged, err := arrange(app, argv)
		if err != nil {
			e.report(err)
			return exitCode(err)
		}
		argv = arranged
	}
	err := app.RunContext(ctx, argv)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		e.report(err)
	} else if e.incomplete {
		return exitPartly
	}
	return exitCode(err)
}

func newApp(e *env) *cli.App {
	usage := func(_ *cli.Context, err error, _ bool) error { return usageError{err.Error()} }
	app := &cli.App{
		Name:  "kmodctl",
		Usage: "build, keep, install and load out-of-tree kernel modules",
		Description: "A kmod.toml beside a module's source is all it takes:\n\n" +
			"   kmodctl build DIR     add, build and install it for every kernel that has headers\n" +
			"   kmodctl load NAME     load it into the running kernel, dependencies first\n" +
			"   kmodctl run DIR       try it in a virtual machine, without touching this one\n" +
			"   kmodctl status        what is built and installed for which kernel, and why not",
		HideVersion:               true,
		HideHelpCommand:           true,
		EnableBashCompletion:      true,
		DisableSliceFlagSeparator: true,
		Writer:                    e.out,
		ErrWriter:                 e.err,
		ExitErrHandler:            func(*cli.Context, error) {},
		OnUsageError:              usage,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "root", Value: "/", EnvVars: []string{"KMODCTL_ROOT"}, Usage: "work on the machine below `DIR` (an image, a chroot) instead of this one"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON document on standard output"},
			&cli.BoolFlag{Name: "dry-run", Usage: "print what would be done and change nothing"},
			&cli.DurationFlag{Name: "lock-timeout", EnvVars: []string{"KMODCTL_LOCK_TIMEOUT"}, DefaultText: "as long as it takes", Usage: "wait no longer than `DURATION` (30s, 0) for another kmodctl that changes something, then exit with 5"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "say only what went wrong or was changed"},
			&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "say more: reasons, logs"},
		},
		Before: e.setUp,
		Action: func(c *cli.Context) error { return cli.ShowAppHelp(c) },
		Commands: []*cli.Command{
			cmdNew(e), cmdConvert(e), cmdAdd(e), cmdRemove(e), cmdBuild(e), cmdInstall(e), cmdUninstall(e), cmdResign(e),
			cmdHistory(e), cmdRollback(e), cmdPin(e), cmdUnpin(e), cmdGC(e), cmdExport(e), cmdImport(e), cmdAdopt(e),
			cmdLoad(e), cmdExplain(e), cmdUnload(e), cmdReload(e), cmdList(e), cmdInfo(e), cmdDeps(e),
			cmdParams(e), cmdOptions(e), cmdEnable(e), cmdDisable(e), cmdDeny(e), cmdAllow(e), cmdDyndbg(e), cmdEvents(e), cmdStatus(e), cmdKernels(e),
			cmdVerify(e), cmdRepair(e), cmdKey(e), cmdSign(e),
			cmdSecureBoot(e), cmdHook(e), cmdHooks(e), cmdPackageHook(e), cmdPackage(e), cmdDoctor(e),
			cmdLog(e), cmdRun(e), cmdVersion(e), cmdCompletion(e), cmdGuest(e),
		},
	}
	for _, c := range app.Commands {
		c.OnUsageError = usage
		c.HideHelpCommand = true
	}
	return app
}

// kernelFlag is -k of the commands that take several kernel releases.
func kernelFlag(usage string) cli.Flag {
	return &cli.StringSliceFlag{Name: "kernel", Aliases: []string{"k"}, Usage: usage}
}

// oneArg returns the only argument of a command that takes exactly one.
func oneArg(c *cli.Context, what string) (string, error) {
	if c.NArg() != 1 {
		return "", usagef("%s takes one %s: kmodctl %s %s", c.Command.Name, what, c.Command.Name, c.Command.ArgsUsage)
	}
	return c.Args().First(), nil
}

func noArgs(c *cli.Context) error {
	if c.NArg() > 0 {
		return usagef("%s takes no argument %q", c.Command.Name, c.Args().First())
	}
	return nil
}

// examples formats a command's help text: what it does, then lines to type.
func examples(text string, lines ...string) string {
	for i, line := range lines {
		if i == 0 {
			text += "\n\nExamples:\n"
		}
		text += fmt.Sprintf("\n   %s", line)
	}
	return text
}
