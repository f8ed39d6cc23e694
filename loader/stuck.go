package loader

import (
	"fmt"
	"time"
)

// StuckError is returned for a module whose init or exit function does not return.
// It stays in the kernel as it is, "coming" or "going", until the next boot, or
// until the function returns after all. Log, Stack say why, below Error's line.
type StuckError struct {
	Op     string        `json:"op"` // Insert or Remove
	Module string        `json:"module"`
	Path   string        `json:"path,omitempty"` // the file; empty for a removal
	Died   bool          `json:"died,omitempty"` // the kernel ended the thread: an oops
	Waited time.Duration `json:"waited,omitempty"`
	Thread int           `json:"thread"`          // that made the call
	Stack  []string      `json:"stack,omitempty"` // where the kernel was in it, innermost first
	Log    []string      `json:"log,omitempty"`   // what the kernel printed: of an oops what tells most
}

func (e *StuckError) Error() string {
	what, verb := "init", "load"
	if e.Op == Remove {
		what, verb = "exit function", "unload"
	}
	if e.Died {
		return fmt.Sprintf("%s %s: its %s crashed the kernel's thread (an oops)", verb, e.Module, what)
	}
	return fmt.Sprintf("%s %s: its %s has not returned for %v", verb, e.Module, what, e.Waited)
}
