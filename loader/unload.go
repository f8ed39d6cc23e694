package loader

import (
	"fmt"

	"kmodctl/internal/ko"
)

// PlanUnload plans the removal of a module and, with withUnused, of the modules
// that it alone kept in use (as modprobe -r does), users before what they use.
// A module that is not loaded gives a plan with nothing to do.
//
// Errors: *InUseError, ErrPermanent, ErrBuiltin.
func PlanUnload(name string, withUnused bool, st *State) (*Plan, error) {
	name = ko.NormalizeName(name)
	m, ok := st.Find(name)
	switch {
	case !ok && st.isBuiltin(name):
		return nil, fmt.Errorf("unload %s: %w", name, ErrBuiltin)
	case !ok:
		return &Plan{Steps: []Step{{Action: None, Module: name, Reason: "not loaded"}}}, nil
	case m.Permanent:
		return nil, fmt.Errorf("unload %s: %w", name, ErrPermanent)
	case len(m.Holders) > 0 || m.Refcnt > 0:
		return nil, &InUseError{Module: name, Holders: m.Holders, Refcnt: m.Refcnt}
	}
	p := &Plan{Steps: []Step{{Action: Remove, Module: name, Reason: "asked"}}}
	if withUnused {
		p.addUnused(name, st)
	}
	return p, nil
}

// addUnused follows the removals of p with those of the modules that they set
// free: a holder counts once in the refcnt of what it uses, so a module is
// unused when all that is left of its refcnt are holders that go.
func (p *Plan) addUnused(name string, st *State) {
	goes := map[string]bool{name: true}
	for i := 0; i < len(p.Steps); i++ {
		holder := p.Steps[i].Module
		for _, m := range st.Modules {
			if goes[m.Name] || m.State != "live" || !usedOnlyBy(m, holder, goes) {
				continue
			}
			if m.Permanent {
				p.Notes = append(p.Notes, fmt.Sprintf("%s stays: %v", m.Name, ErrPermanent))
				continue
			}
			goes[m.Name] = true
			p.Steps = append(p.Steps, Step{Action: Remove, Module: m.Name, Reason: "unused without " + holder})
		}
	}
}

// usedOnlyBy reports whether holder is a user of m and no user of m stays.
func usedOnlyBy(m Live, holder string, goes map[string]bool) bool {
	uses := false
	for _, h := range m.Holders {
		if !goes[h] {
			return false
		}
		uses = uses || h == holder
	}
	return uses && m.Refcnt <= len(m.Holders)
}
