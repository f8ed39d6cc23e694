package loader_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
	"kmodctl/loader"
	"kmodctl/loader/loadertest"
)

// swap plans the replacement of a module by the file that the index has, whose old file is
// what lookup has.
func (b *bench) swap(req loader.SwapRequest, name string, params ...string) (*loader.Swap, error) {
	b.Helper()
	req.Load = loader.LoadRequest{Name: name, Params: params, Index: b.index, State: b.state(), Release: b.release}
	if req.Old == nil {
		req.Old = func(m loader.Live) (string, bool) {
			path, _, ok := b.index.Find(m.Name)
			return path, ok
		}
	}
	return loader.PlanSwap(req)
}

func TestSwap(t *testing.T) {
	b := newBench(t, installed(t)[0])
	for _, name := range []string{"8021q", "garp"} {
		if _, err := b.load(name); err != nil {
			t.Fatal(err)
		}
	}
	before := b.live() // llc stp garp mrp 8021q

	// In use, and nobody has said that the users may go too.
	var inUse *loader.InUseError
	if _, err := b.swap(loader.SwapRequest{}, "stp"); !errors.As(err, &inUse) || !slices.Equal(inUse.Holders, []string{"garp"}) {
		t.Errorf("stp without its holders: %v", err)
	}
	w, err := b.swap(loader.SwapRequest{WithHolders: true}, "stp")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"remove 8021q (uses garp)", "remove garp (uses stp)", "remove stp (asked)"}, short(w.Remove)); diff != "" {
		t.Error(diff)
	}
	res, err := b.RunSwap(t.Context(), w)
	want := []string{"8021q removed", "garp removed", "stp removed", "stp inserted", "garp inserted", "8021q inserted"}
	if diff := cmp.Diff(want, outcomes(res)); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}

	// The new one is refused: all that went is back.
	for _, refusal := range []loadertest.Answer{{Errno: unix.ENODEV, InInit: true}, {Errno: unix.EINVAL, Log: []string{"garp: `x' invalid for parameter `debug'"}}} {
		if w, err = b.swap(loader.SwapRequest{WithHolders: true}, "stp"); err != nil {
			t.Fatal(err)
		}
		refused := 0
		b.Before = func(op, module string) error {
			if op == "finit" && module == "garp" && refused == 0 {
				refused++
				return refusal.Errno
			}
			return nil
		}
		_, err = b.RunSwap(t.Context(), w)
		var failed *loader.SwapError
		if !errors.As(err, &failed) || failed.Back != nil || failed.Module != "stp" || !errors.Is(err, refusal.Errno) {
			t.Errorf("refused with %v: %v", refusal.Errno, err)
		}
		if got := strings.Fields(b.live()); !slices.Equal(sorted(got), sorted(strings.Fields(before))) {
			t.Errorf("live after a refusal: %s", got)
		}
		b.Before = nil
	}

	// A removal that stops half way brings back what it had removed.
	w, err = b.swap(loader.SwapRequest{WithHolders: true}, "stp")
	if err != nil {
		t.Fatal(err)
	}
	b.Use("garp", 1)
	_, err = b.RunSwap(t.Context(), w)
	if !errors.As(err, &inUse) || inUse.Module != "garp" {
		t.Errorf("garp is open: %v", err)
	}
	if got := strings.Fields(b.live()); !slices.Contains(got, "8021q") {
		t.Errorf("8021q is not back: %s", got)
	}
	b.Use("garp", -1)

	// What the kernel refuses both ways is told.
	if w, err = b.swap(loader.SwapRequest{}, "8021q"); err != nil {
		t.Fatal(err)
	}
	b.Answer("8021q", loadertest.Answer{Errno: unix.ENOMEM, InInit: true})
	_, err = b.RunSwap(t.Context(), w)
	var failed *loader.SwapError
	if !errors.As(err, &failed) || failed.Back == nil {
		t.Errorf("got %v", err)
	}
}

// Without the file of what is live nothing is removed.
func TestSwapWithoutWayBack(t *testing.T) {
	b := newBench(t, installed(t)[0])
	if _, err := b.swap(loader.SwapRequest{}, "mrp"); !errors.As(err, new(*loader.NotLiveError)) {
		t.Errorf("mrp is not live: %v", err)
	}
	if _, err := b.load("mrp"); err != nil {
		t.Fatal(err)
	}
	gone := func(loader.Live) (string, bool) { return "", false }
	var noWay *loader.NoWayBackError
	if _, err := b.swap(loader.SwapRequest{Old: gone}, "mrp"); !errors.As(err, &noWay) || noWay.BuildID == "" {
		t.Errorf("got %v", err)
	}
	w, err := b.swap(loader.SwapRequest{Old: gone, Force: true}, "mrp")
	if err != nil || len(w.Notes) == 0 {
		t.Fatalf("forced: %v", err)
	}
	b.Answer("mrp", loadertest.Answer{Errno: unix.ENODEV, InInit: true})
	var failed *loader.SwapError
	if _, err := b.RunSwap(t.Context(), w); !errors.As(err, &failed) || !errors.As(failed.Back, &noWay) {
		t.Errorf("got %v", err)
	}
}

// Parameters keep their live values, unless the command line or modprobe.d set them.
func TestSwapKeepsParameters(t *testing.T) {
	b := newBench(t, installed(t)[0])
	const module = "loop" // max_loop, max_part and hw_queue_depth
	if _, err := b.load(module, "max_loop=3", "max_part=4"); err != nil {
		t.Fatal(err)
	}
	b.Kernel.Write("sys/module/loop/parameters/hw_queue_depth", "64\n") // as somebody wrote it there
	b.Kernel.Write("sys/module/loop/parameters/label", "(null)\n")
	b.Kernel.Write("sys/module/loop/parameters/former", "1\n") // the new file does not have it
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc/modprobe.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/modprobe.d/x.conf"), []byte("options loop max_part=8\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	path, _, _ := b.index.Find(module)
	w, err := loader.PlanSwap(loader.SwapRequest{
		Load: loader.LoadRequest{Name: module, Params: []string{"max_loop=5"}, Index: b.index, State: b.state(), Release: b.release,
			Config: loader.ReadConfig(kernel.Root(root), false)},
		Old: func(loader.Live) (string, bool) { return path, true },
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := w.Insert.Steps[0].Params, "max_part=8 hw_queue_depth=64 max_loop=5"; got != want {
		t.Errorf("parameters %q, want %q", got, want)
	}
	if got, want := w.Back.Steps[0].Params, "former=1 hw_queue_depth=64 max_loop=3 max_part=4"; got != want {
		t.Errorf("on the way back %q, want %q", got, want)
	}
	if len(w.Notes) != 1 || !strings.Contains(w.Notes[0], "former") {
		t.Errorf("notes %q", w.Notes)
	}
}

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }
