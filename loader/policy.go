package loader

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// PolicyError is returned for a module that the administrator does not want to be loaded.
type PolicyError struct {
	Module   string
	NeededBy string // the module that needs it; "" when it was asked for
	Rule     string // the words that refuse it: "install usb_storage /bin/false", "module_blacklist=usb_storage", ...
	At       string // "FILE:LINE" or where else they stand
	Reason   string // what was given as the reason; "" if nothing was
	Boot     bool   // the kernel itself holds to it, until a boot without it
}

func (e *PolicyError) Error() string {
	s := "load " + e.Module
	if e.NeededBy != "" {
		s += ", needed by " + e.NeededBy
	}
	return s + ": " + e.Refusal()
}

// Refusal is the error without the module.
func (e *PolicyError) Refusal() string {
	s := fmt.Sprintf("refused by policy: %s at %s", e.Rule, e.At)
	if e.Reason != "" {
		s += " (" + e.Reason + ")"
	}
	return s
}

// refusal returns why a module must not be loaded, nil if it may. Any line that
// refuses it counts, wherever it stands: kmod takes the first install line only,
// and forgets that for a module with soft dependencies.
func (r *resolver) refusal(module string) *PolicyError {
	e := &PolicyError{Module: module}
	if len(r.chain) > 0 {
		e.NeededBy = r.chain[len(r.chain)-1]
	}
	for _, d := range r.conf.Barred {
		if d.Name == module {
			e.Rule, e.At, e.Boot = d.Value, d.At, true
			return e
		}
	}
	if r.ignores(module) {
		return nil
	}
	for _, d := range find(r.conf.Install, module) {
		if isRefusal(d.Value) {
			e.Rule, e.At, e.Reason = "install "+d.Name+" "+d.Value, d.At, d.Reason
			return e
		}
	}
	return nil
}

// command returns the line that is to be run in place of the insertion.
func (r *resolver) command(module string) (d Directive, ok bool) {
	if r.ignores(module) {
		return d, false
	}
	if lines := find(r.conf.Install, module); len(lines) > 0 {
		return lines[0], true
	}
	return d, false
}

func (r *resolver) ignores(module string) bool {
	return slices.ContainsFunc(r.req.IgnoreInstall, func(name string) bool { return normalizeAlias(name) == module })
}

// isRefusal tells the commands by which people forbid a module, as there is no
// other way in modprobe.d(5): true and false, and the shell's own name of true.
func isRefusal(command string) bool {
	f := strings.Fields(command)
	if len(f) == 0 || len(f) > 1 && !strings.HasPrefix(f[1], "#") {
		return false
	}
	switch path.Base(f[0]) {
	case "true", "false", ":":
		return true
	}
	return false
}

// blacklisted returns the line that takes a module's aliases away.
func (r *resolver) blacklisted(module string) (d Directive, ok bool) {
	for _, d := range r.conf.Blacklist {
		if d.Name == module {
			return d, true
		}
	}
	return d, false
}
