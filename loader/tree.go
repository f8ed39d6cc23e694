package loader

import (
	"slices"

	"kmodctl/internal/ko"
)

// Tree is who needs whom among some modules.
type Tree struct {
	Roots   []string     `json:"roots"`   // what was asked about, then what soft dependencies put behind it
	Modules []TreeModule `json:"modules"` // each behind all that it needs
}

// TreeModule is a module of a Tree.
type TreeModule struct {
	Module   string   `json:"module"`
	Path     string   `json:"path,omitempty"`     // "" when it is built in
	Needs    []string `json:"needs,omitempty"`    // those of the tree that it needs itself, not by way of another
	Optional bool     `json:"optional,omitempty"` // a soft dependency
	Reason   string   `json:"reason,omitempty"`   // as that of a Step
}

// Tree returns what the modules of a load need.
func (p *Plan) Tree() Tree {
	t := Tree{Roots: slices.Clone(p.Asked)}
	needs := make(map[string][]string)
	wanted := make(map[string]bool)
	for _, s := range p.Steps {
		needs[s.Module] = s.Needs
		for _, need := range s.Needs {
			wanted[need] = true
		}
		t.Modules = append(t.Modules, TreeModule{Module: s.Module, Path: s.Path, Optional: s.Optional, Reason: s.Reason})
	}
	for i, m := range t.Modules {
		t.Modules[i].Needs = direct(m.Module, needs)
		if !wanted[m.Module] && !slices.Contains(t.Roots, m.Module) {
			t.Roots = append(t.Roots, m.Module)
		}
	}
	return t
}

// Uninstalled is a module that no index has, and what it says that it needs.
type Uninstalled struct {
	Path    string
	Depends []string
}

// UserTree returns the modules that need one of those named, and these: those of the index and, by their names, others that the
// caller has.
func (x *Index) UserTree(names []string, others map[string]Uninstalled) Tree {
	t := Tree{}
	all := x.Names()
	for name := range others {
		if _, _, indexed := x.Find(name); !indexed {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	for _, name := range names {
		t.Roots = append(t.Roots, ko.NormalizeName(name))
	}
	needs := make(map[string][]string)
	for _, name := range all {
		_, closure := x.closure(name, others, nil)
		if slices.Contains(t.Roots, name) || slices.ContainsFunc(t.Roots, func(root string) bool { return slices.Contains(closure, root) }) {
			needs[name] = closure
		}
	}
	for name, closure := range needs {
		needs[name] = slices.DeleteFunc(closure, func(dep string) bool { return needs[dep] == nil && !slices.Contains(t.Roots, dep) })
	}
	var put func(name string)
	done := make(map[string]bool)
	put = func(name string) {
		if done[name] {
			return
		}
		done[name] = true
		for _, need := range needs[name] {
			put(need)
		}
		path, _ := x.closure(name, others, nil)
		t.Modules = append(t.Modules, TreeModule{Module: name, Path: path, Needs: direct(name, needs)})
	}
	for _, name := range all {
		if _, in := needs[name]; in {
			put(name)
		}
	}
	return t
}

// closure returns the file of a module and the names of all that it needs, what they need before them. above are the modules
// that it is looked for, of which none is looked for again.
func (x *Index) closure(name string, others map[string]Uninstalled, above []string) (path string, needs []string) {
	path, deps, indexed := x.Find(name)
	for _, dep := range deps {
		needs = append(needs, ko.NameOfFile(dep))
	}
	other := others[name]
	if indexed || slices.Contains(above, name) {
		return path, needs
	}
	for _, dep := range other.Depends {
		dep = ko.NormalizeName(dep)
		_, its := x.closure(dep, others, append(above, name))
		for _, need := range append(its, dep) {
			if !slices.Contains(needs, need) {
				needs = append(needs, need)
			}
		}
	}
	return other.Path, needs
}

// direct drops from what a module needs that which another of its needs brings along.
func direct(module string, needs map[string][]string) (left []string) {
	for _, need := range needs[module] {
		brought := slices.ContainsFunc(needs[module], func(other string) bool {
			return other != need && slices.Contains(needs[other], need)
		})
		if !brought && !slices.Contains(left, need) {
			left = append(left, need)
		}
	}
	return left
}
