package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"kmodctl/loader"
)

// timeoutFlag is --timeout of the commands that make a module's init or exit function run.
func timeoutFlag() cli.Flag {
	return &cli.DurationFlag{Name: "timeout", Value: loader.DefaultTimeout, DefaultText: "3m",
		Usage: "give a module's init or exit function up after `DURATION`: one that crashed never returns"}
}

// machine is the loader of a command that has timeoutFlag.
func (e *env) machine(c *cli.Context) (*loader.Loader, error) {
	timeout := loader.DefaultTimeout
	if c.IsSet("timeout") {
		timeout = c.Duration("timeout")
	}
	if timeout <= 0 {
		return nil, usagef("--timeout %v is not above zero", timeout)
	}
	l := loader.New(timeout)
	l.Patience = e.patience
	return l, nil
}

// act runs a loader's plan, or prints it.
func (e *env) act(ctx context.Context, l *loader.Loader, plan *loader.Plan) error {
	if e.dryRun {
		if e.json {
			return e.document("plan", plan)
		}
		e.printPlan(plan)
		return nil
	}
	result, err := l.Run(ctx, plan)
	e.tell(result)
	for _, note := range notes(plan, result) {
		e.say("note: %s", note)
	}
	if e.json && (err == nil || errors.As(err, new(*loader.InUseError))) {
		err = errors.Join(e.document("result", ended{result, inUse(err)}), err)
	}
	return err
}

// ended is what a plan that was run, or could not be made, came to.
type ended struct {
	loader.Result
	InUse *loader.InUseError `json:"in_use,omitempty"`
}

// inUse is the error of a module with users in err, nil if there is none.
func inUse(err error) *loader.InUseError {
	var used *loader.InUseError
	errors.As(err, &used)
	return used
}

// printPlan prints the steps of a dry run.
func (e *env) printPlan(plan *loader.Plan) {
	for _, s := range plan.Steps {
		line := s.Action + " " + s.Module
		switch {
		case s.Action == loader.Insert && s.Path != "":
			line = strings.TrimSpace(s.Action + " " + s.Path + " " + s.Params)
		case s.Action == loader.Command || s.Action == loader.RemoveCommand:
			line = s.Action + " " + s.Module + ": " + s.Command
		}
		fmt.Fprintf(e.out, "%s (%s)\n", line, s.Reason)
	}
	for _, note := range plan.Notes {
		e.say("note: %s", note)
	}
}

// tell says what became of each step.
func (e *env) tell(result loader.Result) {
	for _, done := range result.Done {
		line := done.Module + ": " + done.Outcome
		if done.Reason != done.Outcome && done.Reason != "asked" {
			line += " (" + done.Reason + ")"
		}
		if done.Error != "" {
			line += ": " + done.Error
		}
		e.say("%s", line)
		for _, line := range done.Log {
			e.say("  kernel log: %s", line)
		}
		for _, d := range done.Differences {
			e.say("  parameter %s is %q, asked for was %q: %s", d.Param, d.Have, d.Asked, remedy(done.Module, d))
		}
	}
}

// remedy is how a live module gets the value that it was asked to have.
func remedy(module string, d loader.Difference) string {
	if d.Writable {
		return fmt.Sprintf("kmodctl params %s %s=%s", module, d.Param, d.Asked)
	}
	return fmt.Sprintf("it changes only by kmodctl reload %s %s=%s", module, d.Param, d.Asked)
}

// notes are what a plan and its steps have to remark, each once.
func notes(plan *loader.Plan, result loader.Result) []string {
	all := slices.Clone(plan.Notes)
	for _, done := range result.Done {
		for _, n := range done.Notes {
			if !slices.Contains(all, n) {
				all = append(all, n)
			}
		}
	}
	return all
}

// removeFlags are those of the commands that remove modules.
func removeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "with-holders", Usage: "remove the modules that use it first"},
		&cli.DurationFlag{Name: "wait", Usage: "wait up to `DURATION` for its users to go away"},
		timeoutFlag(),
	}
}

// waiting reads --wait into l.
func waiting(c *cli.Context, l *loader.Loader) error {
	if l.Wait = c.Duration("wait"); l.Wait < 0 {
		return usagef("--wait %v is below zero", l.Wait.Round(time.Millisecond))
	}
	return nil
}
