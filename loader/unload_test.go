package loader_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kmodctl/loader"
)

func TestPlanUnload(t *testing.T) {
	mod := func(name string, refcnt int, holders ...string) loader.Live {
		return loader.Live{Name: name, State: "live", Refcnt: refcnt, Holders: holders}
	}
	pinned := mod("pinned", 1, "top_mod")
	pinned.Permanent = true
	st := &loader.State{
		Builtin: []string{"printk"},
		Modules: []loader.Live{
			mod("top_mod", 0),
			mod("mid", 1, "top_mod"),
			mod("low", 2, "top_mod", "mid"),
			mod("shared", 2, "mid", "other"), // other stays
			mod("open", 2, "mid"),            // and a file
			pinned,
			mod("other", 0),
			mod("busy", 1),
			{Name: "exitless", State: "live", Permanent: true},
		},
	}
	for _, c := range []struct {
		name   string
		unused bool
		want   []string
	}{
		{"top-mod", false, []string{"remove top_mod (asked)"}},
		{"top_mod", true, []string{"remove top_mod (asked)", "remove mid (unused without top_mod)", "remove low (unused without top_mod)"}},
		{"other", true, []string{"remove other (asked)"}},
		{"absent", true, []string{"none absent (not loaded)"}},
	} {
		p, err := loader.PlanUnload(loader.UnloadRequest{Name: c.name, WithUnused: c.unused, State: st})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if diff := cmp.Diff(c.want, short(p)); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
		if c.name == "top_mod" && c.unused && len(p.Notes) != 1 {
			t.Errorf("pinned has no note: %q", p.Notes)
		}
	}

	for name, want := range map[string]error{"exitless": loader.ErrPermanent, "printk": loader.ErrBuiltin} {
		if _, err := loader.PlanUnload(loader.UnloadRequest{Name: name, State: st}); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
	}
	for name, want := range map[string]string{
		"low":  "unload low: in use by top_mod, mid",
		"busy": "unload busy: in use by something that is not a module (refcnt 1)",
	} {
		_, err := loader.PlanUnload(loader.UnloadRequest{Name: name, WithUnused: true, State: st})
		var inUse *loader.InUseError
		if !errors.As(err, &inUse) || err.Error() != want {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
}

// With its holders a module goes after all that use it, each after its own users.
func TestPlanUnloadWithHolders(t *testing.T) {
	mod := func(name string, refcnt int, holders ...string) loader.Live {
		return loader.Live{Name: name, State: "live", Refcnt: refcnt, Holders: holders}
	}
	fixed := mod("fixed", 0)
	fixed.Permanent = true
	st := &loader.State{Modules: []loader.Live{
		mod("top", 0), mod("left", 1, "top"), mod("right", 1, "top"), mod("base", 2, "left", "right"), mod("lower", 1, "base"),
		mod("open", 1), mod("under_open", 1, "open"), fixed, mod("under_fixed", 1, "fixed"),
	}}
	p, err := loader.PlanUnload(loader.UnloadRequest{Name: "base", WithHolders: true, WithUnused: true, State: st})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"remove top (uses left)", "remove left (uses base)", "remove right (uses base)", "remove base (asked)", "remove lower (unused without base)"}
	if diff := cmp.Diff(want, short(p)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"left", "right"}, p.Steps[3].Needs); diff != "" {
		t.Error(diff)
	}
	var inUse *loader.InUseError
	if _, err := loader.PlanUnload(loader.UnloadRequest{Name: "under_open", WithHolders: true, State: st}); !errors.As(err, &inUse) || inUse.Module != "open" {
		t.Errorf("a holder that is open: %v", err)
	}
	if _, err := loader.PlanUnload(loader.UnloadRequest{Name: "under_open", WithHolders: true, Wait: true, State: st}); err != nil {
		t.Errorf("a holder that is open, and waited for: %v", err)
	}
	if _, err := loader.PlanUnload(loader.UnloadRequest{Name: "under_fixed", WithHolders: true, State: st}); !errors.Is(err, loader.ErrPermanent) {
		t.Errorf("a holder that stays for ever: %v", err)
	}
}

// A remove line of modprobe.d is told, and takes the place of a removal when it is asked for.
func TestRemoveLines(t *testing.T) {
	st := &loader.State{Modules: []loader.Live{
		{Name: "top_mod", State: "live"},
		{Name: "low", State: "live", Refcnt: 1, Holders: []string{"top_mod"}},
	}}
	conf := &loader.Config{Remove: []loader.Directive{
		{Name: "lo*", Value: "echo first", At: "a.conf:1"}, {Name: "low", Value: "echo second", At: "a.conf:2"}, {Name: "other", Value: "false", At: "a.conf:3"}}}
	req := loader.UnloadRequest{Name: "top_mod", WithUnused: true, State: st, Config: conf}
	for run, want := range map[bool][]string{
		false: {"remove top_mod (asked)", "remove low (unused without top_mod)"},
		true:  {"remove top_mod (asked)", "remove-command low (unused without top_mod; remove line at a.conf:1)"},
	} {
		req.RunCommands = run
		p, err := loader.PlanUnload(req)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, short(p)); diff != "" {
			t.Errorf("run %t: %s", run, diff)
		}
		told := []string{"the command that a.conf:1 has in place of the removal of low is run with --run-commands only: echo first"}
		if run {
			told = nil
			if p.Steps[1].Command != "echo first" || len(p.Steps[1].Needs) != 1 {
				t.Errorf("%+v", p.Steps[1])
			}
		}
		if diff := cmp.Diff(told, p.Notes); diff != "" {
			t.Errorf("run %t: %s", run, diff)
		}
	}
}
