package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
	"kmodctl/loader"
	"kmodctl/loader/loadertest"
)

// acting is a command that acts on a fake kernel with the modules of a kernel of this machine.
type acting struct {
	*env
	kernel      *loadertest.Kernel
	loader      *loader.Loader
	out, stderr bytes.Buffer
	index       *loader.Index
	release     string
}

func newActing(t *testing.T) *acting {
	t.Helper()
	all, err := kernel.Find("/")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(k kernel.Release) bool { return k.Modules != "" })
	if i < 0 {
		t.Fatal("no kernel is installed here")
	}
	a := &acting{kernel: loadertest.New(t, all[i].Name), release: all[i].Name, index: (&env{root: "/"}).index(all[i].Name)}
	a.loader = &loader.Loader{Kernel: a.kernel, Root: a.kernel.Root}
	a.env = &env{root: a.kernel.Root, out: &a.out, err: newScreen(&a.stderr)}
	return a
}

func (a *acting) load(t *testing.T, name string, params ...string) error {
	t.Helper()
	state, err := loader.ReadState(a.kernel.Root)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := loader.PlanLoad(loader.LoadRequest{Name: name, Params: params, Index: a.index, State: state, Release: a.release})
	if err != nil {
		t.Fatal(err)
	}
	return a.act(t.Context(), a.loader, plan)
}

// A load that the kernel refuses, and what became of the steps before it.
func TestActRefused(t *testing.T) {
	a := newActing(t)
	a.kernel.Answer("garp", loadertest.Answer{Errno: unix.EINVAL, Log: []string{"garp: disagrees about version of symbol stp_proto_register", "garp: Unknown symbol stp_proto_register (err -22)"}})
	err := a.load(t, "garp")
	a.report(err)
	if exitCode(err) != exitRefused {
		t.Errorf("exit %d", exitCode(err))
	}
	for _, want := range []string{"llc: inserted", "stp: inserted", "stp: removed (the load failed)", "llc: removed (the load failed)",
		"refused the module: invalid argument", "kernel log: garp: disagrees about version of symbol stp_proto_register", "why:  symbol stp_proto_register has another type"} {
		if !strings.Contains(a.stderr.String(), want) {
			t.Errorf("not said: %q in\n%s", want, &a.stderr)
		}
	}
	if a.out.Len() > 0 {
		t.Errorf("printed %s", &a.out)
	}
}

// A module that is in use: words for people, the same as data, and nothing that is done.
func TestUnloadInUse(t *testing.T) {
	a := newActing(t)
	a.json = true
	if err := a.load(t, "garp"); err != nil {
		t.Fatal(err)
	}
	a.out.Reset()
	err := a.unload(t.Context(), a.loader, loader.UnloadRequest{Name: "stp"})
	if exitCode(err) != exitRefused || !strings.Contains(err.Error(), "unload stp: in use by garp") {
		t.Errorf("exit %d, %v", exitCode(err), err)
	}
	var doc struct {
		Schema string
		InUse  struct {
			Module  string
			Refcnt  int
			Holders []string
		} `json:"in_use"`
	}
	if err := json.Unmarshal(a.out.Bytes(), &doc); err != nil || doc.Schema != "kmodctl.result/1" || doc.InUse.Module != "stp" ||
		doc.InUse.Refcnt != 1 || !slices.Equal(doc.InUse.Holders, []string{"garp"}) {
		t.Errorf("%v in %s", err, &a.out)
	}
	a.out.Reset()
	if err := a.unload(t.Context(), a.loader, loader.UnloadRequest{Name: "stp", WithHolders: true, WithUnused: true}); err != nil {
		t.Error(err)
	}
	if st, err := loader.ReadState(a.kernel.Root); err != nil || len(st.Modules) > 0 {
		t.Errorf("%v, live: %+v", err, st.Modules)
	}
}

// A live module with other parameters is told, with the way to the ones asked for.
func TestLoadOfLiveWithOtherParameters(t *testing.T) {
	a := newActing(t)
	if err := a.load(t, "garp", "debug=3"); err != nil {
		t.Fatal(err)
	}
	a.stderr.Reset()
	if err := a.load(t, "garp", "debug=4"); err != nil {
		t.Fatal(err)
	}
	if want := `parameter debug is "3", asked for was "4": kmodctl params garp debug=4`; !strings.Contains(a.stderr.String(), want) {
		t.Errorf("not said: %s in\n%s", want, &a.stderr)
	}
}

// A module that does not return ends the command, with what is known of it.
func TestActStuck(t *testing.T) {
	a := newActing(t)
	a.kernel.Before = func(op, module string) error {
		return &loader.StuckError{Thread: 42, Waited: loader.DefaultTimeout, Stack: []string{"msleep+0x2d/0x40", "mrp_init+0x10/0x1000 [mrp]"}}
	}
	err := a.load(t, "mrp")
	a.report(err)
	if !errors.As(err, new(*loader.StuckError)) || exitCode(err) != exitFailed {
		t.Errorf("exit %d, %v", exitCode(err), err)
	}
	for _, want := range []string{"load mrp: its init has not returned for 3m0s", "it is in: mrp_init+0x10/0x1000 [mrp]", `it stays "coming"`, "--timeout 6m0s"} {
		if !strings.Contains(a.stderr.String(), want) {
			t.Errorf("not said: %q in\n%s", want, &a.stderr)
		}
	}
}
