package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/loader"
	"kmodctl/registry"
)

// Exit codes, the contract of docs/cli.md. TestExitCodes holds the table.
const (
	exitDone        = 0   // done, or nothing to do
	exitFailed      = 1   // failed
	exitUsage       = 2   // the command line is wrong
	exitPartly      = 3   // some of several failed
	exitNotFound    = 4   // no such package, module, kernel or file
	exitBusy        = 5   // another kmodctl holds the registry
	exitBuild       = 6   // a build failed
	exitRefused     = 7   // the kernel or a policy refused
	exitInterrupted = 130 // SIGINT
	exitTerminated  = 143 // SIGTERM
)

// usageError is a command line that cannot be carried out as written.
type usageError struct{ text string }

func (u usageError) Error() string { return u.text }

func usagef(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

// partly is the outcome of a command of which some of several steps failed. The
// steps' errors have been shown already.
type partly struct {
	failed, of int
	err        error // the last one: decides the code when all failed
}

func (p partly) Error() string { return fmt.Sprintf("%d of %d failed", p.failed, p.of) }
func (p partly) Unwrap() error { return p.err }

// exitCode is the one place that knows what each error exits with.
func exitCode(err error) int {
	var (
		usage    usageError
		some     partly
		sig      interrupted
		noSource *registry.NotFoundError
		noKernel *kernel.NotFoundError
		noModule *loader.NotFoundError
		kbuild   *build.Error
		refused  *loader.KernelError
		inUse    *loader.InUseError
	)
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &sig) && sig.sig == syscall.SIGTERM:
		return exitTerminated
	case errors.As(err, &sig), errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &some) && some.failed < some.of:
		return exitPartly
	case errors.As(err, &noSource), errors.As(err, &noKernel), errors.As(err, &noModule):
		return exitNotFound
	case errors.As(err, &kbuild):
		return exitBuild
	case errors.As(err, &refused), errors.As(err, &inUse), errors.Is(err, loader.ErrNoModules),
		errors.Is(err, loader.ErrNoCapability), errors.Is(err, loader.ErrModulesDisabled), errors.Is(err, loader.ErrPermanent):
		return exitRefused
	}
	return exitFailed
}
