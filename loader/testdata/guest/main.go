// Command guest runs inside a virtual machine and tries the loader on its real
// kernel. It prints what is not as it should be and exits with 1.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/internal/vm"
	"kmodctl/loader"
)

func main() {
	loader.Stage()
	vm.Main(func() int {
		g := &guest{}
		if len(os.Args) > 1 && os.Args[1] == "unprivileged" {
			g.unprivileged()
		} else {
			g.all()
		}
		if g.failed {
			return 1
		}
		return 0
	})
}

type guest struct {
	index  *loader.Index
	failed bool
}

func (g *guest) wrong(format string, args ...any) {
	g.failed = true
	fmt.Printf(format+"\n", args...)
}

func (g *guest) all() {
	g.index = loader.OpenIndex("/", "/lib/modules/"+release())
	for _, try := range []func(){g.stack, g.inTree, g.foreign, g.answers, g.twins, g.exitless, g.crash, g.hang, g.disabled} {
		try()
	}
}

func release() string {
	name, err := kernel.Running()
	if err != nil {
		panic(err)
	}
	return name
}

// ours finds the modules that the test put into /mod.
func ours(module, _ string) (string, bool) {
	path := "/mod/" + module + ".ko"
	_, err := os.Stat(path)
	return path, err == nil
}

func state() *loader.State {
	st, err := loader.ReadState("/")
	if err != nil {
		panic(err)
	}
	return st
}

func (g *guest) plan(name string, params ...string) *loader.Plan {
	p, err := loader.PlanLoad(loader.LoadRequest{Name: name, Params: params, Index: g.index, Lookup: ours, State: state(), Release: release()})
	if err != nil {
		panic(err)
	}
	return p
}

func run(p *loader.Plan) (string, loader.Result, error) {
	l := loader.New(loader.DefaultTimeout)
	defer l.Close()
	res, err := l.Run(context.Background(), p)
	var outcomes []string
	for _, r := range res.Done {
		outcomes = append(outcomes, r.Module+" "+r.Outcome)
	}
	return strings.Join(outcomes, ", "), res, err
}

// unload removes a module with what it alone used, and expects that.
func (g *guest) unload(name, want string) {
	p, err := loader.PlanUnload(loader.UnloadRequest{Name: name, WithUnused: true, State: state()})
	if err != nil {
		g.wrong("unload %s: %v", name, err)
		return
	}
	if got, _, err := run(p); err != nil || got != want {
		g.wrong("unload %s: %s, %v; want %s", name, got, err, want)
	}
}

// A dependency in our own files: loaded first, seen in use, removed last.
func (g *guest) stack() {
	p := g.plan("stack_user")
	if got := p.Steps[0].Reason; !strings.HasPrefix(got, "needed by stack_user: symbol stack_") {
		g.wrong("reason for stack: %s", got)
	}
	got, res, err := run(p)
	if err != nil || got != "stack inserted, stack_user inserted" {
		g.wrong("load stack_user: %s, %v", got, err)
		return
	}
	if !slices.Contains(res.Done[1].Log, "stack_user: popped 3") {
		g.wrong("the module's own lines are missing: %q", res.Done[1].Log)
	}
	info, err := ko.Open("/mod/stack.ko")
	if err != nil {
		panic(err)
	}
	stack, _ := state().Find("stack")
	if stack.BuildID != info.BuildID || stack.State != "live" || stack.Taint != "OE" || stack.Refcnt != 1 || !slices.Equal(stack.Holders, []string{"stack_user"}) {
		g.wrong("state of stack: %+v", stack)
	}
	var inUse *loader.InUseError
	if _, err := loader.PlanUnload(loader.UnloadRequest{Name: "stack", State: state()}); !errors.As(err, &inUse) {
		g.wrong("unload stack: %v", err)
	}
	// What the plan cannot see, the kernel does.
	late := &loader.Plan{Steps: []loader.Step{{Action: loader.Remove, Module: "stack"}}}
	if _, _, err := run(late); !errors.As(err, &inUse) || !slices.Equal(inUse.Holders, []string{"stack_user"}) {
		g.wrong("remove stack: %v", err)
	}
	g.unload("stack_user", "stack_user removed, stack removed")
	if lines, err := loader.KernelLog("stack"); err != nil || !slices.ContainsFunc(lines, func(l string) bool { return strings.HasSuffix(l, "] stack: gone, 0 numbers left") }) {
		g.wrong("kernel log of stack: %q, %v", lines, err)
	}
}

// Modules of the distribution, which 6.12 has compressed.
func (g *guest) inTree() {
	if got, _, err := run(g.plan("8021q")); err != nil || strings.Count(got, " inserted") != 5 {
		g.wrong("load 8021q: %s, %v", got, err)
	}
	if got, _, err := run(g.plan("8021q")); err != nil || got != "8021q already live" {
		g.wrong("load 8021q again: %s, %v", got, err)
	}
	if p, err := loader.PlanUnload(loader.UnloadRequest{Name: "8021q", WithUnused: true, State: state()}); err != nil || len(p.Steps) != 5 {
		g.wrong("unload 8021q: %+v, %v", p, err)
	} else if _, _, err := run(p); err != nil || len(state().Modules) != 0 {
		g.wrong("unload 8021q: %v, left %+v", err, state().Modules)
	}
}

// refused runs a plan that the kernel must refuse, and after which it is as before.
func (g *guest) refused(p *loader.Plan, errno unix.Errno, cause string) {
	before := len(state().Modules)
	_, _, err := run(p)
	var e *loader.KernelError
	if !errors.As(err, &e) || e.Errno != errno || e.Cause != cause {
		g.wrong("%+v:\n got %v, %+v\nwant %v, %s", p.Steps, err, e, errno, cause)
	}
	if after := len(state().Modules); after != before {
		g.wrong("%+v: %d modules before, %d after", p.Steps, before, after)
	}
}

func (g *guest) foreign() {
	p, err := loader.PlanLoad(loader.LoadRequest{File: "/foreign/stack.ko", State: state(), Release: release()})
	if err != nil || len(p.Notes) != 1 {
		g.wrong("plan of a foreign module: %+v, %v", p, err)
		return
	}
	info, err := ko.Open("/foreign/stack.ko")
	if err != nil {
		panic(err)
	}
	g.refused(p, unix.ENOEXEC, "the file was built for "+info.Release())
}

func (g *guest) answers() {
	g.refused(g.plan("answers", "ret=-17"), unix.EEXIST, "the module's own init returned it: something that it registers exists already")
	g.refused(g.plan("answers", "ret=-16"), unix.EBUSY, "the module's own init returned it, or another load of the same module kept failing meanwhile")
	g.refused(g.plan("answers", "ret=-5"), unix.EIO, "the module's own init returned it")
	g.refused(g.plan("answers", "ret=many"), unix.EINVAL, `"many" is not a value for parameter ret`)

	got, res, err := run(g.plan("answers", "text=a b,\xc3\xa0 c", "nosuch=1", "takes_ms=0x1"))
	if err != nil || got != "answers inserted" || len(res.Done[0].Notes) != 0 {
		g.wrong("load answers: %s, %v, %+v", got, err, res)
		return
	}
	if !slices.ContainsFunc(res.Done[0].Log, func(l string) bool { return strings.Contains(l, "unknown parameter 'nosuch' ignored") }) {
		g.wrong("nobody hears of the unknown parameter: %q", res.Done[0].Log)
	}
	if m, _ := state().Find("answers"); m.Params["text"] != "a b,\xc3\xa0 c" || m.Params["takes_ms"] != "1" {
		g.wrong("parameters: %q", m.Params)
	}
	g.unload("answers", "answers removed")
}

// twins loads one module twice at the same time, from one file and from two.
func (g *guest) twins() {
	for _, second := range []string{"/mod/answers.ko", "/copy/answers.ko"} {
		for _, ret := range []string{"0", "-5"} {
			params := []string{"takes_ms=300", "ret=" + ret}
			a, b := g.plan("answers", params...), g.plan("answers", params...)
			b.Steps[0].Path = second
			errs := make(chan error)
			for _, p := range []*loader.Plan{a, b} {
				go func() {
					_, _, err := run(p)
					errs <- err
				}()
			}
			for range 2 {
				if err := <-errs; ret == "0" && err != nil || ret != "0" && !errors.Is(err, unix.EIO) {
					g.wrong("two loads at once, second file %s, init returns %s: %v", second, ret, err)
				}
			}
			if ret == "0" {
				g.unload("answers", "answers removed")
			}
		}
	}
}

func (g *guest) exitless() {
	if _, _, err := run(g.plan("exitless")); err != nil {
		g.wrong("load exitless: %v", err)
	}
	if _, err := loader.PlanUnload(loader.UnloadRequest{Name: "exitless", State: state()}); !errors.Is(err, loader.ErrPermanent) {
		g.wrong("unload exitless: %v", err)
	}
	g.refused(&loader.Plan{Steps: []loader.Step{{Action: loader.Remove, Module: "exitless"}}}, unix.EBUSY, loader.ErrPermanent.Error())
}

// crash and hang leave modules behind that are "coming" until the end. The calls
// return all the same, and so does this program.
func (g *guest) crash() {
	_, _, err := run(g.plan("crash"))
	var stuck *loader.StuckError
	if !errors.As(err, &stuck) || !stuck.Died || !slices.ContainsFunc(stuck.Log, func(l string) bool { return strings.Contains(l, "[crash]") }) ||
		!strings.HasPrefix(stuck.Log[0], "BUG: kernel NULL pointer dereference") {
		g.wrong("load crash: %v, %+v", err, stuck)
	}
	if m, _ := state().Find("crash"); m.State != "coming" {
		g.wrong("crash is %q", m.State)
	}
	g.refused(&loader.Plan{Steps: []loader.Step{{Action: loader.Remove, Module: "crash"}}}, unix.EBUSY, "its init has not returned")
}

func (g *guest) hang() {
	l := loader.New(time.Second)
	_, err := l.Run(context.Background(), g.plan("answers", "takes_ms=3600000"))
	l.Close()
	var stuck *loader.StuckError
	if !errors.As(err, &stuck) || stuck.Died || stuck.Waited != time.Second ||
		!slices.ContainsFunc(stuck.Stack, func(l string) bool { return strings.Contains(l, "answers_init") }) {
		g.wrong("load answers for an hour: %v, %+v", err, stuck)
	}
}

// disabled comes last: modules_disabled cannot be taken back.
func (g *guest) disabled() {
	cmd := exec.Command("/init", "unprivileged")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if err := cmd.Run(); err != nil {
		g.wrong("unprivileged: %v", err)
	}
	if err := os.WriteFile("/proc/sys/kernel/modules_disabled", []byte("1"), 0); err != nil {
		g.wrong("%v", err)
	}
	if _, _, err := run(g.plan("stack")); !errors.Is(err, loader.ErrModulesDisabled) {
		g.wrong("load with modules_disabled: %v", err)
	}
}

func (g *guest) unprivileged() {
	if _, _, err := run(g.plan("stack")); !errors.Is(err, loader.ErrNoCapability) {
		g.wrong("load by nobody: %v", err)
	}
	if m, ok := state().Find("exitless"); !ok || m.State != "live" {
		g.wrong("nobody sees no modules: %+v", state())
	}
}
