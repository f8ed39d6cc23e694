package loader

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"kmodctl/internal/ko"
)

// resolver walks from the modules asked for to their dependencies, depth first,
// then to those that soft dependencies name.
type resolver struct {
	req    LoadRequest
	conf   Config // the request's, with the kernel's own files of soft dependencies
	params string // for what is asked for

	asked    []string
	asking   bool // what is found now was asked for, or is needed by that
	nodes    map[string]*node
	order    []*node  // as they were found
	chain    []string // the modules between the one asked for and the present one
	optional bool     // what is found now, nobody needs
	notes    []string
}

// target is a module that a name leads to.
type target struct {
	module string
	alias  string // the name, when it is an alias of the module
	reason string
}

func newResolver(req LoadRequest, params string) *resolver {
	r := &resolver{req: req, params: params, nodes: make(map[string]*node)}
	if req.Config != nil {
		r.conf = *req.Config
	}
	kernels := req.Index.softdeps()
	r.conf.Softdeps = slices.Concat(r.conf.Softdeps, kernels.Softdeps)
	r.conf.Weakdeps = slices.Concat(r.conf.Weakdeps, kernels.Weakdeps)
	r.conf.Notes = slices.Concat(r.conf.Notes, kernels.Notes)
	return r
}

// ask resolves what the request asks for. Of several modules that an alias
// stands for, each is optional: they are drivers of one device, as a rule.
func (r *resolver) ask() error {
	r.asking = true
	defer func() { r.asking = false }()
	if r.req.File != "" {
		n, err := r.file(r.req.File, target{reason: "asked"})
		if err != nil {
			return err
		}
		r.asked = []string{n.step.Module}
		r.tellAsked(n)
		return nil
	}
	targets, err := r.resolve(r.req.Name)
	if err != nil {
		return err
	}
	r.optional = len(targets) > 1
	var failed error
	for _, t := range targets {
		via := t.reason
		t.reason = strings.TrimSuffix("asked: "+via, ": ")
		n, err := r.attempt(t)
		if err != nil {
			if via != "" {
				err = fmt.Errorf("%s: %w", via, err)
			}
			failed = cmp.Or(failed, err)
			continue
		}
		r.asked = append(r.asked, n.step.Module)
		r.tellAsked(n)
	}
	if len(r.asked) == 0 {
		return failed
	}
	return nil
}

// tellAsked notes what whoever asked for a module may not expect.
func (r *resolver) tellAsked(n *node) {
	name := n.step.Module
	if r.params != "" && n.step.Action == None {
		n.step.Params = r.params // so that the run can tell which are otherwise
		r.note("%s is %s: its parameters stay as they are", name, n.step.Reason)
	}
	if d, ok := r.blacklisted(name); ok {
		r.note("%s is blacklisted at %s, which takes its aliases away and no more", name, d.At)
	}
	for _, d := range find(r.conf.Weakdeps, name) {
		r.note("%s may ask for %s when it runs (weakdep at %s)", name, strings.Join(strings.Fields(d.Value), ", "), d.At)
	}
}

func (r *resolver) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

// allNotes are those of what was read, then those of the plan.
func (r *resolver) allNotes() (all []string) {
	if r.req.Index != nil {
		all = append(all, r.req.Index.Notes...)
	}
	return append(append(all, r.conf.Notes...), r.notes...)
}

// resolve returns the modules that a name stands for, in modprobe's order of
// precedence: an alias of modprobe.d, a module of modules.dep, symbol:NAME, an
// install line, aliases that modules have, the kernel image; then what only the
// caller or the running kernel has. The first of these that knows the name
// decides.
func (r *resolver) resolve(name string) ([]target, error) {
	return r.resolveVia(name, nil)
}

// maxAliases is how many aliases may lead from one to the next.
const maxAliases = 16

func (r *resolver) resolveVia(name string, via []string) ([]target, error) {
	key := normalizeAlias(name)
	if len(via) > maxAliases || slices.Contains(via, key) {
		return nil, fmt.Errorf("find module %s: its aliases lead in circles: %s", via[0], strings.Join(append(via, key), " -> "))
	}
	if lines := find(r.conf.Aliases, key); len(lines) > 0 {
		return r.configured(key, lines, via)
	}
	if r.known(key) {
		return []target{{module: key}}, nil
	}
	if symbol, ok := strings.CutPrefix(name, "symbol:"); ok {
		return r.internal(name, r.req.Index.Exporters(symbol))
	}
	if slices.ContainsFunc(r.conf.Install, func(d Directive) bool { return d.Name == key }) {
		return []target{{module: key}}, nil
	}
	if found := r.req.Index.Aliases(key); len(found) > 0 {
		return r.internal(name, found)
	}
	if r.req.Index.Builtin(key) {
		return []target{{module: key}}, nil
	}
	if found := r.req.Index.builtinAlias(key); len(found) > 0 {
		return r.internal(name, found)
	}
	return []target{{module: key}}, nil // the caller's, or nobody's
}

// known reports whether modules.dep has a module of that name.
func (r *resolver) known(key string) bool {
	_, _, ok := r.req.Index.Find(key)
	return ok
}

// configured follows alias lines of modprobe.d. What they lead to may be an
// alias itself, where no module has that name.
func (r *resolver) configured(key string, lines []Directive, via []string) (targets []target, err error) {
	var failed error
	for _, d := range lines {
		reason := "alias " + d.Name + " at " + d.At
		if d.Value == "off" {
			failed = cmp.Or[error](failed, &PolicyError{Module: key, Rule: "alias " + d.Name + " off", At: d.At})
			continue
		}
		found := []target{{module: d.Value}}
		if !r.known(d.Value) && !r.req.Index.Builtin(d.Value) {
			if found, err = r.resolveVia(d.Value, append(via, key)); err != nil {
				failed = cmp.Or(failed, fmt.Errorf("%s: %w", reason, err))
				continue
			}
		}
		for _, t := range found {
			why := reason
			if t.reason != "" {
				why += ", " + t.reason
			}
			targets = append(targets, target{t.module, key, why})
		}
	}
	if targets, err = r.unlisted(targets); err != nil || len(targets) > 0 {
		return targets, err
	}
	return nil, failed
}

// internal makes targets of the aliases that modules have themselves.
func (r *resolver) internal(name string, found []Alias) (targets []target, err error) {
	for _, a := range found {
		t := target{a.Module, normalizeAlias(name), "alias " + a.Pattern + " at " + a.At}
		if !slices.ContainsFunc(targets, func(x target) bool { return x.module == a.Module }) {
			targets = append(targets, t)
		}
	}
	if len(targets) == 0 {
		return nil, r.notFound(name)
	}
	return r.unlisted(targets)
}

// unlisted drops the modules whose aliases blacklist lines take away.
func (r *resolver) unlisted(targets []target) (left []target, err error) {
	var refused *PolicyError
	for _, t := range targets {
		d, ok := r.blacklisted(t.module)
		if !ok {
			left = append(left, t)
			continue
		}
		refused = &PolicyError{Module: t.module, Rule: "blacklist " + t.module, At: d.At, Reason: t.reason}
	}
	if len(left) == 0 && refused != nil {
		return nil, refused
	}
	if refused != nil {
		r.note("%s is left out: %s", refused.Module, refused.Refusal())
	}
	return left, nil
}

func (r *resolver) notFound(name string) *NotFoundError {
	e := &NotFoundError{Name: name, Release: r.req.Release}
	if len(r.chain) > 0 {
		e.NeededBy = r.chain[len(r.chain)-1]
	} else if !r.optional {
		e.Near = r.req.Index.Near(name)
	}
	return e
}

// attempt resolves a target; what it found is forgotten when that fails.
func (r *resolver) attempt(t target) (*node, error) {
	found, chain, notes := len(r.order), len(r.chain), len(r.notes)
	n, err := r.module(t.module, t)
	if err == nil {
		return n, nil
	}
	for _, n := range r.order[found:] {
		delete(r.nodes, n.step.Module)
	}
	r.order, r.chain, r.notes = r.order[:found], r.chain[:chain], r.notes[:notes]
	return nil, err
}

// module resolves a name: what the kernel has comes first, then what is
// forbidden, then files.
func (r *resolver) module(name string, t target) (*node, error) {
	name = ko.NormalizeName(name)
	if n := r.nodes[name]; n != nil {
		if n.refused != nil {
			return nil, n.refused
		}
		return n, nil
	}
	indexed, deps, inTree := r.req.Index.Find(name)
	path, ours := "", false
	if r.req.Lookup != nil {
		path, ours = r.req.Lookup(name, indexed)
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
	switch {
	case ours:
		return r.file(path, t)
	case inTree && !r.req.Index.Indexed():
		return r.file(indexed, t)
	case !inTree && (r.req.Index.Builtin(name) || r.req.State.isBuiltin(name)):
		return r.present(name, "built into the kernel"), nil
	}
	if refused := r.refusal(name); refused != nil {
		return nil, refused
	}
	if _, replaced := r.command(name); !inTree && !replaced {
		return nil, r.notFound(name)
	}
	n := &node{step: Step{Action: Insert, Module: name, Path: indexed}}
	for _, dep := range deps {
		n.needs = append(n.needs, ko.NameOfFile(dep))
	}
	return n, r.add(n, t)
}

// file resolves a .ko by what is written in it.
func (r *resolver) file(path string, t target) (*node, error) {
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
	if refused := r.refusal(info.Name); refused != nil {
		return nil, refused
	}
	if built := info.Release(); built != "" && r.req.Release != "" && built != r.req.Release {
		r.note("%s was built for %s", path, built)
	}
	n := &node{step: Step{Action: Insert, Module: info.Name, Path: path}, needs: slices.Clone(info.Depends), info: info}
	return n, r.add(n, t)
}

// compare notes that what is live did not come from the file that we would load.
func (r *resolver) compare(live Live, path string, info *ko.Info) {
	if live.BuildID != "" && info.BuildID != "" && live.BuildID != info.BuildID {
		r.note("the live %s is another build than %s", info.Name, path)
	}
}

// present records a module that needs no system call.
func (r *resolver) present(name, reason string) *node {
	return r.put(&node{step: Step{Action: None, Module: name, Reason: reason}})
}

func (r *resolver) put(n *node) *node {
	n.step.Optional = r.optional
	r.nodes[n.step.Module] = n
	r.order = append(r.order, n)
	return n
}

// add resolves what n needs, and records n.
func (r *resolver) add(n *node, t target) error {
	name := n.step.Module
	if i := slices.Index(r.chain, name); i >= 0 {
		return &CycleError{Modules: append(slices.Clone(r.chain[i:]), name)}
	}
	r.chain = append(r.chain, name)
	for i, need := range n.needs {
		dep, err := r.module(need, target{})
		if err != nil {
			return err
		}
		n.needs[i] = dep.step.Module
	}
	r.chain = r.chain[:len(r.chain)-1]
	n.step.Reason = t.reason
	r.configure(n, t.alias)
	r.put(n)
	return nil
}

// configure gives a module its options, in modprobe's order: of what names a
// parameter twice, the kernel takes the last. The command that replaces the
// insertion gets them too.
func (r *resolver) configure(n *node, alias string) {
	name := n.step.Module
	var options []string
	for _, d := range r.conf.OptionsOf(name, alias) {
		options = append(options, d.Value)
	}
	if len(r.chain) == 0 && r.asking {
		options = append(options, r.params)
	}
	n.step.Params = joinOptions(options)
	if d, ok := r.command(name); ok {
		n.step.Action = Command
		n.step.Command = strings.ReplaceAll(d.Value, "$CMDLINE_OPTS", n.step.Params)
		n.step.Reason = strings.TrimPrefix(n.step.Reason+"; ", "; ") + "install line at " + d.At
	}
}

// softDependencies adds what the softdep lines of every module found so far
// wish for, and so on. The lines are taken together: kmod takes the first only.
// A wish that contradicts a need, or an earlier wish, changes no order.
func (r *resolver) softDependencies() {
	r.optional = true
	for i := 0; i < len(r.order); i++ {
		n := r.order[i]
		if n.step.Action == None {
			continue
		}
		for _, s := range r.softdeps(n) {
			for _, name := range s.Pre {
				for _, m := range r.wish(name, n, s, "pre") {
					if !r.comesAfter(m, n.step.Module) {
						n.after = append(n.after, m)
					}
				}
			}
			for _, name := range s.Post {
				for _, m := range r.wish(name, n, s, "post") {
					if !r.comesAfter(n.step.Module, m) {
						r.nodes[m].after = append(r.nodes[m].after, n.step.Module)
					}
				}
			}
		}
	}
}

// softdeps returns the lines of one module: those of files, and those that are
// written into it, where the kernel's files cannot have them.
func (r *resolver) softdeps(n *node) (all []Softdep) {
	for _, s := range r.conf.Softdeps {
		if globMatch(s.Name, n.step.Module) {
			all = append(all, s)
		}
	}
	if n.info != nil {
		for _, text := range n.info.Values("softdep") {
			all = append(all, parseSoftdep(n.step.Module, text, n.step.Path))
		}
	}
	return all
}

// wish resolves one name of a softdep line, and returns the modules that it adds
// or that are there already. One that may not be loaded becomes a step that says why.
func (r *resolver) wish(name string, n *node, s Softdep, kind string) (modules []string) {
	reason := fmt.Sprintf("softdep %s of %s at %s", kind, n.step.Module, s.At)
	targets, err := r.resolve(name)
	for _, t := range targets {
		t.reason = strings.TrimSuffix(reason+", "+t.reason, ", ")
		m, e := r.attempt(t)
		var refused *PolicyError
		switch {
		case errors.As(e, &refused):
			if r.nodes[t.module] != nil {
				continue // another line wished for it too
			}
			why := refused.Refusal()
			if refused.Module != t.module {
				why = "needs " + refused.Module + ", " + why
			}
			r.present(t.module, why+"; "+reason).refused = refused
		case e != nil:
			err = e
		case m != n:
			modules = append(modules, m.step.Module)
		}
	}
	if err != nil {
		r.note("%s: %v", reason, err)
	}
	return modules
}
