package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"kmodctl/internal/ko"
	"kmodctl/internal/vm"
)

// Where onRealKernels puts things in the guest.
const (
	guestBinary  = "/bin/kmodctl"
	guestForeign = "/foreign" // modules that must not load
	jsonMark     = "JSON "    // begins a line with a document that a command printed
)

// onRealKernels boots each release with the machine that TestMainJob built, and
// runs guestChecks in it: the real binary, on a real kernel.
func onRealKernels(t *testing.T, root string, rels []string) {
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	foreign := foreignModules(t, root, rels)
	depmod := program(t, "depmod")
	for _, release := range rels {
		t.Run(release, func(t *testing.T) {
			var out, console bytes.Buffer
			code, err := vm.Run(t.Context(), vm.Config{
				Image: filepath.Join(root, "boot/vmlinuz-"+release),
				Init:  self,
				Env:   map[string]string{guestEnv: release},
				Files: append([]vm.File{
					{Guest: guestBinary, Host: path},
					{Guest: "/lib/modules", Host: filepath.Join(root, "lib/modules")},
					{Guest: "/var/lib/kmodctl", Host: filepath.Join(root, "var/lib/kmodctl")},
					{Guest: guestForeign, Host: foreign[release]},
				}, depmod...),
				Output: &out, Console: &console,
			})
			if err != nil {
				t.Fatalf("%v\n%s\n%s", err, out.String(), console.String())
			}
			t.Logf("%s", out.String())
			for line := range strings.Lines(out.String()) {
				if doc, ok := strings.CutPrefix(line, jsonMark); ok {
					checkDocumented(t, doc)
				}
			}
			if code != 0 {
				t.Errorf("exit %d", code)
			}
		})
	}
}

// program is a program of this machine, in /sbin of the guest, and the libraries that it needs.
func program(t testing.TB, name string) []vm.File {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	files := []vm.File{{Guest: "/sbin/" + name, Host: path}}
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		t.Fatalf("ldd %s: %v", path, err)
	}
	for _, word := range strings.Fields(string(out)) {
		if filepath.IsAbs(word) {
			files = append(files, vm.File{Guest: word, Host: word})
		}
	}
	return files
}

// foreignModules makes, for each release, a folder of files that its kernel must
// refuse: another release's module and several that are none.
func foreignModules(t *testing.T, root string, rels []string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for i, release := range rels {
		dir := t.TempDir()
		out[release] = dir
		read := func(release string) []byte {
			files, _ := filepath.Glob(filepath.Join(root, "lib/modules", release, "updates/kmodctl/hello.ko*"))
			if len(files) != 1 {
				t.Fatalf("hello of %s: %q", release, files)
			}
			text, err := os.ReadFile(files[0])
			if err == nil {
				text, _, err = ko.Decompress(text)
			}
			if err != nil {
				t.Fatal(err)
			}
			return text
		}
		own, other := read(release), read(rels[(i+1)%len(rels)])
		arm := slices.Clone(own)
		arm[18], arm[19] = 183, 0 // e_machine: EM_AARCH64
		for name, text := range map[string][]byte{
			"other-release.ko": other, "truncated.ko": own[:len(own)/2], "not-elf.ko": []byte("#!/bin/sh\n"),
			"other-arch.ko": arm, "empty.ko": nil,
		} {
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		object := exec.Command("gcc", "-x", "c", "-c", "-o", filepath.Join(dir, "no-module.ko"), "-")
		object.Stdin = strings.NewReader("int x;\n")
		if text, err := object.CombinedOutput(); err != nil {
			t.Fatalf("gcc: %v: %s", err, text)
		}
	}
	return out
}

// guest runs the checks inside the virtual machine. A check that fails says so,
// and the others go on.
type guest struct{ failed int }

func (g *guest) errorf(format string, args ...any) {
	g.failed++
	fmt.Printf("FAIL: "+format+"\n", args...)
}

// run runs kmodctl, which must exit with code.
func (g *guest) run(code int, args ...string) result {
	cmd := exec.Command(guestBinary, args...)
	return g.command(code, cmd)
}

func (g *guest) command(code int, cmd *exec.Cmd) result {
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		g.errorf("%v", err)
		return result{}
	}
	r := result{cmd.ProcessState.ExitCode(), out.String(), stderr.String()}
	var compact bytes.Buffer
	if json.Compact(&compact, out.Bytes()) == nil {
		fmt.Printf("$ %s\n%s%s\n%s", strings.Join(cmd.Args, " "), jsonMark, compact.Bytes(), r.stderr)
	} else {
		fmt.Printf("$ %s\n%s%s", strings.Join(cmd.Args, " "), r.out, r.stderr)
	}
	if r.code != code {
		g.errorf("%s: exit %d, want %d", strings.Join(cmd.Args, " "), r.code, code)
	}
	return r
}

// says checks that a run told each of the texts on standard error.
func (g *guest) says(r result, texts ...string) { g.has(r.stderr, texts) }

// prints checks that a run told each of the texts on standard output.
func (g *guest) prints(r result, texts ...string) { g.has(r.out, texts) }

func (g *guest) has(stream string, texts []string) {
	for _, text := range texts {
		if !strings.Contains(stream, text) {
			g.errorf("not said: %q", text)
		}
	}
}

// file checks what a file of the guest holds.
func (g *guest) file(path, want string) {
	text, err := os.ReadFile(path)
	if err != nil {
		g.errorf("%v", err)
	} else if got := strings.TrimSpace(string(text)); got != want {
		g.errorf("%s is %q, want %q", path, got, want)
	}
}

// write writes a file of the guest and returns the error.
func (g *guest) write(path, text string) error {
	return os.WriteFile(path, []byte(text), 0)
}

// live is the modules of /proc/modules, sorted.
func (g *guest) live() (names []string) {
	text, err := os.ReadFile("/proc/modules")
	if err != nil {
		g.errorf("%v", err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		if line != "" {
			names = append(names, strings.Fields(line)[0])
		}
	}
	slices.Sort(names)
	return names
}

// wantLive checks /proc/modules, and that list and /sys/module agree with it.
func (g *guest) wantLive(want ...string) {
	slices.Sort(want)
	if got := g.live(); !slices.Equal(got, want) {
		g.errorf("/proc/modules has %v, want %v", got, want)
	}
	var doc struct{ Modules []liveModule }
	if err := json.Unmarshal([]byte(g.run(0, "list", "--json").out), &doc); err != nil {
		g.errorf("list: %v", err)
	}
	var listed []string
	for _, m := range doc.Modules {
		listed = append(listed, m.Name)
		g.file("/sys/module/"+m.Name+"/initstate", m.State)
		g.file("/sys/module/"+m.Name+"/refcnt", fmt.Sprint(m.Refcnt))
	}
	slices.Sort(listed)
	if !slices.Equal(listed, want) {
		g.errorf("list has %v, want %v", listed, want)
	}
}

// guestChecks is the main program of the virtual machine.
func guestChecks() int {
	g := &guest{}
	release := os.Getenv(guestEnv)
	for _, check := range []struct {
		name string
		run  func(*guest, string)
	}{
		{"stack", (*guest).stack}, {"params", (*guest).params}, {"hello", (*guest).hello}, {"follow", (*guest).follow},
		{"chardev", (*guest).chardev}, {"procfs", (*guest).procfs}, {"sysfs", (*guest).sysfs},
		{"in tree", (*guest).inTree}, {"refusals", (*guest).refusals}, {"status", (*guest).status},
		{"another build", (*guest).anotherBuild}, {"pinned", (*guest).pinned},
		{"no rights", (*guest).noRights}, // the last one: modules_disabled is for ever
	} {
		fmt.Printf("--- %s\n", check.name)
		check.run(g, release)
	}
	if g.failed > 0 {
		fmt.Printf("%d checks failed\n", g.failed)
		return 1
	}
	return 0
}

func (g *guest) stack(string) {
	g.run(0, "load", "stack_user", "--dry-run", "--json")
	g.wantLive()
	g.run(0, "load", "stack_user", "--json")
	g.wantLive("stack", "stack_user")
	g.says(g.run(exitRefused, "unload", "stack"), "stack_user", "--with-holders")
	g.says(g.run(0, "load", "stack_user"), "already live")
	g.says(g.run(exitRefused, "reload", "stack", "--json"), "in use by stack_user")
	g.run(0, "reload", "--with-holders", "stack", "--dry-run", "--json")
	g.says(g.run(0, "reload", "--with-holders", "stack", "--json"), "stack_user: removed", "stack: inserted", "stack_user: inserted")
	g.wantLive("stack", "stack_user")
	g.run(0, "unload", "--with-holders", "stack", "--dry-run")
	g.wantLive("stack", "stack_user")
	g.says(g.run(0, "unload", "--with-holders", "stack"), "stack_user: removed (uses stack)", "stack: removed")
	g.wantLive()
	g.run(0, "load", "stack_user")
	g.run(0, "unload", "-r", "stack_user")
	g.wantLive()
	g.run(0, "unload", "stack_user") // nothing to do
}

func (g *guest) params(string) {
	g.run(0, "load", "params", "count=3", "verbose=1", "greeting=good morning", "ports=80,443")
	dir := "/sys/module/params/parameters/"
	g.file(dir+"count", "3")
	g.file(dir+"verbose", "Y")
	g.file(dir+"greeting", "good morning")
	g.file(dir+"ports", "80,443")
	if err := g.write(dir+"count", "7"); err != nil {
		g.errorf("%v", err)
	}
	g.file(dir+"count", "7")
	if err := g.write(dir+"count", "101"); !errors.Is(err, syscall.ERANGE) && !errors.Is(err, syscall.EINVAL) {
		g.errorf("count=101: %v", err)
	}
	g.file(dir+"count", "7")
	g.says(g.run(0, "load", "params", "count=9", "--json"), `parameter count is "7", asked for was "9": kmodctl params params count=9`)
	g.run(0, "reload", "params", "verbose=0") // the others keep their values
	g.file(dir+"count", "7")
	g.file(dir+"verbose", "N")
	g.file(dir+"greeting", "good morning")
	g.file(dir+"ports", "80,443")
	r := g.run(exitRefused, "reload", "params", "count=101") // no int is wrong for the check, but for the module
	g.says(r, "the old one is live again", "kernel log: ")
	g.file(dir+"count", "7")
	g.setParams(dir)
	g.dyndbg()
	g.run(0, "unload", "params")
	r = g.run(exitRefused, "load", "params", "count=many", "--unchecked")
	g.says(r, "invalid argument", "kernel log: ", "count")
	g.wantLive()
}

func (g *guest) hello(string) {
	g.says(g.run(0, "load", "hello"), "hello: module loaded")
	g.says(g.run(0, "unload", "hello"), "hello: module unloaded")
	g.run(0, "log", "--dmesg", "hello", "--json")
	if out := g.run(0, "log", "--dmesg", "hello").out; !strings.Contains(out, "hello: module loaded\n") || !strings.Contains(out, "hello: module unloaded\n") {
		g.errorf("log --dmesg does not have both lines")
	}
	var doc struct {
		Filename string
		ko.Info
	}
	if err := json.Unmarshal([]byte(g.run(0, "info", "hello", "--json").out), &doc); err != nil || doc.Name != "hello" || doc.License != "GPL" {
		g.errorf("info hello: %v %+v", err, doc)
	}
}

func (g *guest) chardev(string) {
	g.run(0, "load", "chardev")
	f, err := os.OpenFile("/dev/kmodctl_chardev", os.O_RDWR, 0)
	if err != nil {
		g.errorf("%v", err)
		return
	}
	if _, err := f.WriteString("a message"); err != nil {
		g.errorf("%v", err)
	}
	var length uint32
	const clear, getLength = 'k'<<8 | 0x80, 2<<30 | 4<<16 | 'k'<<8 | 0x81 // examples/chardev/chardev.h
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), getLength, uintptr(unsafe.Pointer(&length))); errno != 0 || length != 9 {
		g.errorf("ioctl length: %v, %d", errno, length)
	}
	g.file("/dev/kmodctl_chardev", "a message")
	r := g.run(exitRefused, "unload", "chardev", "--wait", "10ms", "--json") // the device is open
	user := fmt.Sprintf("in use by process %d (", os.Getpid())
	g.says(r, user, "which has /dev/kmodctl_chardev open")
	g.prints(r, `"in_use"`, fmt.Sprintf(`"pid": %d`, os.Getpid()))
	g.says(g.run(exitRefused, "reload", "chardev"), user)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), clear, 0); errno != 0 {
		g.errorf("ioctl clear: %v", errno)
	}
	g.file("/dev/kmodctl_chardev", "")
	f.Close()
	g.run(0, "unload", "chardev")
}

func (g *guest) procfs(string) {
	const path = "/proc/kmodctl_procfs"
	g.run(0, "load", "procfs")
	g.file(path, "greeting: hello\nreads: 1")
	if err := g.write(path, "good evening\n"); err != nil {
		g.errorf("%v", err)
	}
	g.file(path, "greeting: good evening\nreads: 2")
	g.run(0, "unload", "procfs")
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		g.errorf("%s after unload: %v", path, err)
	}
}

func (g *guest) sysfs(string) {
	const dir = "/sys/kernel/kmodctl_sysfs/"
	g.run(0, "load", "sysfs")
	if err := g.write(dir+"value", "42"); err != nil {
		g.errorf("%v", err)
	}
	g.file(dir+"value", "42")
	g.file(dir+"reads", "1")
	if err := g.write(dir+"value", "101"); err == nil {
		g.errorf("value=101 was taken")
	}
	g.file(dir+"value", "42")
	g.run(0, "unload", "sysfs")
}

// inTree loads a module of the distribution, with what it needs.
func (g *guest) inTree(string) {
	g.run(0, "load", "vfat")
	g.wantLive("fat", "vfat")
	g.run(0, "unload", "-r", "vfat")
	g.wantLive()
}

// refusals are files that this kernel must refuse; nothing changes, and the
// reason is told.
func (g *guest) refusals(release string) {
	const other = guestForeign + "/other-release.ko"
	g.says(g.run(exitRefused, "load", other), "load hello: kernel "+release, "exec format error", "why:  ", "built for 6.", "try:  ", "kmodctl build hello -k "+release)
	g.says(g.run(exitRefused, "load", "--unchecked", other), "kernel "+release+" refused", "kernel log: ", "built for 6.", "kmodctl build hello -k "+release)
	for file, text := range map[string]string{
		"truncated.ko": "cut short", "not-elf.ko": "not an ELF file", "empty.ko": "empty",
		"no-module.ko": "not a kernel module",
	} {
		r := g.run(exitRefused, "load", filepath.Join(guestForeign, file))
		g.says(r, file, text)
	}
	g.says(g.run(exitRefused, "load", guestForeign+"/other-arch.ko"), "would refuse", "another processor architecture")
	g.says(g.run(exitNotFound, "load", "helo"), "helo", "hello (the nearest name)")
	g.wantLive()
}

// status agrees with the kernel on what is live.
func (g *guest) status(release string) {
	g.run(0, "load", "hello")
	var doc struct{ Packages []packageStatus }
	if err := json.Unmarshal([]byte(g.run(0, "status", "--json").out), &doc); err != nil {
		g.errorf("status: %v", err)
	}
	for _, p := range doc.Packages {
		for _, k := range p.Kernels {
			for _, m := range k.Modules {
				if live := m.Live != ""; k.Release == release && live != (m.Name == "hello") {
					g.errorf("status says %q of %s", m.Live, m.Name)
				}
			}
		}
	}
	g.run(0, "unload", "hello")
}

// anotherBuild installs another build of a module that is live: that is told of, and
// left alone until the user loads it again.
func (g *guest) anotherBuild(release string) {
	g.says(g.run(0, "load", "hello"), "kernel log: hello: module loaded")
	g.says(g.run(0, "verify"), "everything is as it should be")
	g.prints(g.run(0, "status", "hello"), "hello (live)") // the newer build is not what is installed
	g.says(g.run(0, "install", "hello", "-k", release), "installed hello 1.0.0 for "+release)
	older := "loaded-older: module (hello 1.0.0, " + release + "): the live module is another build: kmodctl reload hello\n"
	if r := g.run(exitFailed, "verify"); r.out != older {
		g.errorf("verify prints %q, want %q", r.out, older)
	}
	g.run(exitFailed, "verify", "--json")
	g.prints(g.run(0, "status", "hello"), "hello (live is another build)")
	if r := g.run(0, "repair"); r.stderr != "left alone: "+older {
		g.errorf("repair says %q", r.stderr)
	}
	g.wantLive("hello")
	g.says(g.run(0, "load", "hello"), "hello: already live", "the live hello is another build than /lib/modules/"+release)
	g.run(0, "reload", "hello", "--dry-run", "--json")
	g.wantLive("hello")
	g.says(g.run(0, "reload", "hello"), "kernel log: hello: module unloaded", "kernel log: hello: another build loaded")
	g.says(g.run(0, "verify"), "everything is as it should be")
	g.prints(g.run(0, "status", "hello"), "hello (live)")
}

// pinned goes back to the build before, and loads it from the registry alone: not the
// newest one, which is live.
func (g *guest) pinned(release string) {
	g.says(g.run(0, "rollback", "hello", "-k", release), "rolled back hello 1.0.0 to its build of ", "hello is live as another build")
	g.run(0, "uninstall", "hello", "-k", release)
	g.run(0, "unload", "hello")
	g.says(g.run(0, "load", "hello"), "kernel log: hello: module loaded")
	g.run(0, "unload", "hello")
	g.run(0, "unpin", "hello")
	g.says(g.run(0, "load", "hello"), "kernel log: hello: another build loaded")
	g.run(0, "unload", "hello")
	g.wantLive()
}

// noRights tries what a user without rights, and a kernel that is locked, refuse.
func (g *guest) noRights(string) {
	cmd := exec.Command(guestBinary, "load", "hello")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	g.says(g.command(exitRefused, cmd), "CAP_SYS_MODULE", "try:  ")
	if err := g.write("/proc/sys/kernel/modules_disabled", "1"); err != nil {
		g.errorf("%v", err)
	}
	g.says(g.run(exitRefused, "load", "hello"), "modules_disabled")
	g.wantLive()
}
