package loader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"kmodctl/internal/ko"
)

// Swap is how live modules are replaced by what their files are now: what goes, what
// comes, and how what went comes back when the kernel refuses the new.
type Swap struct {
	Remove *Plan    `json:"remove"`
	Insert *Plan    `json:"insert"`
	Back   *Plan    `json:"back"` // of those whose file was found
	Notes  []string `json:"notes,omitempty"`
}

// SwapRequest says what PlanSwap is to replace.
type SwapRequest struct {
	// Load is the request by which the module would be loaded if it were not live: Params
	// are those that shall change. State is what the kernel has, parameters included.
	Load LoadRequest

	WithHolders bool // the modules that use it are replaced too
	Wait        bool // as of UnloadRequest
	Force       bool // it need not have a way back

	// Old finds the file that a live module came from.
	Old func(Live) (path string, ok bool)
}

// NoWayBackError is returned for a live module whose file is not to be found: if the
// kernel refused the new one, there would be none.
type NoWayBackError struct {
	Module  string
	BuildID string
}

func (e *NoWayBackError) Error() string {
	return fmt.Sprintf("reload %s: the file of the live module is not here any more (build-id %s), so that there is no way back", e.Module, cmp.Or(e.BuildID, "unknown"))
}

// SwapError tells of a Swap that failed after a module had been removed.
type SwapError struct {
	Module string
	Err    error // why
	Back   error // why the old modules are not live again; nil: they are
}

func (e *SwapError) Error() string {
	if e.Back != nil {
		return fmt.Sprintf("reload %s: %v; the old one could not be loaded again: %v", e.Module, e.Err, e.Back)
	}
	return fmt.Sprintf("reload %s: %v; the old one is live again", e.Module, e.Err)
}

func (e *SwapError) Unwrap() error { return e.Err }

// PlanSwap plans to replace a live module, with the parameters that it has: those that
// Load's configuration or Params name are set by them, as in a load. Errors:
// *NotLiveError, *NoWayBackError, those of PlanUnload and PlanLoad.
func PlanSwap(req SwapRequest) (*Swap, error) {
	st := req.Load.State
	name := ko.NormalizeName(req.Load.Name)
	if req.Load.File != "" {
		info, err := ko.Open(req.Load.File)
		if err != nil {
			return nil, err
		}
		name = info.Name
	}
	if _, ok := st.Find(name); !ok && !st.isBuiltin(name) {
		return nil, fmt.Errorf("reload %s: %w", name, &NotLiveError{name})
	}
	swap := &Swap{Insert: &Plan{}, Back: &Plan{}}
	var err error
	swap.Remove, err = PlanUnload(UnloadRequest{Name: name, WithHolders: req.WithHolders, Wait: req.Wait, State: st})
	if err != nil {
		return nil, err
	}
	after := &State{Builtin: st.Builtin}
	for _, m := range st.Modules {
		if !swap.Remove.has(m.Name) {
			after.Modules = append(after.Modules, m)
		}
	}
	for _, s := range slices.Backward(swap.Remove.Steps) {
		live, _ := st.Find(s.Module)
		load := req.Load
		if live.Name != name {
			load.Name, load.File, load.Params = live.Name, "", nil
		}
		load.State = after
		if err := swap.addInsert(load, live); err != nil {
			return nil, err
		}
		for _, s := range swap.Insert.Steps { // for those that come behind it
			if _, ok := after.Find(s.Module); !ok {
				after.Modules = append(after.Modules, Live{Name: s.Module, State: "live"})
			}
		}
		if err := swap.addBack(live, st, req); err != nil {
			return nil, err
		}
	}
	return swap, nil
}

// addInsert plans the new load of what is live.
func (w *Swap) addInsert(load LoadRequest, live Live) error {
	p, err := PlanLoad(load) // to know what the configuration says, and the file
	if err != nil {
		return err
	}
	i := slices.IndexFunc(p.Steps, func(s Step) bool { return s.Module == live.Name })
	if i < 0 || p.Steps[i].Action != Insert {
		return fmt.Errorf("reload %s: nothing would be inserted in its place", live.Name)
	}
	w.Insert.Params = strings.TrimSpace(w.Insert.Params + " " + p.Params)
	kept, notes, err := keptParams(live, p.Steps[i])
	if err != nil {
		return err
	}
	load.Params = append(kept, load.Params...)
	if p, err = PlanLoad(load); err != nil {
		return err
	}
	for _, s := range p.Steps {
		switch {
		case s.Action == None:
			continue // what stays as it is belongs to no swap
		case s.Module == live.Name:
			s.Reason = "in place of the live one"
		}
		w.Insert.Steps = append(w.Insert.Steps, s)
	}
	w.Insert.Asked = append(w.Insert.Asked, live.Name)
	w.Notes = append(append(w.Notes, p.Notes...), notes...)
	return nil
}

// keptParams are the live parameters that the new load has to set, "name=value": those
// that the step does not set already and that its file still takes.
func keptParams(live Live, s Step) (kept, notes []string, err error) {
	if len(live.Params) == 0 {
		return nil, nil, nil
	}
	info, err := ko.Open(s.Path)
	if err != nil {
		return nil, nil, err
	}
	set := map[string]bool{}
	for _, p := range splitParams(s.Params) {
		name, _, _ := strings.Cut(p, "=")
		set[ko.NormalizeName(name)] = true
	}
	for _, param := range shownParams(live) {
		name, _, _ := strings.Cut(param, "=")
		if set[ko.NormalizeName(name)] {
			continue
		}
		if err := CheckParam(info, param); err != nil {
			notes = append(notes, fmt.Sprintf("the live value of a parameter is not kept: %v", err))
			continue
		}
		kept = append(kept, param)
	}
	return kept, notes, nil
}

// shownParams are the parameters of a live module, "name=value", by name. A text that
// nobody has set shows as "(null)", which would not mean that again.
func shownParams(live Live) (params []string) {
	for _, name := range slices.Sorted(maps.Keys(live.Params)) {
		if !strings.Contains(live.Params[name], "(null)") {
			params = append(params, name+"="+live.Params[name])
		}
	}
	return params
}

// addBack plans to insert the file that a live module came from.
func (w *Swap) addBack(live Live, st *State, req SwapRequest) error {
	path, ok := req.Old(live)
	if !ok {
		missing := &NoWayBackError{live.Name, live.BuildID}
		if !req.Force {
			return missing
		}
		w.Notes = append(w.Notes, missing.Error())
		return nil
	}
	var texts []string
	for _, param := range shownParams(live) {
		text, err := joinParams([]string{param})
		if err != nil {
			w.Notes = append(w.Notes, fmt.Sprintf("the way back leaves a parameter out: %v", err))
			continue
		}
		texts = append(texts, text)
	}
	s := Step{Action: Insert, Module: live.Name, Path: path, Params: strings.Join(texts, " "), Reason: "it was live before"}
	for _, earlier := range w.Back.Steps {
		used, _ := st.Find(earlier.Module)
		if slices.Contains(used.Holders, live.Name) {
			s.Needs = append(s.Needs, earlier.Module)
		}
	}
	w.Back.Steps = append(w.Back.Steps, s)
	return nil
}

// RunSwap carries out a swap. From the first removal on ctx's end is not heeded: a
// machine must not be left without the module, old or new. Errors are those of
// Run before anything is gone, and *SwapError after that.
func (l *Loader) RunSwap(ctx context.Context, w *Swap) (Result, error) {
	res, err := l.Run(ctx, w.Remove)
	ctx = context.WithoutCancel(ctx)
	if err == nil {
		var inserted Result
		inserted, err = l.Run(ctx, w.Insert)
		res.Done = append(res.Done, inserted.Done...)
	}
	if err == nil {
		return res, nil
	}
	gone := map[string]bool{}
	for _, d := range res.Done {
		if d.Outcome == Removed && d.Reason != undoing {
			gone[d.Module] = true
		}
	}
	if len(gone) == 0 {
		return res, err
	}
	failed := &SwapError{Module: w.Remove.Steps[len(w.Remove.Steps)-1].Module, Err: err}
	back := &Plan{}
	for _, s := range w.Back.Steps {
		if gone[s.Module] {
			back.Steps = append(back.Steps, s)
			delete(gone, s.Module)
		}
	}
	restored, err := l.Run(ctx, back)
	res.Done = append(res.Done, restored.Done...)
	failed.Back = err
	for _, module := range slices.Sorted(maps.Keys(gone)) {
		failed.Back = errors.Join(failed.Back, &NoWayBackError{Module: module})
	}
	return res, failed
}
