// Package loader loads and unloads modules on a running kernel.
//
// It works in three steps that can be looked at one by one: PlanLoad and
// PlanUnload say what must be done, without touching anything, from an Index
// (what /lib/modules/<release> has), a Lookup (what the caller has) and a State
// (what the kernel has); Loader.Run does it, one system call a step; and after
// each call it verifies in /sys/module that what was wanted has come about. A
// refusal is a *KernelError with the kernel's own lines and the cause.
//
// A load that fails half way removes again what it had inserted. Two loads of
// the same module at one time are left to the kernel, which lets one win.
package loader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/u-root/u-root/pkg/kmodule"
	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
)

// Kernel is the three system calls of module loading. Their errors are a
// unix.Errno as the kernel returned it.
type Kernel interface {
	Finit(f *os.File, params string, flags int) error // finit_module(2), since Linux 3.8
	Init(image []byte, params string) error           // init_module(2)
	Delete(name string, flags int) error              // delete_module(2)
}

// system is the running kernel. kmodule.FileInit is not used since it drops
// its flags and calls init_module(2) (u-root v0.16.0), which LoadPin and IMA deny.
type system struct{}

func (system) Finit(f *os.File, params string, flags int) error {
	return unix.FinitModule(int(f.Fd()), params, flags)
}
func (system) Init(image []byte, params string) error { return kmodule.Init(image, params) }
func (system) Delete(name string, flags int) error    { return kmodule.Delete(name, uintptr(flags)) }

// Loader runs plans.
type Loader struct {
	Kernel Kernel
	Root   kernel.Root // where proc, sys and dev of that kernel are: "/", or the folder of a test's fake
}

// New returns a Loader for the running kernel.
func New() *Loader { return &Loader{Kernel: system{}, Root: "/"} }

// Result is what Run did.
type Result struct {
	Done []StepResult `json:"done"`
}

// The outcomes of a step besides "already live", "built into the kernel" and
// "not loaded", which are the reasons why there is nothing to do.
const (
	Inserted = "inserted"
	Removed  = "removed"
)

// StepResult is the outcome of one step.
type StepResult struct {
	Step
	Outcome string   `json:"outcome"`
	Log     []string `json:"log,omitempty"`   // what the kernel and the module printed during the call
	Notes   []string `json:"notes,omitempty"` // what is not as it was asked for, though the kernel took it
}

// Run carries out a plan. After an error Result has what was done before it and
// then undone: of a load, everything that can be removed again has been.
//
// Errors: ErrNoModules, ErrNoCapability and ErrModulesDisabled before anything
// is touched; *KernelError, *InUseError, errors of internal/ko about the file;
// ctx's error when it ends before a module's init or exit function returns.
func (l *Loader) Run(ctx context.Context, p *Plan) (Result, error) {
	var res Result
	for _, s := range p.Steps {
		r, err := l.step(ctx, s)
		if err != nil {
			res.Done = append(res.Done, l.undo(res.Done)...)
			return res, err
		}
		res.Done = append(res.Done, r)
	}
	return res, nil
}

func (l *Loader) step(ctx context.Context, s Step) (StepResult, error) {
	if s.Action == None {
		return StepResult{Step: s, Outcome: s.Reason}, nil
	}
	if err := cmp.Or(l.allowed(), ctx.Err()); err != nil {
		return StepResult{}, fmt.Errorf("%s %s: %w", map[string]string{Insert: "load", Remove: "unload"}[s.Action], s.Module, err)
	}
	switch s.Action {
	case Insert:
		return l.insert(ctx, s)
	case Remove:
		return l.remove(ctx, s)
	}
	return StepResult{}, fmt.Errorf("%s %s: unknown action", s.Action, s.Module)
}

// undo removes what a failed load had inserted, last first. What has got users
// meanwhile stays.
func (l *Loader) undo(done []StepResult) (undone []StepResult) {
	for i := len(done) - 1; i >= 0; i-- {
		if done[i].Outcome != Inserted {
			continue
		}
		s := Step{Action: Remove, Module: done[i].Module, Reason: "the load failed"}
		if r, err := l.remove(context.Background(), s); err == nil {
			undone = append(undone, r)
		}
	}
	return undone
}

// capSysModule is CAP_SYS_MODULE, include/uapi/linux/capability.h.
const capSysModule = 16

// allowed finds the refusals that have nothing to do with the module, for which
// the kernel has but one EPERM.
func (l *Loader) allowed() error {
	if _, err := os.Stat(under(l.Root, "proc/modules")); err != nil {
		return noModules(l.Root, err)
	}
	status, _ := os.ReadFile(under(l.Root, "proc/self/status"))
	for line := range strings.Lines(string(status)) {
		mask, ok := strings.CutPrefix(line, "CapEff:")
		if caps, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64); ok && err == nil && caps&(1<<capSysModule) == 0 {
			return ErrNoCapability
		}
	}
	if readLine(under(l.Root, "proc/sys/kernel/modules_disabled")) == "1" {
		return ErrModulesDisabled
	}
	return nil
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
