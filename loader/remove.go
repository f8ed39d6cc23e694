package loader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"kmodctl/internal/ko"
)

// remove does one delete_module(2). A module that is gone already is no error.
func (l *Loader) remove(ctx context.Context, s Step) (StepResult, error) {
	log := openWindow(l.Root)
	defer log.close()
	err := l.delete(ctx, s.Module)
	if errors.Is(err, unix.ENOENT) {
		return StepResult{Step: s, Outcome: "not loaded"}, nil
	}
	lines := log.lines(s.Module, false)
	switch errno := unix.Errno(0); {
	case err == nil && initstate(l.Root, s.Module) == "live":
		return StepResult{}, fmt.Errorf("unload %s: the kernel removed it, but it is live: something loaded it again", s.Module)
	case err == nil:
		return StepResult{Step: s, Outcome: Removed, Log: lines}, nil
	case errors.Is(err, unix.ENOSYS):
		return StepResult{}, fmt.Errorf("unload %s: %w", s.Module, ErrNoModules)
	case errors.Is(err, unix.EAGAIN):
		return StepResult{}, &InUseError{Module: s.Module, Holders: l.holders(s.Module), Refcnt: l.refcnt(s.Module)}
	case errors.As(err, &errno):
		refusal := &KernelError{Op: Remove, Module: s.Module, Release: l.release(), Errno: errno, Log: lines}
		if refusal.judge(log.err == nil); errno == unix.EBUSY {
			refusal.CauseID, refusal.Cause = CauseBusy, l.whyBusy(s.Module)
		}
		return StepResult{}, refusal
	}
	return StepResult{}, fmt.Errorf("unload %s: %w", s.Module, err)
}

// goneRetries are the pauses before a removal that gave EAGAIN is tried again,
// when the last user has gone between the kernel's look and ours.
var goneRetries = []time.Duration{time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond}

func (l *Loader) delete(ctx context.Context, name string) error {
	try := func() error {
		// Without O_NONBLOCK kernels before 3.13 wait for the users, for ever.
		return call(ctx, func() error { return l.Kernel.Delete(name, unix.O_NONBLOCK) })
	}
	err := try()
	for _, d := range goneRetries {
		if !errors.Is(err, unix.EAGAIN) || l.refcnt(name) > 0 {
			break
		}
		if err := pause(ctx, d); err != nil {
			return err
		}
		err = try()
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return fmt.Errorf("its exit function has not returned: %w", err)
	}
	return err
}

// refcnt is the number of users that sysfs shows; -1 when it shows none (the
// module is gone, or going).
func (l *Loader) refcnt(name string) int {
	n, err := strconv.Atoi(readLine(under(l.Root, "sys/module/"+name+"/refcnt")))
	if err != nil {
		return -1
	}
	return n
}

// holders are the modules that use name.
func (l *Loader) holders(name string) (holders []string) {
	links, _ := os.ReadDir(under(l.Root, "sys/module/"+name+"/holders"))
	for _, link := range links {
		holders = append(holders, ko.NormalizeName(link.Name()))
	}
	return holders
}

// whyBusy tells the two meanings of EBUSY apart (kernel/module/main.c,
// delete_module).
func (l *Loader) whyBusy(name string) string {
	switch initstate(l.Root, name) {
	case "coming":
		return "its init has not returned"
	case "going":
		return "another removal of it is under way"
	}
	return ErrPermanent.Error()
}
