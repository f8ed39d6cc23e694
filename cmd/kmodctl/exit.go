package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"syscall"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/internal/keys"
	"kmodctl/loader"
	"kmodctl/registry"
)

// Exit codes: a contract with scripts. exitTable tells them to docs/cli.md.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitPartly      = 3
	exitNotFound    = 4
	exitBusy        = 5
	exitBuild       = 6
	exitRefused     = 7
	exitInterrupted = 130
	exitTerminated  = 143
)

var exitTable = []struct {
	code    int
	meaning string
}{
	{exitDone, "done, or nothing to do"},
	{exitFailed, "failed"},
	{exitUsage, "the command line is wrong"},
	{exitPartly, "some of several failed"},
	{exitNotFound, "no such package, module, kernel or key"},
	{exitBusy, "another kmodctl was at work for longer than --lock-timeout"},
	{exitBuild, "a build failed"},
	{exitRefused, "the kernel or a policy refused"},
	{exitInterrupted, "interrupted (SIGINT)"},
	{exitTerminated, "terminated (SIGTERM)"},
}

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
		needs    *needsError
		refused  *loader.KernelError
		checked  *loader.CheckError
		policy   *loader.PolicyError
		command  commandError
		inUse    *loader.InUseError
		guest    guestFailed
		program  *exec.Error
		busy     *registry.BusyError
		newer    newerOriginal
		pinned   otherPin
		param    *loader.ParamError
		late     loadTimeError
		denied   stillDenied
		notLive  *loader.NotLiveError
		noKey    noKeyError
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
	case errors.As(err, &noSource), errors.As(err, &noKernel), errors.As(err, &noModule), errors.As(err, &notLive), errors.As(err, &noKey), errors.Is(err, keys.ErrNoKey):
		return exitNotFound
	case errors.As(err, &busy), errors.Is(err, loader.ErrLocked):
		return exitBusy
	case errors.As(err, &kbuild), errors.As(err, &program), errors.As(err, &needs):
		return exitBuild
	case errors.As(err, &guest):
		return guest.code
	case errors.As(err, &refused), errors.As(err, &checked), errors.As(err, &policy), errors.As(err, &command), errors.As(err, &inUse), errors.As(err, &newer), errors.As(err, &pinned), errors.As(err, &param), errors.As(err, &late), errors.As(err, &denied), errors.Is(err, loader.ErrNoModules),
		errors.Is(err, loader.ErrNoCapability), errors.Is(err, loader.ErrModulesDisabled), errors.Is(err, loader.ErrPermanent),
		errors.Is(err, loader.ErrBuiltin), errors.Is(err, loader.ErrNoDynamicDebug):
		return exitRefused
	}
	return exitFailed
}
