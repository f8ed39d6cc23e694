package dkms

import (
	"context"
	"fmt"

	"mvdan.cc/sh/v3/interp"
)

// test is [ and test as bash has them: the interpreter's takes what is no number for 0. args begins with the name.
func (s *shell) test(ctx context.Context, args []string) error {
	hc := interp.HandlerCtx(ctx)
	if args[0] == "[" {
		if args[len(args)-1] != "]" {
			fmt.Fprintln(hc.Stderr, "[: missing ]")
			return interp.ExitStatus(2)
		}
		args = args[:len(args)-1]
	}
	t := &tester{s: s, ctx: ctx, words: args[1:]}
	holds := t.evaluate()
	switch {
	case t.bad != "":
		fmt.Fprintf(hc.Stderr, "%s: %s\n", args[0], t.bad)
		return interp.ExitStatus(2)
	case !holds:
		return interp.ExitStatus(1)
	}
	return nil
}
