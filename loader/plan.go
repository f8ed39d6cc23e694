package loader

import (
	"fmt"
	"slices"
	"strings"

	"kmodctl/internal/ko"
)

// Lookup finds the file of a module that the caller keeps itself (the
// registry's). It wins over the index of /lib/modules.
type Lookup func(module string) (path string, ok bool)

// Plan is what a load or an unload will do, made without touching anything.
type Plan struct {
	Steps []Step   `json:"steps"`
	Notes []string `json:"notes,omitempty"` // facts that the user may trip over, e.g. a file built for another kernel release
}

// The actions of a Step.
const (
	Insert  = "insert"  // finit_module(2)
	Remove  = "remove"  // delete_module(2)
	Command = "command" // an install or remove line of modprobe.d(5) stands in for the system call
	None    = "none"    // nothing to do, Reason says why
)

// Step is at most one system call.
type Step struct {
	Action   string   `json:"action"`
	Module   string   `json:"module"`             // the kernel's name, with _
	Path     string   `json:"path,omitempty"`     // the file to insert
	Params   string   `json:"params,omitempty"`   // as the kernel parses them
	Command  string   `json:"command,omitempty"`  // what the administrator wants to be run instead, for sh -c
	Needs    []string `json:"needs,omitempty"`    // modules of earlier steps that must be done before this one begins
	Optional bool     `json:"optional,omitempty"` // only a soft dependency wants it: when it fails, that is told and the rest goes on
	Reason   string   `json:"reason"`             // "asked", "needed by stack_user: symbol stack_push", "already live", ...
}

// LoadRequest says what PlanLoad is to load, and what is known about the kernel.
type LoadRequest struct {
	Name    string   // a module; or:
	File    string   // a .ko to load whatever Lookup and Index have under its name
	Params  []string // "name=value" for the named module only, as modprobe takes them
	Index   *Index
	Lookup  Lookup // may be nil
	State   *State // nil: nothing is loaded
	Release string // the kernel's uname -r
}

// PlanLoad orders the insertions that a module needs, dependencies first. What
// is live or built in stays as it is and gets a step that says so.
//
// Dependencies of a file of Lookup, or of File, are those that kbuild wrote
// into it (depends=); those of an in-tree module are in modules.dep. Errors:
// *NotFoundError, *CycleError, and those of ko.Open.
func PlanLoad(req LoadRequest) (*Plan, error) {
	params, err := joinParams(req.Params)
	if err != nil {
		return nil, err
	}
	r := resolver{req: req, nodes: make(map[string]*node)}
	var asked *node
	if req.File != "" {
		asked, err = r.file(req.File)
	} else {
		asked, err = r.module(req.Name)
	}
	if err != nil {
		return nil, err
	}
	if asked.step.Action == Insert {
		asked.step.Params, asked.step.Reason = params, "asked"
	} else if params != "" {
		r.notes = append(r.notes, fmt.Sprintf("%s is %s: its parameters stay as they are", asked.step.Module, asked.step.Reason))
	}
	return r.plan(), nil
}

// node is a module whose dependencies are resolved.
type node struct {
	step  Step
	needs []string // names of modules
	info  *ko.Info // nil for in-tree modules, whose file need not be read to plan
}

// resolver walks from the module asked for to its dependencies, depth first.
type resolver struct {
	req   LoadRequest
	nodes map[string]*node
	order []*node  // every dependency before its users
	chain []string // the modules between the one asked for and the present one
	notes []string
}

// module resolves a name: what the kernel has comes first, files second.
func (r *resolver) module(name string) (*node, error) {
	name = ko.NormalizeName(name)
	if n := r.nodes[name]; n != nil {
		return n, nil
	}
	path, ours := "", false
	if r.req.Lookup != nil {
		path, ours = r.req.Lookup(name)
	}
	if live, ok := r.req.State.Find(name); ok && live.State == "live" {
		// A damaged file is no reason not to say that the module is live.
		if ours {
			if info, err := ko.Open(path); err == nil {
				r.compare(live, path, info)
			}
		}
		return r.present(name, "already live"), nil
	}
	if ours {
		return r.file(path)
	}
	if path, deps, ok := r.req.Index.Find(name); ok {
		n := &node{step: Step{Action: Insert, Module: name, Path: path}}
		for _, dep := range deps {
			n.needs = append(n.needs, ko.NameOfFile(dep))
		}
		return n, r.add(n)
	}
	if r.req.Index.Builtin(name) || r.req.State.isBuiltin(name) {
		return r.present(name, "built into the kernel"), nil
	}
	notFound := &NotFoundError{Name: name, Release: r.req.Release}
	if len(r.chain) > 0 {
		notFound.NeededBy = r.chain[len(r.chain)-1]
	} else {
		notFound.Near = r.req.Index.Near(name)
	}
	return nil, notFound
}

// file resolves a .ko by what is written in it.
func (r *resolver) file(path string) (*node, error) {
	info, err := ko.Open(path)
	if err != nil {
		return nil, err
	}
	if n := r.nodes[info.Name]; n != nil {
		return n, nil // found under another name before
	}
	if live, ok := r.req.State.Find(info.Name); ok && live.State == "live" {
		r.compare(live, path, info)
		return r.present(info.Name, "already live"), nil
	}
	if built := info.Release(); built != "" && r.req.Release != "" && built != r.req.Release {
		r.notes = append(r.notes, fmt.Sprintf("%s was built for %s", path, built))
	}
	n := &node{step: Step{Action: Insert, Module: info.Name, Path: path}, needs: slices.Clone(info.Depends), info: info}
	return n, r.add(n)
}

// compare notes that what is live did not come from the file that we would load.
func (r *resolver) compare(live Live, path string, info *ko.Info) {
	if live.BuildID != "" && info.BuildID != "" && live.BuildID != info.BuildID {
		r.notes = append(r.notes, fmt.Sprintf("the live %s is another build than %s", info.Name, path))
	}
}

// present records a module that needs no system call.
func (r *resolver) present(name, reason string) *node {
	n := &node{step: Step{Action: None, Module: name, Reason: reason}}
	r.nodes[name] = n
	r.order = append(r.order, n)
	return n
}

// add resolves what n needs and puts n behind it.
func (r *resolver) add(n *node) error {
	name := n.step.Module
	if i := slices.Index(r.chain, name); i >= 0 {
		return &CycleError{Modules: append(slices.Clone(r.chain[i:]), name)}
	}
	r.chain = append(r.chain, name)
	for i, need := range n.needs {
		dep, err := r.module(need)
		if err != nil {
			return err
		}
		n.needs[i] = dep.step.Module
	}
	r.chain = r.chain[:len(r.chain)-1]
	r.nodes[name] = n
	r.order = append(r.order, n)
	return nil
}

// plan gives each step that still lacks one its reason: the first later module
// that needs it. No module can stand between the two, so the need is direct
// although modules.dep lists indirect ones too.
func (r *resolver) plan() *Plan {
	p := &Plan{Notes: r.notes}
	for i, n := range r.order {
		for _, user := range r.order[i+1:] {
			if n.step.Reason == "" && slices.Contains(user.needs, n.step.Module) {
				n.step.Reason = "needed by " + user.step.Module + symbolOf(user.info, n.info)
			}
		}
		n.step.Needs = n.needs
		p.Steps = append(p.Steps, n.step)
	}
	return p
}

// symbolOf names the first symbol that one file takes from another.
func symbolOf(user, exporter *ko.Info) string {
	if user == nil || exporter == nil {
		return ""
	}
	for _, imp := range user.Imports {
		if slices.ContainsFunc(exporter.Exports, func(e ko.Export) bool { return e.Name == imp.Name }) {
			return ": symbol " + imp.Name
		}
	}
	return ""
}

// blanks are the bytes at which the kernel ends a parameter: isspace of
// lib/ctype.c, for which 0xa0 is one even inside a UTF-8 character.
const blanks = " \t\n\v\f\r\xa0"

// joinParams makes the one string that finit_module(2) takes. A value with
// blanks is quoted as next_arg of lib/cmdline.c reads it, which knows no escapes.
func joinParams(params []string) (string, error) {
	var args []string
	for _, p := range params {
		name, value, hasValue := strings.Cut(p, "=")
		switch {
		case name == "" || hasByte(name, blanks+"\"\x00") || strings.Contains(value, "\x00"):
			return "", fmt.Errorf("read parameter %q: not of the form name=value", p)
		case !hasByte(value, blanks+`"`):
		case len(value) > 1 && value[0] == '"' && strings.IndexByte(value[1:], '"') == len(value)-2:
			// The user quoted it for the kernel already.
		case strings.Contains(value, `"`):
			return "", fmt.Errorf("read parameter %q: the kernel has no way to write a quote inside a value", p)
		case hasValue:
			p = name + `="` + value + `"`
		}
		args = append(args, p)
	}
	return strings.Join(args, " "), nil
}

// hasByte is strings.ContainsAny for bytes: 0xa0 is no valid UTF-8.
func hasByte(s, set string) bool {
	return slices.ContainsFunc([]byte(s), func(b byte) bool { return strings.IndexByte(set, b) >= 0 })
}
