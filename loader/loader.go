// Package loader loads and unloads modules on a running kernel.
//
// It works in three steps that can be looked at one by one: PlanLoad and
// PlanUnload say what must be done, without touching anything, from an Index
// (what /lib/modules/<release> has), a Lookup (what the caller has) and a State
// (what the kernel has); Loader.Run does it, one system call a step, independent
// steps at once; and after each call it verifies in /sys/module that what was
// wanted has come about. A refusal is a *KernelError with the kernel's own lines
// and the cause.
//
// A load that fails half way removes again what it had inserted. Loads of one
// module by several processes of ours wait for each other; those of others are
// left to the kernel, which lets one win.
package loader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
)

// Kernel is the three system calls of module loading. Their errors are a
// unix.Errno as the kernel returned it, or a *StuckError.
type Kernel interface {
	Finit(f *os.File, params string, flags int) error // finit_module(2), since Linux 3.8
	Init(f *os.File, params string) error             // init_module(2) with what is in f
	Delete(name string, flags int) error              // delete_module(2)
}

// DefaultTimeout is how long a module's init or exit function may take: what
// systemd-udevd gives the handling of an event.
const DefaultTimeout = 3 * time.Minute

// Loader runs plans.
type Loader struct {
	Kernel Kernel
	Root   kernel.Root // where proc, sys, dev and run of that kernel are: "/", or the folder of a test's fake

	// Wait is how long the users of a module that shall be removed have to go away.
	Wait time.Duration

	// Patience is how long another kmodctl that loads or unloads the same module is
	// waited for: 0 is as long as it takes, less is not at all. Then it is ErrLocked.
	Patience time.Duration
}

// New returns a Loader for the running kernel, which gives an init or exit
// function that much time. Its system calls are made by a child process: see Stage.
func New(timeout time.Duration) *Loader { return &Loader{Kernel: &child{timeout: timeout}, Root: "/"} }

// Close ends the child process, if one was started.
func (l *Loader) Close() {
	if c, ok := l.Kernel.(*child); ok {
		c.close()
	}
}

// Result is what Run did.
type Result struct {
	Done []StepResult `json:"done,omitempty"`
}

// The outcomes of a step besides "already live", "built into the kernel" and
// "not loaded", which are the reasons why there is nothing to do.
const (
	Inserted = "inserted"
	Removed  = "removed"
	Failed   = "failed"      // an optional step, or Undo
	Ran      = "command ran" // of a Command or RemoveCommand step
)

// undoing is the reason of the steps that take a failed load back.
const undoing = "the load failed"

// StepResult is the outcome of one step.
type StepResult struct {
	Step
	Outcome     string       `json:"outcome"`
	Error       string       `json:"error,omitempty"`       // why an optional step failed
	Log         []string     `json:"log,omitempty"`         // what the kernel and the module printed during the call
	Differences []Difference `json:"differences,omitempty"` // parameters that are not as they were asked for
	Notes       []string     `json:"notes,omitempty"`       // what else is not as it was asked for, though the kernel took it
}

// parallel is how many steps run at once: inits wait for hardware, not for processors.
const parallel = 16

// Run carries out a plan: a step begins when those that it needs are done, and
// independent ones run at once. A step that fails ends the plan, unless it is
// optional; those that run then are waited for. After an error Result has what
// was done before it and then undone: of a load, everything that can be removed
// again has been. Done is in the order of the plan, what was undone at the end.
//
// Errors: ErrNoModules, ErrNoCapability and ErrModulesDisabled before anything
// is touched; *KernelError, *InUseError, *StuckError, errors of
// internal/ko about the file; ctx's error when it ends before a module's init or
// exit function returns.
func (l *Loader) Run(ctx context.Context, p *Plan) (Result, error) {
	if i := slices.IndexFunc(p.Steps, func(s Step) bool { return s.Action != None }); i >= 0 {
		if err := l.allowed(); err != nil {
			return Result{}, p.Steps[i].errorf("%w", err)
		}
	}
	r := runner{Loader: l, asked: p.Asked, steps: p.Steps, done: make([]*StepResult, len(p.Steps))}
	var note string
	var err error
	if r.locks, err = openLocks(under(l.Root, runDir)); err != nil {
		note = fmt.Sprintf("other loads at this time are not waited for: %v", err)
	} else {
		defer r.locks.close()
	}
	err = r.run(ctx)
	var res Result
	for _, d := range r.done {
		if d != nil {
			res.Done = append(res.Done, *d)
		}
	}
	if err != nil {
		res.Done = append(res.Done, r.undo(res.Done)...)
	}
	if note != "" && len(res.Done) > 0 {
		res.Done[0].Notes = append(res.Done[0].Notes, note)
	}
	return res, err
}

// runner is one run of a plan.
type runner struct {
	*Loader
	asked []string
	steps []Step
	done  []*StepResult // nil: not yet, or failed
	locks *locks        // nil: there are none
}

// run does what can be done until all is done or a step fails. Of several failures
// it returns that of the earliest step.
func (r *runner) run(ctx context.Context) error {
	type end struct {
		step   int
		result StepResult
		err    error
	}
	ends := make(chan end)
	begun, over := make([]bool, len(r.steps)), make([]bool, len(r.steps))
	errs, missed := make([]error, len(r.steps)), make([]error, len(r.steps))
	for running, failed := 0, false; ; {
		for i := range r.steps {
			if failed || begun[i] || running == parallel || !r.ready(i, over) {
				continue
			}
			begun[i] = true
			running++
			go func() {
				result, err := r.step(ctx, r.steps[i])
				ends <- end{i, result, err}
			}()
		}
		if running == 0 {
			return cmp.Or(cmp.Or(errs...), r.nothing(missed))
		}
		e := <-ends
		running--
		over[e.step] = true
		switch s := r.steps[e.step]; {
		case e.err == nil:
			r.done[e.step] = &e.result
		case s.Optional && ctx.Err() == nil:
			r.done[e.step], missed[e.step] = failure(s, e.err), e.err
		default:
			errs[e.step], failed = e.err, true
		}
	}
}

// nothing is the failure of a load of several modules, each of which might fail
// alone (an alias stands for them), when all of them did. missed is by step.
func (r *runner) nothing(missed []error) (err error) {
	for i, s := range r.steps {
		if !slices.Contains(r.asked, s.Module) {
			continue
		}
		if missed[i] == nil {
			return nil
		}
		err = cmp.Or(err, missed[i])
	}
	return err
}

// ready reports whether the earlier steps that step i needs are over.
func (r *runner) ready(i int, over []bool) bool {
	for j, s := range r.steps[:i] {
		if !over[j] && slices.Contains(r.steps[i].Needs, s.Module) {
			return false
		}
	}
	return true
}

// failure is a step that failed without failing the plan.
func failure(s Step, err error) *StepResult {
	f := &StepResult{Step: s, Outcome: Failed, Error: err.Error()}
	var refused *KernelError
	if errors.As(err, &refused) {
		f.Log = refused.Log
		if refused.Cause != "" {
			f.Error += " (" + refused.Cause + ")"
		}
	}
	return f
}

func (r *runner) step(ctx context.Context, s Step) (StepResult, error) {
	if s.Action == None {
		return StepResult{Step: s, Outcome: s.Reason, Differences: r.differences(s)}, nil
	}
	if err := ctx.Err(); err != nil {
		return StepResult{}, s.errorf("%w", err)
	}
	free, err := r.lock(ctx, s)
	if err != nil {
		return StepResult{}, err
	}
	defer free()
	switch s.Action {
	case Insert:
		return r.insert(ctx, s)
	case Remove:
		return r.remove(ctx, s)
	case Command, RemoveCommand:
		return r.command(ctx, s)
	}
	return StepResult{}, s.errorf("unknown action %s", s.Action)
}

// lock takes the lock of a step's module, if there are locks.
func (r *runner) lock(ctx context.Context, s Step) (free func(), err error) {
	if r.locks == nil {
		return func() {}, nil
	}
	within := ctx
	if r.Patience != 0 {
		var cancel context.CancelFunc
		within, cancel = context.WithTimeoutCause(ctx, max(r.Patience, 0), ErrLocked)
		defer cancel()
	}
	free, err = r.locks.module(within, s.Module)
	if err != nil && within.Err() != nil {
		err = context.Cause(within)
	}
	if err != nil {
		return nil, s.errorf("%w", err)
	}
	return free, nil
}

// errorf is an error about what the user wanted from the step.
func (s Step) errorf(format string, args ...any) error {
	verb := "load"
	if s.Action == Remove || s.Action == RemoveCommand {
		verb = "unload"
	}
	return fmt.Errorf("%s %s: "+format, append([]any{verb, s.Module}, args...)...)
}

// undo removes what a failed load had inserted, last first. What has got users
// meanwhile stays, and that is told.
func (r *runner) undo(done []StepResult) (undone []StepResult) {
	for _, d := range slices.Backward(done) {
		if d.Outcome != Inserted {
			continue
		}
		s := Step{Action: Remove, Module: d.Module, Reason: undoing}
		result, err := r.step(context.Background(), s)
		if err != nil {
			result = *failure(s, err)
		}
		undone = append(undone, result)
	}
	return undone
}

// command runs what a line of modprobe.d has in place of the insertion or removal,
// as modprobe(8) does: by sh, with the module's name in MODPROBE_MODULE. A plan
// that shall run none has none.
func (r *runner) command(ctx context.Context, s Step) (StepResult, error) {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", s.Command)
	cmd.Env = append(os.Environ(), "MODPROBE_MODULE="+s.Module)
	cmd.WaitDelay = time.Second // for what it left in the background with our pipe
	out, err := cmd.CombinedOutput()
	if err != nil {
		return StepResult{}, s.errorf("run %q: %w: %s", s.Command, err, strings.TrimSpace(string(out)))
	}
	result := StepResult{Step: s, Outcome: Ran}
	for line := range strings.Lines(string(out)) {
		result.Notes = append(result.Notes, strings.TrimSuffix(line, "\n"))
	}
	return result, nil
}

// capSysModule is CAP_SYS_MODULE, include/uapi/linux/capability.h.
const capSysModule = 16

// allowed finds the refusals that have nothing to do with the module, for which
// the kernel has but one EPERM.
func (l *Loader) allowed() error {
	if _, err := os.Stat(under(l.Root, "proc/modules")); err != nil {
		return noModules(l.Root, err)
	}
	if !maySysModule(l.Root) {
		return ErrNoCapability
	}
	if readLine(under(l.Root, "proc/sys/kernel/modules_disabled")) == "1" {
		return ErrModulesDisabled
	}
	return nil
}

// maySysModule reports whether this process has CAP_SYS_MODULE.
func maySysModule(root kernel.Root) bool {
	status, _ := os.ReadFile(under(root, "proc/self/status"))
	for line := range strings.Lines(string(status)) {
		mask, ok := strings.CutPrefix(line, "CapEff:")
		if caps, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64); ok && err == nil && caps&(1<<capSysModule) == 0 {
			return false
		}
	}
	return true
}

// release is uname -r of the kernel under Root.
func (l *Loader) release() string { return readLine(under(l.Root, "proc/sys/kernel/osrelease")) }

// call runs a system call, again when a signal interrupts it, until ctx ends. A
// module's init or exit function may never return (an oops there kills only
// its thread); the call then stays behind, and the caller can still say so.
func call(ctx context.Context, syscall func() error) error {
	done := make(chan error, 1)
	go func() {
		for {
			if err := syscall(); !errors.Is(err, unix.EINTR) {
				done <- err
				return
			}
		}
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pause waits for d, or returns ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
