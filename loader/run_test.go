package loader_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"kmodctl/loader"
	"kmodctl/loader/loadertest"
)

// insertion is a step for an in-tree module.
func (b *bench) insertion(name string, needs ...string) loader.Step {
	b.Helper()
	path, _, ok := b.index.Find(name)
	if !ok {
		b.Fatalf("no module %s", name)
	}
	return loader.Step{Action: loader.Insert, Module: name, Path: path, Needs: needs, Reason: "asked"}
}

// Independent steps run at once: each init here returns only when both are in it. What needs them comes
// after.
func TestIndependentStepsRunAtOnce(t *testing.T) {
	b := newBench(t, installed(t)[0])
	var both sync.WaitGroup
	both.Add(2)
	meet := loadertest.Answer{During: func() { both.Done(); both.Wait() }}
	b.Answer("llc", meet)
	b.Answer("mrp", meet)
	res, err := b.Run(t.Context(), &loader.Plan{Steps: []loader.Step{b.insertion("llc"), b.insertion("mrp"), b.insertion("stp", "llc"), b.insertion("garp", "stp", "llc")}})
	want := []string{"llc inserted", "mrp inserted", "stp inserted", "garp inserted"}
	if diff := cmp.Diff(want, outcomes(res)); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	if calls := b.Calls(); slices.Index(calls, "finit stp") < slices.Index(calls, "finit llc") || calls[3] != "finit garp" {
		t.Errorf("calls: %q", calls)
	}
}

// A step that fails begins no others, what runs is waited for, and all of it is taken back.
func TestFailureBesideAnotherStep(t *testing.T) {
	b := newBench(t, installed(t)[0])
	inInit, failed := make(chan bool), make(chan bool)
	b.Answer("mrp", loadertest.Answer{During: func() { close(inInit); <-failed }})
	b.Answer("llc", loadertest.Answer{Errno: unix.ENODEV, InInit: true, During: func() { <-inInit; close(failed) }})
	res, err := b.Run(t.Context(), &loader.Plan{Steps: []loader.Step{b.insertion("llc"), b.insertion("mrp"), b.insertion("stp", "llc")}})
	if !errors.Is(err, unix.ENODEV) {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff([]string{"mrp inserted", "mrp removed"}, outcomes(res)); diff != "" || b.live() != "" {
		t.Errorf("live: %s, did %s", b.live(), diff)
	}
}

func TestOptionalStepFails(t *testing.T) {
	b := newBench(t, installed(t)[0])
	b.Answer("mrp", loadertest.Answer{Errno: unix.ENODEV, InInit: true})
	soft := b.insertion("mrp")
	soft.Optional = true
	res, err := b.Run(t.Context(), &loader.Plan{Steps: []loader.Step{soft, b.insertion("llc", "mrp")}})
	if diff := cmp.Diff([]string{"mrp failed", "llc inserted"}, outcomes(res)); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	if got := res.Done[0].Error; !strings.Contains(got, "no such device") {
		t.Errorf("told %q", got)
	}
}

// Every refusal of the catalogue is told with the kernel's lines and a cause, and leaves nothing.
func TestCatalogue(t *testing.T) {
	for _, refusal := range loadertest.Catalogue("mrp") {
		t.Run(refusal.Name, func(t *testing.T) {
			b := newBench(t, installed(t)[0])
			b.Answer("mrp", refusal.Answer)
			_, err := b.load("mrp")
			var refused *loader.KernelError
			if !errors.As(err, &refused) || refused.Errno != refusal.Errno {
				t.Fatalf("got %v", err)
			}
			if diff := cmp.Diff(refusal.Log, refused.Log[:len(refusal.Log)]); diff != "" {
				t.Error(diff)
			}
			if refused.Cause == "" || refused.CauseID == "" || refused.CauseID == loader.CauseUnknown {
				t.Errorf("no cause: %+v", refused)
			}
			if _, err := os.Stat(filepath.Join(string(b.Kernel.Root), "sys/module/mrp")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("/sys/module/mrp: %v", err)
			}
		})
	}
}

// Lines without a name are a module's only while nobody else loads: of two refusals at
// once, neither is explained by what may be about the other.
func TestNamelessLinesOfTwo(t *testing.T) {
	b := newBench(t, installed(t)[0])
	var both sync.WaitGroup
	both.Add(2)
	b.Before = func(op, module string) error {
		if op == "delete" {
			return nil
		}
		both.Done()
		both.Wait()
		b.Print("Loading of unsigned module is rejected", module+": a line of its own")
		return unix.EKEYREJECTED
	}
	errs := make(chan error)
	for _, s := range []loader.Step{b.insertion("llc"), b.insertion("mrp")} {
		go func() {
			_, err := b.Run(context.Background(), &loader.Plan{Steps: []loader.Step{s}})
			errs <- err
		}()
	}
	for range 2 {
		var refused *loader.KernelError
		if err := <-errs; !errors.As(err, &refused) || len(refused.Log) != 1 || refused.Log[0] != refused.Module+": a line of its own" || refused.Cause != "" {
			t.Errorf("%v: %+v", err, refused)
		}
	}
	b.Before = func(op, module string) error {
		b.Print("Loading of unsigned module is rejected")
		return unix.EKEYREJECTED
	}
	var refused *loader.KernelError
	if _, err := b.load("mrp"); !errors.As(err, &refused) || refused.CauseID != loader.CauseUnsigned {
		t.Errorf("alone: %v, %+v", err, refused)
	}
}

// Many loads of one module at once: one inserts it, and all are told so.
func TestTwinLoads(t *testing.T) {
	b := newBench(t, installed(t)[0])
	plan, err := loader.PlanLoad(loader.LoadRequest{Name: "garp", Index: b.index, Release: b.release})
	if err != nil {
		t.Fatal(err)
	}
	var twins sync.WaitGroup
	var mu sync.Mutex
	count := map[string]int{}
	for range 16 {
		twins.Go(func() {
			res, err := b.Run(t.Context(), plan)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
				return
			}
			count[res.Done[2].Outcome]++
		})
	}
	twins.Wait()
	if count["inserted"] != 1 || count["already live"] != 15 || len(b.Calls()) != 3 {
		t.Errorf("%v, calls %q", count, b.Calls())
	}
}

// How long another of ours is waited for is the user's to say.
func TestPatience(t *testing.T) {
	b := newBench(t, installed(t)[0])
	inInit, end := make(chan bool), make(chan bool)
	b.Answer("mrp", loadertest.Answer{During: func() { close(inInit); <-end }})
	done := make(chan error)
	plan := &loader.Plan{Steps: []loader.Step{b.insertion("mrp")}}
	go func() {
		_, err := b.Run(context.Background(), plan)
		done <- err
	}()
	<-inInit
	hasty := &loader.Loader{Kernel: b.Kernel, Root: b.Kernel.Root, Patience: -1}
	if _, err := hasty.Run(t.Context(), plan); !errors.Is(err, loader.ErrLocked) {
		t.Errorf("got %v", err)
	}
	close(end)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The kernel gets the file itself where it can decompress it, and else what is in it.
func TestCompressedFiles(t *testing.T) {
	b := newBench(t, installed(t)[0])
	path, _, _ := b.index.Find("mrp")
	dir := t.TempDir()
	plain, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, args ...string) string {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdin = strings.NewReader(string(plain))
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, out, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	crc32 := file("crc32.ko.xz", "xz", "-c", "--check=crc32")
	crc64 := file("crc64.ko.xz", "xz", "-c")
	gzip := file("x.ko.gz", "gzip", "-c")
	lying := file("lying.ko.xz", "xz", "-c", "--check=crc64")
	text, _ := os.ReadFile(lying)
	text[7] = 1 // says crc32; the decoder finds out
	if err := os.WriteFile(lying, text, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, kernel, path, call string }{
		{"none", "", crc32, "finit mrp"},
		{"xz, crc32", "xz", crc32, "finit compressed mrp"},
		{"xz, crc64", "xz", crc64, "finit mrp"},
		{"other format", "xz", gzip, "finit mrp"},
		{"gzip", "gzip", gzip, "finit compressed mrp"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, installed(t)[0])
			if c.kernel != "" {
				b.Decompress(c.kernel)
			}
			_, err := b.Run(t.Context(), &loader.Plan{Steps: []loader.Step{{Action: loader.Insert, Module: "mrp", Path: c.path}}})
			if err != nil || !slices.Equal(b.Calls(), []string{c.call}) {
				t.Errorf("%v, calls %q", err, b.Calls())
			}
		})
	}
	// A file that the kernel's decoder does not take is tried as we read it: here we cannot either.
	b.Decompress("xz")
	_, err = b.Run(t.Context(), &loader.Plan{Steps: []loader.Step{{Action: loader.Insert, Module: "mrp", Path: lying}}})
	if err == nil || !strings.Contains(err.Error(), lying) || errors.Is(err, unix.EINVAL) {
		t.Errorf("got %v", err)
	}
}

// Users are waited for as long as was asked, and no longer.
func TestWaitForUsers(t *testing.T) {
	b := newBench(t, installed(t)[0])
	if _, err := b.load("mrp"); err != nil {
		t.Fatal(err)
	}
	b.Use("mrp", 1)
	plan, err := loader.PlanUnload(loader.UnloadRequest{Name: "mrp", Wait: true, State: b.state()})
	if err != nil {
		t.Fatal(err)
	}
	b.Loader.Wait = time.Millisecond
	if _, err := b.Run(t.Context(), plan); !errors.As(err, new(*loader.InUseError)) {
		t.Errorf("nobody went away: %v", err)
	}
	b.Loader.Wait = time.Hour
	tries := 0
	b.Before = func(op, module string) error {
		if tries++; tries == 5 {
			b.Use("mrp", -1)
		}
		return nil
	}
	if res, err := b.Run(t.Context(), plan); err != nil || outcomes(res)[0] != "mrp removed" || tries != 5 {
		t.Errorf("%v after %d tries", err, tries)
	}
}

// What does not return is told with what is known of it, and what was inserted before is removed
// as far as it can be.
func TestStuck(t *testing.T) {
	b := newBench(t, installed(t)[0])
	b.Before = func(op, module string) error {
		if op != "finit" || module != "garp" {
			return nil
		}
		b.Print("BUG: unable to handle page fault for address: 00000000beef", "CPU: 0 PID: 7 Comm: other", "RIP: 0010:other_init+0x5/0x10 [other]", "---[ end trace 0 ]---",
			"BUG: kernel NULL pointer dereference, address: 0000000000000008", "Oops: 0002 [#1] PREEMPT SMP NOPTI", "CPU: 0 PID: 42 Comm: kmodctl Tainted: G",
			"RIP: 0010:garp_init+0x5/0x1000 [garp]", "Code: 00", "---[ end trace 0 ]---")
		return &loader.StuckError{Thread: 42, Died: true}
	}
	res, err := b.load("garp")
	var stuck *loader.StuckError
	if !errors.As(err, &stuck) || err.Error() != "load garp: its init crashed the kernel's thread (an oops)" {
		t.Fatalf("got %v", err)
	}
	want := []string{"BUG: kernel NULL pointer dereference, address: 0000000000000008", "Oops: 0002 [#1] PREEMPT SMP NOPTI", "RIP: 0010:garp_init+0x5/0x1000 [garp]"}
	if diff := cmp.Diff(want, stuck.Log); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"llc inserted", "stp inserted", "stp removed", "llc removed"}, outcomes(res)); diff != "" {
		t.Error(diff)
	}
}

func TestTaintIsToldWhenTheFileDoesNotSayIt(t *testing.T) {
	b := newBench(t, installed(t)[0])
	for taint, want := range map[string]int{"": 0, "O": 1, "F": 1, "OF": 2, "E": 1} {
		b.Answer("mrp", loadertest.Answer{Taint: taint})
		res, err := b.load("mrp")
		if err != nil || len(res.Done[0].Notes) != want {
			t.Errorf("taint %q: %v, notes %q", taint, err, res.Done[0].Notes)
		}
		if _, err := b.unload("mrp", false); err != nil {
			t.Fatal(err)
		}
	}
}

// Commands of modprobe.d run as modprobe runs them; one that fails is told with what it said.
func TestCommandStep(t *testing.T) {
	b := newBench(t, installed(t)[0])
	step := loader.Step{Action: loader.Command, Module: "mrp", Command: "echo $MODPROBE_MODULE", Reason: "asked"}
	res, err := b.Run(t.Context(), &loader.Plan{Steps: []loader.Step{step}})
	if err != nil || res.Done[0].Outcome != loader.Ran || !slices.Equal(res.Done[0].Notes, []string{"mrp"}) {
		t.Errorf("%v %+v", err, res)
	}
	step.Command = "echo no reason >&2; exit 3"
	removal := loader.Step{Action: loader.RemoveCommand, Module: "mrp", Command: step.Command, Reason: "asked"}
	if _, err := b.Run(t.Context(), &loader.Plan{Steps: []loader.Step{removal}}); err == nil || !strings.HasPrefix(err.Error(), "unload mrp: ") {
		t.Errorf("got %v", err)
	}
	if _, err := b.Run(t.Context(), &loader.Plan{Steps: []loader.Step{step}}); err == nil || !strings.Contains(err.Error(), "no reason") {
		t.Errorf("got %v", err)
	}
}
