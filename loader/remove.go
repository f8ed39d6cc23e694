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
func (r *runner) remove(ctx context.Context, s Step) (StepResult, error) {
	log := r.openWindow()
	defer log.close()
	err := r.delete(ctx, s.Module)
	if errors.Is(err, unix.ENOENT) {
		return StepResult{Step: s, Outcome: "not loaded"}, nil
	}
	lines := log.lines(s.Module, false)
	var stuck *StuckError
	switch errno := unix.Errno(0); {
	case err == nil && initstate(r.Root, s.Module) == "live":
		return StepResult{}, s.errorf("the kernel removed it, but it is live: something loaded it again")
	case err == nil:
		return StepResult{Step: s, Outcome: Removed, Log: lines}, nil
	case errors.As(err, &stuck):
		stuck.Op, stuck.Module = Remove, s.Module
		stuck.Log = log.crash(s.Module, stuck, lines)
		return StepResult{}, stuck
	case errors.Is(err, unix.ENOSYS):
		return StepResult{}, s.errorf("%w", ErrNoModules)
	case errors.Is(err, unix.EAGAIN):
		return StepResult{}, r.inUse(s.Module)
	case errors.As(err, &errno):
		refusal := &KernelError{Op: Remove, Module: s.Module, Release: r.release(), Errno: errno, Log: lines}
		if refusal.judge(log.heard()); errno == unix.EBUSY {
			refusal.CauseID, refusal.Cause = CauseBusy, r.whyBusy(s.Module)
		}
		return StepResult{}, refusal
	}
	return StepResult{}, s.errorf("%w", err)
}

// The pauses before a removal that gave EAGAIN is tried again: they double from the
// first to the longest. Without Loader.Wait it is tried for goneWithin, and only when sysfs shows no user: the last
// one has gone between the kernel's look and ours.
const (
	firstPause   = time.Millisecond
	longestPause = 250 * time.Millisecond
	goneWithin   = 100 * time.Millisecond
)

func (r *runner) delete(ctx context.Context, name string) error {
	began := time.Now()
	for wait := firstPause; ; wait = min(2*wait, longestPause) {
		// Without O_NONBLOCK kernels before 3.13 wait for the users, for ever.
		err := call(ctx, func() error { return r.Kernel.Delete(name, unix.O_NONBLOCK) })
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return fmt.Errorf("its exit function has not returned: %w", err)
		}
		left := r.Wait - time.Since(began)
		if r.Wait == 0 && r.refcnt(name) <= 0 {
			left = goneWithin - time.Since(began)
		}
		if !errors.Is(err, unix.EAGAIN) || left <= 0 {
			return err
		}
		if err := pause(ctx, min(wait, left)); err != nil {
			return err
		}
	}
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

// inUse is the error of a module with users, and who they are.
func (l *Loader) inUse(name string) error {
	return &InUseError{Module: name, Holders: l.holders(name), Refcnt: l.refcnt(name), Users: Users(l.Root, name)}
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
