package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"kmodctl/loader"
)

// act runs a loader's plan, or prints it.
func (e *env) act(ctx context.Context, plan *loader.Plan) error {
	if e.dryRun {
		if e.json {
			return e.document("plan", plan)
		}
		for _, s := range plan.Steps {
			line := s.Action + " " + s.Module
			if s.Path != "" && s.Action == loader.Insert {
				line = strings.TrimSpace(s.Action + " " + s.Path + " " + s.Params)
			}
			if s.Action == loader.Command {
				line += ": " + s.Command
			}
			fmt.Fprintf(e.out, "%s (%s)\n", line, s.Reason)
		}
		for _, note := range plan.Notes {
			e.say("note: %s", note)
		}
		return nil
	}
	l := loader.New()
	result, err := l.Run(ctx, plan)
	for _, done := range result.Done {
		line := done.Module + ": " + done.Outcome
		if done.Reason != done.Outcome && done.Reason != "asked" {
			line += " (" + done.Reason + ")"
		}
		e.say("%s", line)
		for _, line := range done.Log {
			e.say("  kernel log: %s", line)
		}
	}
	for _, note := range notes(plan, result) {
		e.say("note: %s", note)
	}
	if err == nil && e.json {
		return e.document("result", result)
	}
	return err
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
