package loader_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"kmodctl/internal/ko"
	"kmodctl/loader"
	"kmodctl/loader/loadertest"
)

// bench is a fake kernel with the modules of an installed release.
type bench struct {
	*testing.T
	*loadertest.Kernel
	*loader.Loader
	index   *loader.Index
	release string
}

func newBench(t *testing.T, release string) *bench {
	t.Helper()
	index := loader.OpenIndex("/", "/lib/modules/"+release)
	k := loadertest.New(t, release)
	return &bench{t, k, &loader.Loader{Kernel: k, Root: k.Root}, index, release}
}

func eachBench(t *testing.T, test func(b *bench)) {
	for _, release := range installed(t) {
		t.Run(release, func(t *testing.T) { test(newBench(t, release)) })
	}
}

func (b *bench) load(name string, params ...string) (loader.Result, error) {
	b.Helper()
	return b.loadContext(b.Context(), name, params...)
}

func (b *bench) loadContext(ctx context.Context, name string, params ...string) (loader.Result, error) {
	b.Helper()
	p, err := loader.PlanLoad(loader.LoadRequest{Name: name, Params: params, Index: b.index, State: b.state(), Release: b.release})
	if err != nil {
		b.Fatal(err)
	}
	return b.Run(ctx, p)
}

func (b *bench) unload(name string, unused bool) (loader.Result, error) {
	b.Helper()
	p, err := loader.PlanUnload(loader.UnloadRequest{Name: name, WithUnused: unused, State: b.state()})
	if err != nil {
		b.Fatal(err)
	}
	return b.Run(b.Context(), p)
}

func (b *bench) state() *loader.State {
	b.Helper()
	st, err := loader.ReadState(b.Kernel.Root)
	if err != nil {
		b.Fatal(err)
	}
	return st
}

// live returns the names of the modules, oldest first.
func (b *bench) live() string {
	b.Helper()
	var names []string
	for _, m := range b.state().Modules {
		names = append([]string{m.Name}, names...)
	}
	return strings.Join(names, " ")
}

// Run, Fatal and so on would be ambiguous otherwise.
func (b *bench) Run(ctx context.Context, p *loader.Plan) (loader.Result, error) {
	return b.Loader.Run(ctx, p)
}

func outcomes(res loader.Result) (lines []string) {
	for _, r := range res.Done {
		lines = append(lines, r.Module+" "+r.Outcome)
	}
	return lines
}

func TestLoadAndUnload(t *testing.T) {
	eachBench(t, func(b *bench) {
		res, err := b.load("garp", "debug=3")
		if err != nil {
			b.Fatal(err)
		}
		if diff := cmp.Diff([]string{"llc inserted", "stp inserted", "garp inserted"}, outcomes(res)); diff != "" {
			b.Error(diff)
		}
		garp, _ := b.state().Find("garp")
		path, _, _ := b.index.Find("garp")
		info, err := ko.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		if garp.BuildID != info.BuildID || garp.BuildID == "" || garp.Params["debug"] != "3" || garp.State != "live" || garp.Taint != "" {
			b.Errorf("state of garp: %+v", garp)
		}
		if stp, _ := b.state().Find("stp"); stp.Refcnt != 1 || !cmp.Equal(stp.Holders, []string{"garp"}) {
			b.Errorf("state of stp: %+v", stp)
		}

		if res, err = b.load("8021q"); err != nil || b.live() != "llc stp garp mrp 8021q" {
			b.Fatalf("%v, live: %s, did %q", err, b.live(), outcomes(res))
		}
		if res, err = b.load("8021q"); err != nil || !cmp.Equal(outcomes(res), []string{"8021q already live"}) {
			b.Errorf("second load: %v, did %q", err, outcomes(res))
		}
		if res, err = b.unload("8021q", false); err != nil || b.live() != "llc stp garp mrp" {
			b.Errorf("%v, live: %s, did %q", err, b.live(), outcomes(res))
		}
		if res, err = b.unload("garp", true); err != nil || b.live() != "mrp" {
			b.Errorf("%v, live: %s, did %q", err, b.live(), outcomes(res))
		}
	})
}

// A load that fails half way leaves the kernel as it was.
func TestFailedLoadIsUndone(t *testing.T) {
	eachBench(t, func(b *bench) {
		if _, err := b.load("llc"); err != nil {
			b.Fatal(err)
		}
		b.Before = func(op, module string) error {
			if op == "finit" && module == "8021q" {
				b.Print("8021q: version magic '9.9 SMP ' should be '6.1 SMP '")
				return unix.ENOEXEC
			}
			return nil
		}
		res, err := b.load("8021q")
		var refused *loader.KernelError
		if !errors.As(err, &refused) || !errors.Is(err, unix.ENOEXEC) {
			b.Fatalf("got %v", err)
		}
		if b.live() != "llc" {
			b.Errorf("live: %s", b.live())
		}
		if n := len(res.Done); n != 7 || res.Done[n-1].Reason != "the load failed" {
			b.Errorf("did %q", outcomes(res))
		}
		if want := "load 8021q: kernel " + b.release + " refused the module: exec format error"; err.Error() != want {
			b.Errorf("got %q, want %q", err, want)
		}
		if want := `the file's vermagic is "9.9 SMP", the kernel's is "6.1 SMP"`; refused.Cause != want {
			b.Errorf("cause %q", refused.Cause)
		}
		if refused.BuiltFor != b.release || refused.Path == "" || len(refused.Log) != 1 {
			b.Errorf("%+v", refused)
		}
	})
}

func TestInsertAnswers(t *testing.T) {
	always := func(err error) func(*bench) {
		return func(b *bench) {
			b.Before = func(op, _ string) error {
				if op == "delete" {
					return nil
				}
				return err
			}
		}
	}
	// times makes the first n calls fail.
	times := func(n int32, err error) func(*bench) {
		return func(b *bench) {
			var calls atomic.Int32
			b.Before = func(string, string) error {
				if calls.Add(1) <= n {
					return err
				}
				return nil
			}
		}
	}
	for _, c := range []struct {
		name    string
		prepare func(*bench)
		outcome string // when it shall succeed
		err     error
		cause   string
		calls   int
	}{
		{"interrupted", times(2, unix.EINTR), "inserted", nil, "", 3},
		{"a twin failed", times(2, unix.EBUSY), "inserted", nil, "", 3},
		{"busy for good", always(unix.EBUSY), "", unix.EBUSY, "the module's own init returned it, or another load of the same module kept failing meanwhile", 4},
		{"init returned EEXIST", always(unix.EEXIST), "", unix.EEXIST, "the module's own init returned it: something that it registers exists already", 1},
		{"somebody was quicker", func(b *bench) {
			b.Before = func(string, string) error {
				b.Kernel.Write("sys/module/mrp/initstate", "live\n")
				return unix.EEXIST
			}
		}, "already live", nil, "", 1},
		{"somebody is about to", func(b *bench) {
			b.Before = func(string, string) error {
				b.Kernel.Write("sys/module/mrp/initstate", "coming\n")
				go b.Kernel.Write("sys/module/mrp/initstate", "live\n")
				return unix.EEXIST
			}
		}, "already live", nil, "", 1},
		{"no finit_module", func(b *bench) {
			b.Before = func(op, _ string) error {
				if op == "finit" {
					return unix.ENOSYS
				}
				return nil
			}
		}, "inserted", nil, "", 2},
		{"no system call", always(unix.ENOSYS), "", loader.ErrNoModules, "", 2},
		{"no modules", func(b *bench) { b.Kernel.Remove("proc/modules") }, "", loader.ErrNoModules, "", 0},
		{"proc not mounted", func(b *bench) { b.Kernel.Remove("proc") }, "", os.ErrNotExist, "", 0},
		{"no capability", func(b *bench) { b.Kernel.Write("proc/self/status", "CapEff:\t00000000a80425fb\n") }, "", loader.ErrNoCapability, "", 0},
		{"disabled", func(b *bench) { b.Kernel.Write("proc/sys/kernel/modules_disabled", "1\n") }, "", loader.ErrModulesDisabled, "", 0},
		{"no such device", always(unix.ENODEV), "", unix.ENODEV, "the module's own init returned it: there is no such device here", 1},
		{"init failed", always(unix.EIO), "", unix.EIO, "the module's own init returned it", 1},
		{"tampered", always(unix.EKEYREJECTED), "", unix.EKEYREJECTED, "the signing key is trusted, but the file has changed since it was signed", 1},
		{"silence is no evidence unheard", func(b *bench) {
			always(unix.EIO)(b)
			b.Kernel.Remove("dev/kmsg")
		}, "", unix.EIO, "", 1},
		{"another kernel's file", func(b *bench) {
			b.Kernel.Write("proc/sys/kernel/osrelease", "5.10.0\n")
			b.Before = func(op, module string) error {
				b.Print(module + ": disagrees about version of symbol module_layout")
				return unix.ENOEXEC
			}
		}, "", unix.ENOEXEC, "the file was built for RELEASE", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, installed(t)[0])
			plan, err := loader.PlanLoad(loader.LoadRequest{Name: "mrp", Index: b.index, Release: b.release})
			if err != nil {
				t.Fatal(err)
			}
			c.prepare(b)
			res, err := b.Run(t.Context(), plan)
			if !errors.Is(err, c.err) {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			if c.err == nil && !cmp.Equal(outcomes(res), []string{"mrp " + c.outcome}) {
				t.Errorf("did %q", outcomes(res))
			}
			var refused *loader.KernelError
			if errors.As(err, &refused) && refused.Cause != strings.ReplaceAll(c.cause, "RELEASE", b.release) {
				t.Errorf("cause %q, want %q", refused.Cause, c.cause)
			}
			if c.cause != "" && refused == nil {
				t.Errorf("%v is no *KernelError", err)
			}
			if len(b.Calls()) != c.calls {
				t.Errorf("calls: %q, want %d", b.Calls(), c.calls)
			}
		})
	}
}

// An oops in a module's init leaves the call hanging for ever: the user's ^C
// must still end the command.
func TestInitThatNeverReturns(t *testing.T) {
	b := newBench(t, installed(t)[0])
	ctx, cancel := context.WithCancel(t.Context())
	forever := make(chan struct{})
	defer close(forever)
	b.Before = func(string, string) error {
		cancel()
		<-forever
		return unix.EIO
	}
	_, err := b.loadContext(ctx, "mrp")
	if !errors.Is(err, context.Canceled) || err.Error() != "load mrp: its init has not returned: context canceled" {
		t.Errorf("got %v", err)
	}
}

// Two loads at once: the one that comes second may be told "coming" for long.
func TestCancelWhileAnotherLoads(t *testing.T) {
	b := newBench(t, installed(t)[0])
	ctx, cancel := context.WithCancel(t.Context())
	b.Before = func(string, string) error {
		b.Kernel.Write("sys/module/mrp/initstate", "coming\n")

		go cancel()
		return unix.EEXIST
	}
	_, err := b.loadContext(ctx, "mrp")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestBadFiles(t *testing.T) {
	b := newBench(t, installed(t)[0])
	path, _, _ := b.index.Find("mrp")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, c := range []struct {
		name string
		make func(path string) error
		want error
	}{
		{"truncated.ko", func(p string) error { return os.WriteFile(p, good[:len(good)/2], 0o644) }, ko.ErrTruncated},
		{"empty.ko", func(p string) error { return os.WriteFile(p, nil, 0o644) }, ko.ErrTruncated},
		{"text.ko", func(p string) error {
			return os.WriteFile(p, []byte("#!/bin/sh\nexit 0 # "+strings.Repeat("x", 99)), 0o644)
		}, ko.ErrNotELF},
		{"damaged.ko.xz", func(p string) error { return os.WriteFile(p, []byte("\xfd7zXZ\x00junk"), 0o644) }, nil},
		{"folder.ko", func(p string) error { return os.Mkdir(p, 0o755) }, ko.ErrNotModule},
		{"fifo.ko", func(p string) error { return unix.Mkfifo(p, 0o644) }, ko.ErrNotModule},
		{"absent.ko", func(p string) error { return nil }, os.ErrNotExist},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, c.name)
			if err := c.make(path); err != nil {
				t.Fatal(err)
			}
			p := &loader.Plan{Steps: []loader.Step{{Action: loader.Insert, Module: "mrp", Path: path}}}
			_, err := b.Run(t.Context(), p)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if err != nil && (!strings.HasPrefix(err.Error(), "load mrp: ") || strings.Count(err.Error(), path) != 1) {
				t.Errorf("%v does not name the module and, once, the file", err)
			}
		})
	}
	if len(b.Calls()) != 0 {
		t.Errorf("the kernel was asked: %q", b.Calls())
	}
}

func TestLogAndNotes(t *testing.T) {
	b := newBench(t, installed(t)[0])
	b.Print("mrp: from an earlier load")
	b.Before = func(op, module string) error {
		b.Print("usb 1-1: new device", "mrp: loading out-of-tree module taints kernel.", " SUBSYSTEM=module", "other: hello", "mrp: unknown parameter 'nosuch' ignored")
		b.Kernel.Write("sys/module/mrp/parameters/clamped", "7\n")
		return nil
	}
	b.Kernel.Write("sys/module/mrp/notes/.note.gnu.build-id", "")
	res, err := b.load("mrp", "clamped=9", "n=0x10", "flag=1")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"mrp: loading out-of-tree module taints kernel.", "mrp: unknown parameter 'nosuch' ignored"}
	if diff := cmp.Diff(want, res.Done[0].Log); diff != "" {
		t.Error(diff)
	}

	// Now with what sysfs makes of the values.
	b.Before = func(op, module string) error {
		b.Kernel.Write("sys/module/stp/initstate", "live\n")
		b.Kernel.Write("sys/module/stp/parameters/clamped", "7\n")
		b.Kernel.Write("sys/module/stp/parameters/n", "16\n")
		b.Kernel.Write("sys/module/stp/parameters/flag", "Y\n")
		b.Kernel.Write("sys/module/stp/parameters/list", "1,2,0\n")
		b.Kernel.Write("sys/module/stp/parameters/text", "a b\n")
		b.Kernel.Write("sys/module/stp/notes/.note.gnu.build-id", "\x04\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00GNU\x00\xbe\xef")
		return unix.EEXIST
	}
	path, _, _ := b.index.Find("stp")
	p := &loader.Plan{Steps: []loader.Step{{Action: loader.Insert, Module: "stp", Path: path,
		Params: `clamped=8 clamped=9 n=0x10 flag=1 list=1,2,n text="a b" hidden=1`}}}
	res, err = b.Run(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	want = []string{"the live stp is another build than " + path}
	if diff := cmp.Diff(want, res.Done[0].Notes); diff != "" {
		t.Error(diff)
	}
	differ := []loader.Difference{{Param: "clamped", Asked: "9", Have: "7", Writable: true}}
	if diff := cmp.Diff(differ, res.Done[0].Differences); diff != "" {
		t.Error(diff)
	}
}

func TestRemoveAnswers(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(*bench)
		outcome string
		want    string // the error
		cause   string
		calls   int
	}{
		{"gone already", func(b *bench) { b.Before = func(string, string) error { return unix.ENOENT } }, "not loaded", "", "", 1},
		{"opened meanwhile", func(b *bench) { b.Use("mrp", 2) }, "", "unload mrp: in use by something that is not a module (refcnt 2)", "", 1},
		{"used meanwhile", func(b *bench) {
			b.Kernel.Write("sys/module/mrp/holders/8021q", "")
			b.Kernel.Write("sys/module/mrp/refcnt", "1\n")
			b.Before = func(string, string) error { return unix.EAGAIN }
		}, "", "unload mrp: in use by 8021q", "", 1},
		{"just closed", func(b *bench) {
			first := true
			b.Before = func(string, string) error {
				if first {
					first = false
					return unix.EAGAIN
				}
				return nil
			}
		}, "removed", "", "", 2},
		{"no exit function", func(b *bench) { b.Pin("mrp") }, "", "unload mrp: device or resource busy", "it has no exit function, so that only a reboot removes it", 1},
		{"in its init", func(b *bench) {
			b.Kernel.Write("sys/module/mrp/initstate", "coming\n")
			b.Before = func(string, string) error { return unix.EBUSY }
		}, "", "unload mrp: device or resource busy", "its init has not returned", 1},
		{"disabled", func(b *bench) { b.Kernel.Write("proc/sys/kernel/modules_disabled", "1\n") }, "",
			"unload mrp: kernel.modules_disabled is 1: until the next boot nothing can be loaded or removed", "", 0},
		{"no modules", func(b *bench) { b.Before = func(string, string) error { return unix.ENOSYS } }, "",
			"unload mrp: this kernel has no module support (a container or VPS that shares its host's kernel?)", "", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, installed(t)[0])
			if _, err := b.load("mrp"); err != nil {
				t.Fatal(err)
			}
			p, err := loader.PlanUnload(loader.UnloadRequest{Name: "mrp", State: b.state()})
			if err != nil {
				t.Fatal(err)
			}
			c.prepare(b)
			res, err := b.Run(t.Context(), p)
			if c.want == "" && (err != nil || outcomes(res)[0] != "mrp "+c.outcome) {
				t.Fatalf("%v, did %q", err, outcomes(res))
			}
			if c.want != "" && (err == nil || err.Error() != c.want) {
				t.Fatalf("got %v, want %s", err, c.want)
			}
			var refused *loader.KernelError
			if errors.As(err, &refused) && refused.Cause != c.cause {
				t.Errorf("cause %q, want %q", refused.Cause, c.cause)
			}
			if c.cause != "" && refused == nil {
				t.Errorf("%v is no *KernelError", err)
			}
			if got := len(b.Calls()) - 1; got != c.calls {
				t.Errorf("calls: %q, want %d", b.Calls(), c.calls)
			}
		})
	}
}

// TestAliasOfSeveral: of the drivers that a device's name stands for, one may
// refuse. All of them must not.
func TestAliasOfSeveral(t *testing.T) {
	eachBench(t, func(b *bench) {
		root := fabricated(b, map[string]string{"etc/modprobe.d/a.conf": "alias device mrp\nalias device llc\n"})
		load := func() (loader.Result, error) {
			p, err := loader.PlanLoad(loader.LoadRequest{Name: "device", Index: b.index, Config: loader.ReadConfig(root, false), Release: b.release})
			if err != nil {
				b.Fatal(err)
			}
			return b.Run(b.Context(), p)
		}
		b.Answer("mrp", loadertest.Answer{Errno: unix.ENODEV, InInit: true})
		res, err := load()
		if err != nil || len(res.Done) != 2 || res.Done[0].Outcome == res.Done[1].Outcome {
			b.Errorf("one of two: %v, %+v", err, res.Done)
		}
		if _, err := b.unload("llc", false); err != nil {
			b.Error(err)
		}
		b.Answer("llc", loadertest.Answer{Errno: unix.EIO, InInit: true})
		if _, err := load(); !errors.Is(err, unix.ENODEV) {
			b.Errorf("two of two: %v", err)
		}
	})
}
