package loader

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"kmodctl/internal/ko"
)

// insert does one finit_module(2) and verifies what it left behind.
func (r *runner) insert(ctx context.Context, s Step) (StepResult, error) {
	// What another process of ours, whose lock we have waited for, has done by now.
	if initstate(r.Root, s.Module) == "live" {
		return r.wasLive(s, nil), nil
	}
	m, err := openModule(r.Root, s.Path)
	if err != nil {
		return StepResult{}, s.errorf("%w", err)
	}
	defer func() { m.file.Close() }() // decompress changes it
	log := r.openWindow()
	defer log.close()

	err = r.finit(ctx, m, s.Params, log)
	if errors.Is(err, unix.EEXIST) {
		// Either it is there, or its own init returned EEXIST: kmod and u-root
		// take both for success.
		var live bool
		if live, err = r.becomesLive(ctx, s.Module, err); live {
			return r.wasLive(s, log.lines(s.Module, false)), nil
		}
	}
	lines := log.lines(s.Module, err != nil)
	if err != nil {
		return StepResult{}, r.refusal(s, m, log, lines, err)
	}
	if state := initstate(r.Root, s.Module); state != "live" {
		if info, err := m.info(); err == nil && info.Name != s.Module {
			return StepResult{}, s.errorf("%s is the module %s, and loaded now", s.Path, info.Name)
		}
		return StepResult{}, s.errorf("the kernel took it, but /sys/module/%s/initstate is %q", s.Module, state)
	}
	return StepResult{Step: s, Outcome: Inserted, Log: lines, Differences: r.differences(s), Notes: r.taintNotes(s, m)}, nil
}

// refusal explains the error of an insertion. The file is read only now: that the
// kernel took it says as much as we could.
func (r *runner) refusal(s Step, m *module, log *window, lines []string, err error) error {
	var errno unix.Errno
	var stuck *StuckError
	switch {
	case errors.As(err, &stuck):
		stuck.Op, stuck.Module, stuck.Path = Insert, s.Module, s.Path
		stuck.Log = log.crash(s.Module, stuck, lines)
		return stuck
	case !errors.As(err, &errno):
		return s.errorf("%w", err)
	}
	info, readErr := m.info()
	if readErr != nil {
		return s.errorf("%w", readErr) // it says more than the kernel does of such a file
	}
	refusal := &KernelError{Op: Insert, Module: s.Module, Path: s.Path, Release: r.release(),
		BuiltFor: info.Release(), Errno: errno, Log: lines}
	refusal.judge(log.heard())
	return refusal
}

// wasLive is the outcome of a step whose module somebody else loaded.
func (r *runner) wasLive(s Step, log []string) StepResult {
	res := StepResult{Step: s, Outcome: "already live", Log: log, Differences: r.differences(s)}
	live := liveBuildID(r.Root, s.Module)
	if info, err := ko.Open(s.Path); err == nil && live != "" && info.BuildID != "" && live != info.BuildID {
		res.Notes = append(res.Notes, "the live "+s.Module+" is another build than "+s.Path)
	}
	return res
}

// twinRetries are the pauses before a load that gave EBUSY is tried again: when
// another process was loading the same module and failed, the kernel answers
// EBUSY to us, who have not been tried (kernel/module/main.c, add_unformed_module).
var twinRetries = []time.Duration{20 * time.Millisecond, 80 * time.Millisecond, 320 * time.Millisecond}

// finit inserts m by its file, or by its image on a kernel (or seccomp filter)
// that has init_module(2) only.
func (r *runner) finit(ctx context.Context, m *module, params string, log *window) error {
	try := func() error {
		err := call(ctx, func() error { return r.Kernel.Finit(m.file, params, m.flags) })
		if m.flags&compressedFile != 0 && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) && log.has(undecompressed)) {
			if err := m.decompress(); err != nil {
				return err
			}
			err = call(ctx, func() error { return r.Kernel.Finit(m.file, params, m.flags) })
		}
		if errors.Is(err, unix.ENOSYS) {
			err = call(ctx, func() error { return r.Kernel.Init(m.file, params) })
		}
		return err
	}
	err := try()
	for _, d := range twinRetries {
		if !errors.Is(err, unix.EBUSY) || log.has(gaveUp) {
			break
		}
		if err := pause(ctx, d); err != nil {
			return err
		}
		err = try()
	}
	if errors.Is(err, unix.ENOSYS) {
		return ErrNoModules
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return fmt.Errorf("its init has not returned: %w", err)
	}
	return err
}

// becomesLive waits while another load of the module is in its init. If none
// is there, then err, the kernel's EEXIST, stands.
func (r *runner) becomesLive(ctx context.Context, name string, err error) (bool, error) {
	for {
		switch initstate(r.Root, name) {
		case "live":
			return true, nil
		case "":
			return false, err
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return false, fmt.Errorf("another load of it is in its init: %w", err)
		}
	}
}
