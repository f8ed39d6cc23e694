package loader

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// What a kernel can be asked in vain.
var (
	// ErrNoModules: there is no /proc/modules, and the system calls give ENOSYS.
	ErrNoModules = errors.New("this kernel has no module support (a container or VPS that shares its host's kernel?)")
	// ErrNoCapability: capabilities(7), CAP_SYS_MODULE is not effective.
	ErrNoCapability = errors.New("this process may not load or remove modules (no CAP_SYS_MODULE)")
	// ErrModulesDisabled: the sysctl can only be set, not be cleared.
	ErrModulesDisabled = errors.New("kernel.modules_disabled is 1: until the next boot nothing can be loaded or removed")
	// ErrBuiltin: the module is part of the kernel image.
	ErrBuiltin = errors.New("built into the kernel")
	// ErrPermanent: /proc/modules marks the module "[permanent]".
	ErrPermanent = errors.New("it has no exit function, so that only a reboot removes it")
	// ErrLocked: Loader.Patience is over.
	ErrLocked = errors.New("another kmodctl is loading or unloading it")
)

// NotFoundError is returned for a module that neither the caller's Lookup nor
// the index of the release has.
type NotFoundError struct {
	Name     string
	NeededBy string   // the module that needs it; "" when it was asked for
	Near     []string // names that may have been meant
	Release  string
}

func (e *NotFoundError) Error() string {
	s := "find module " + e.Name
	if e.NeededBy != "" {
		s += ", needed by " + e.NeededBy
	}
	return s + ": no such module for kernel " + e.Release
}

// CycleError is returned for modules that need each other.
type CycleError struct {
	Modules []string // the first one closes the cycle and is repeated at the end
}

func (e *CycleError) Error() string {
	return "order modules: dependency cycle " + strings.Join(e.Modules, " -> ")
}

// InUseError is returned for a module that cannot be removed while it has users.
type InUseError struct {
	Module  string   `json:"module"`
	Refcnt  int      `json:"refcnt"` // users, holders included
	Holders []string `json:"holders,omitempty"`
	Users   []User   `json:"users,omitempty"` // who else was found; the kernel keeps only the number
}

func (e *InUseError) Error() string {
	by := slices.Clone(e.Holders)
	for _, u := range e.Users {
		if u.holds() {
			by = append(by, u.String())
		}
	}
	if len(by) == 0 {
		return fmt.Sprintf("unload %s: in use by something that is not a module (refcnt %d)", e.Module, e.Refcnt)
	}
	const few = 3
	if n := len(by) - few; n > 0 {
		by = append(by[:few], fmt.Sprintf("%d more", n))
	}
	return fmt.Sprintf("unload %s: in use by %s", e.Module, strings.Join(by, ", "))
}

// CheckError is a plan that was not begun: Check found modules that the kernel would refuse, or that it should not be given.
type CheckError struct {
	Release  string
	Findings []Finding // those that are Refused, in the order of the plan; not empty
}

func (e *CheckError) Error() string {
	first := e.Findings[0]
	if first.Errno == 0 || e.Unwrap() != nil { // it is not about the module
		return fmt.Sprintf("load %s: %s", first.Module, first.Text)
	}
	return fmt.Sprintf("load %s: kernel %s would refuse the module: %s", first.Module, e.Release, strings.ToLower(first.Errno.Error()))
}

// Unwrap lets errors.Is tell the causes that have nothing to do with a module.
func (e *CheckError) Unwrap() error {
	switch e.Findings[0].Cause {
	case CauseModulesDisabled:
		return ErrModulesDisabled
	case CauseNoCapability:
		return ErrNoCapability
	}
	return nil
}

// KernelError is the kernel's refusal of one module. Error says what happened;
// Log and Cause, which say why, are for the lines below it.
type KernelError struct {
	Op       string // Insert or Remove
	Module   string
	Path     string // the file; "" for a removal
	Release  string // the kernel that refused
	BuiltFor string // the release in the file's vermagic; "" for a removal
	Errno    unix.Errno
	Log      []string // what the kernel printed about the module during the call, oldest first
	Cause    string   // in plain words
	CauseID  CauseID  // the same in one
}

func (e *KernelError) Error() string {
	errno := strings.ToLower(e.Errno.Error())
	if e.Op == Remove {
		return fmt.Sprintf("unload %s: %s", e.Module, errno)
	}
	return fmt.Sprintf("load %s: kernel %s refused the module: %s", e.Module, e.Release, errno)
}

// Unwrap lets errors.Is compare with unix.EPERM and its like.
func (e *KernelError) Unwrap() error { return e.Errno }

// Explain takes from Check what it found of the same module and errno, where the kernel said nothing or no more than that a
// symbol is missing.
func (e *KernelError) Explain(findings []Finding) {
	if len(e.Log) > 0 && e.CauseID != CauseSymbolMissing {
		return
	}
	for _, f := range findings {
		if f.Severity == Refused && f.Module == e.Module && f.Errno == e.Errno {
			e.CauseID, e.Cause = f.Cause, f.Text
			return
		}
	}
}
