package loader

import (
	"slices"
	"strings"

	"kmodctl/internal/ko"
)

// Lookup finds the file of a module that the caller keeps itself (the
// registry's). indexed is the file that modules.dep has under the name, "" if
// none. What it finds wins over the index.
type Lookup func(module, indexed string) (path string, ok bool)

// Plan is what a load or an unload will do, made without touching anything.
type Plan struct {
	Asked  []string `json:"asked,omitempty"`  // the modules that the name or the alias stands for
	Params string   `json:"params,omitempty"` // what they were given; their steps have the options of modprobe.d too
	Steps  []Step   `json:"steps"`
	Notes  []string `json:"notes,omitempty"` // facts that the user may trip over, e.g. a file built for another kernel release
}

// The actions of a Step.
const (
	Insert  = "insert"  // finit_module(2)
	Remove  = "remove"  // delete_module(2)
	Command = "command" // an install line of modprobe.d(5) stands in for the system call

	RemoveCommand = "remove-command" // a remove line does
	None          = "none"           // nothing to do, Reason says why
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
	Name          string   // a module, an alias, a modalias or symbol:NAME; or:
	File          string   // a .ko to load whatever Lookup and Index have under its name
	Params        []string // "name=value" for what is asked for only, as modprobe takes them
	IgnoreInstall []string // modules whose install lines, which may refuse them, do not hold
	Index         *Index
	Config        *Config // nil: nothing is configured
	Lookup        Lookup  // may be nil
	State         *State  // nil: nothing is loaded
	Release       string  // the kernel's uname -r
}

// PlanLoad orders the insertions that a module needs: what it needs and its soft
// pre-dependencies first, its soft post-dependencies behind it. What is live or
// built in stays as it is and gets a step that says so.
//
// Dependencies of a file of Lookup, or of File, are those that kbuild wrote
// into it (depends=); those of an in-tree module are in modules.dep. Errors:
// *NotFoundError, *PolicyError, *CycleError, and those of ko.Open.
func PlanLoad(req LoadRequest) (*Plan, error) {
	params, err := joinParams(req.Params)
	if err != nil {
		return nil, err
	}
	r := newResolver(req, params)
	if err := r.ask(); err != nil {
		return nil, err
	}
	r.softDependencies()
	return r.plan(), nil
}

// node is a module whose dependencies are resolved.
type node struct {
	step  Step
	needs []string // modules whose symbols it takes, directly or not
	after []string // modules that it comes after because someone wishes so
	info  *ko.Info // nil for in-tree modules, whose file need not be read to plan

	refused *PolicyError // a soft dependency that may not be loaded, and so nothing that needs it
}

// plan orders the nodes, each behind what it needs, and gives those that still lack
// one their reason: the first later module that needs it. No module can stand
// between the two, so the need is direct although modules.dep lists indirect ones too.
func (r *resolver) plan() *Plan {
	p := &Plan{Asked: r.asked, Params: r.params}
	var order []*node
	done := make(map[string]bool)
	var put func(n *node)
	put = func(n *node) {
		name := n.step.Module
		if done[name] {
			return
		}
		done[name] = true
		for _, need := range n.needs {
			put(r.nodes[need])
		}
		for _, first := range n.after {
			put(r.nodes[first])
		}
		order = append(order, n)
	}
	for _, name := range r.asked {
		put(r.nodes[name])
	}
	for _, n := range r.order {
		put(n)
	}
	for i, n := range order {
		for _, user := range order[i+1:] {
			if n.step.Reason == "" && slices.Contains(user.needs, n.step.Module) {
				n.step.Reason = "needed by " + user.step.Module + symbolOf(user.info, n.info)
			}
		}
		n.step.Needs = append(slices.Clone(n.needs), n.after...)
		p.Steps = append(p.Steps, n.step)
	}
	p.Notes = r.allNotes()
	return p
}

// comesAfter reports whether a is to be done later than b.
func (r *resolver) comesAfter(a, b string) bool {
	seen := map[string]bool{a: true}
	for queue := []string{a}; len(queue) > 0; queue = queue[1:] {
		if queue[0] == b {
			return true
		}
		n := r.nodes[queue[0]]
		for _, list := range [][]string{n.needs, n.after} {
			for _, next := range list {
				if !seen[next] {
					seen[next] = true
					queue = append(queue, next)
				}
			}
		}
	}
	return false
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

// joinOptions makes one text of what several lines give to a module.
func joinOptions(options []string) string {
	return strings.Join(slices.DeleteFunc(options, func(s string) bool { return s == "" }), " ")
}
