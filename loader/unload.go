package loader

import (
	"fmt"
	"slices"

	"kmodctl/internal/ko"
)

// UnloadRequest says what PlanUnload is to remove.
type UnloadRequest struct {
	Name        string
	WithHolders bool    // the modules that use it are removed before it
	WithUnused  bool    // those that it alone kept in use are removed after it, as modprobe -r does
	Wait        bool    // users will be waited for: that there are some is no reason to refuse
	Config      *Config // its remove lines are told; nil: there are none
	RunCommands bool    // remove lines are run in place of the removal, as modprobe -r does
	State       *State  // nil: nothing is loaded
}

// PlanUnload plans the removal of a module, users before what they use. A module
// that is not loaded gives a plan with nothing to do.
//
// Errors, before anything is touched: *InUseError (without Users), ErrPermanent, ErrBuiltin.
func PlanUnload(req UnloadRequest) (*Plan, error) {
	name, st := ko.NormalizeName(req.Name), req.State
	m, ok := st.Find(name)
	switch {
	case !ok && st.isBuiltin(name):
		return nil, fmt.Errorf("unload %s: %w", name, ErrBuiltin)
	case !ok:
		return &Plan{Steps: []Step{{Action: None, Module: name, Reason: "not loaded"}}}, nil
	}
	p := &Plan{}
	if err := p.addRemoval(m, "asked", req, nil); err != nil {
		return nil, err
	}
	if req.WithUnused {
		p.addUnused(st)
	}
	for i, s := range p.Steps {
		p.removeLine(i, req)
		m, _ := st.Find(s.Module)
		for _, earlier := range p.Steps[:i] {
			if slices.Contains(m.Holders, earlier.Module) {
				p.Steps[i].Needs = append(p.Steps[i].Needs, earlier.Module)
			}
		}
	}
	return p, nil
}

// removeLine looks for what modprobe.d(5) has in place of a removal: of several lines the first.
func (p *Plan) removeLine(step int, req UnloadRequest) {
	if req.Config == nil {
		return
	}
	s := &p.Steps[step]
	switch lines := find(req.Config.Remove, s.Module); {
	case len(lines) == 0:
	case req.RunCommands:
		s.Action, s.Command, s.Reason = RemoveCommand, lines[0].Value, s.Reason+"; remove line at "+lines[0].At
	default:
		p.Notes = append(p.Notes, fmt.Sprintf("the command that %s has in place of the removal of %s is run with --run-commands only: %s", lines[0].At, s.Module, lines[0].Value))
	}
}

// addRemoval plans the removal of m, after that of its holders if they may go. chain
// are the modules between the one that was asked for and m.
func (p *Plan) addRemoval(m Live, reason string, req UnloadRequest, chain []string) error {
	if p.has(m.Name) {
		return nil
	}
	if slices.Contains(chain, m.Name) {
		return &CycleError{Modules: append(slices.Clone(chain), m.Name)}
	}
	others := m.Refcnt - len(m.Holders) // users that are no modules
	switch {
	case m.Permanent:
		return fmt.Errorf("unload %s: %w", m.Name, ErrPermanent)
	case !req.Wait && (others > 0 || len(m.Holders) > 0 && !req.WithHolders):
		return &InUseError{Module: m.Name, Holders: m.Holders, Refcnt: m.Refcnt}
	}
	for _, h := range m.Holders {
		holder, ok := req.State.Find(h)
		if !ok || !req.WithHolders {
			continue
		}
		if err := p.addRemoval(holder, "uses "+m.Name, req, append(chain, m.Name)); err != nil {
			return err
		}
	}
	p.Steps = append(p.Steps, Step{Action: Remove, Module: m.Name, Reason: reason})
	return nil
}

func (p *Plan) has(module string) bool {
	return slices.ContainsFunc(p.Steps, func(s Step) bool { return s.Module == module })
}

// addUnused follows the removals of p with those of the modules that they set
// free: a holder counts once in the refcnt of what it uses, so a module is
// unused when all that is left of its refcnt are holders that go.
func (p *Plan) addUnused(st *State) {
	for i := 0; i < len(p.Steps); i++ {
		holder := p.Steps[i].Module
		for _, m := range st.Modules {
			if p.has(m.Name) || m.State != "live" || !p.frees(m, holder) {
				continue
			}
			if m.Permanent {
				p.Notes = append(p.Notes, fmt.Sprintf("%s stays: %v", m.Name, ErrPermanent))
				continue
			}
			p.Steps = append(p.Steps, Step{Action: Remove, Module: m.Name, Reason: "unused without " + holder})
		}
	}
}

// frees reports whether holder is a user of m and no user of m stays.
func (p *Plan) frees(m Live, holder string) bool {
	stays := func(h string) bool { return !p.has(h) }
	return slices.Contains(m.Holders, holder) && !slices.ContainsFunc(m.Holders, stays) && m.Refcnt <= len(m.Holders)
}
