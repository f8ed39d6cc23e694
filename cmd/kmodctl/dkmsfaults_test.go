package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"kmodctl/internal/ko"
	"kmodctl/internal/modsig"
)

// dkmsFaults are what DKMS 3.4.3 was seen to lose or to get wrong, and what shows that kmodctl, called as dkms, does not. A letter is
// that of one of twelve demonstrations; the others have none.
var dkmsFaults = []struct {
	name string
	dkms string // what DKMS does
	test func(*testing.T, *dkmsHost)
}{
	{"a one index for all", "runs depmod once for each module that it installs, and 135 processes for the status of ten", oneIndex},
	{"b killed while it installs", "has moved the kernel's own module away and never brings it back", killedInstalling},
	{"c two kernels at once", "stores a module of the wrong kernel, with exit code 0", twoAtOnce},
	{"d depmod fails", "prints done and exits with 0", depmodFails},
	{"e a module that a version dropped", "leaves it in /lib/modules for ever", droppedModule},
	{"e a file that differs", "leaves it in /lib/modules, with exit code 0", differingFile},
	{"e a forced build that fails", "forgets what was built, leaves the file, and cannot uninstall it", failedForce},
	{"f an upgrade for one kernel", "leaves the other kernels without", func(t *testing.T, _ *dkmsHost) { upgradeOfOneKernel(t) }},
	{"g a tarball of two kernels", "loads one of them, with exit code 0", func(t *testing.T, _ *dkmsHost) { tarballOfTwo(t) }},
	{"h a signing that fails", "installs the module unsigned, wherever, with exit code 0", signingFails},
	{"i one bad dkms.conf", "ends autoinstall before any other module", func(t *testing.T, _ *dkmsHost) { oneBadConf(t) }},
	{"j a Makefile for another kernel", "installs what it made", otherKernel},
	{"k a label of another architecture", "builds for this machine and records the other", otherArch},
	{"l conditions of the first module", "takes them for those of all", firstCondition},
	{"killed while it builds", "leaves the compiler running", killedBuilding},
	{"killed while depmod runs", "takes the module for installed ever after", killedIndexing},
	{"no source any more", "refuses every action", sourceGone},
	{"an upgrade that does not build", "has removed the old version from every kernel", upgradeFails},
	{"a kernel removed by hand", "shows its modules as installed", kernelGone},
	{"new headers of the same name", "builds nothing", newHeaders},
	{"kernel_prerm", "leaves the modules in the index", prermIndex},
}

func TestDKMSFaults(t *testing.T) {
	rels := releases(t)
	h := &dkmsHost{root: newRoot(t, rels...), rel: rels[0], other: rels[1]}
	for _, f := range dkmsFaults {
		t.Run(f.name, func(t *testing.T) {
			f.test(t, h)
			if t.Failed() {
				t.Logf("DKMS %s", f.dkms)
			}
		})
	}
}

// dkmsHost is the machine that the faults share. Each has packages of its own, which go when it ends.
type dkmsHost struct{ root, rel, other string }

func (h *dkmsHost) dkms(t *testing.T, code int, line string) result {
	t.Helper()
	return dkmsRuns(t, h.root, code, strings.Fields(line)...)
}

// source is dkmsSource of a package that goes with the test.
func (h *dkmsHost) source(t *testing.T, name, version string, lines ...string) string {
	t.Helper()
	t.Cleanup(func() {
		command(t, dkmsCommand(t, h.root, "remove", name+"/"+version, "--all"))
		os.RemoveAll(filepath.Join(h.root, "usr/src", name+"-"+version))
	})
	return dkmsSource(t, h.root, name, version, lines...)
}

// one is a module that is built and, when the test begins and ends, not installed; its source is as it was.
func (h *dkmsHost) one(t *testing.T) (dir string) {
	t.Helper()
	dir = dkmsSource(t, h.root, "one", "1.0")
	h.dkms(t, 0, "build one/1.0 -k "+h.rel)
	t.Cleanup(func() { h.dkms(t, 0, "uninstall one/1.0 -k "+h.rel) })
	return dir
}

// is holds what status says of a module to lines.
func (h *dkmsHost) is(t *testing.T, name string, want ...string) {
	t.Helper()
	if got := strings.TrimSuffix(h.dkms(t, 0, "status "+name).out, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("dkms status %s:\n%s\nwant:\n%s", name, got, strings.Join(want, "\n"))
	}
}

// state is a line of status.
func (h *dkmsHost) state(what, release, state string) string {
	return what + ", " + release + ", x86_64: " + state
}

func (h *dkmsHost) modules(parts ...string) string {
	return filepath.Join(append([]string{h.root, "lib/modules", h.rel}, parts...)...)
}

// loads holds what modprobe would load for a module: a file below the kernel's folder, or, for "", none.
func (h *dkmsHost) loads(t *testing.T, module, want string) {
	t.Helper()
	out, err := exec.Command("modprobe", "-d", h.root, "-S", h.rel, "--show-depends", module).CombinedOutput()
	found := strings.Contains(string(out), "/lib/modules/"+h.rel+"/"+want)
	if want == "" && err == nil || want != "" && (err != nil || !found) {
		t.Errorf("modprobe would load %q for %s, want %q", out, module, want)
	}
	if _, err := os.Stat(h.modules("updates/dkms", module+".ko")); (err == nil) != strings.HasPrefix(want, "updates/") {
		t.Errorf("%s.ko below updates: %v; want %q loaded", module, err, want)
	}
}

// traced runs dkms below strace, and returns the lines of the trace.
func (h *dkmsHost) traced(t *testing.T, line string, options ...string) (result, []string) {
	t.Helper()
	cmd := dkmsCommand(t, h.root, strings.Fields(line)...)
	log := filepath.Join(t.TempDir(), "trace")
	traced := exec.Command("strace", append(append([]string{"-f", "-qq", "-o", log}, options...), cmd.Args...)...)
	traced.Env = cmd.Env
	r := command(t, traced)
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	return r, strings.Split(strings.TrimSpace(string(text)), "\n")
}

// withDepmod runs dkms where depmod, and every other name of kmod, is a script.
func (h *dkmsHost) withDepmod(t *testing.T, script, line string) result {
	t.Helper()
	file := shellScript(t, t.TempDir(), "depmod", script)
	cmd := dkmsCommand(t, h.root, strings.Fields(line)...)
	apart := exec.Command("unshare", append([]string{"-m", "sh", "-c", `mount --bind "$0" /sbin/depmod && exec "$@"`, file}, cmd.Args...)...)
	apart.Env = cmd.Env
	return command(t, apart)
}

// shellScript makes a shell script that can be run, and returns its path.
func shellScript(t *testing.T, dir, name, script string) string {
	t.Helper()
	write(t, dir, name, "#!/bin/sh\n"+script+"\n")
	if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// oneIndex counts: times are for benchmarks.
func oneIndex(t *testing.T, h *dkmsHost) {
	h.one(t)
	h.source(t, "two", "1.0")
	h.dkms(t, 0, "add two/1.0")
	r, trace := h.traced(t, "autoinstall -k "+h.rel, "--seccomp-bpf", "-e", "trace=execve", "-e", "status=successful", "-e", "signal=none")
	if n := len(matching(trace, `"/usr/sbin/depmod"`)); r.code != 0 || n != 1 {
		t.Errorf("exit %d, and %d depmods: %s", r.code, n, r.stderr)
	}
	h.loads(t, "one", "updates/dkms/one.ko")
	h.loads(t, "two", "updates/dkms/two.ko")
	_, trace = h.traced(t, "status", "--seccomp-bpf", "-e", "trace=execve")
	if n := len(matching(trace, "execve(")); n != 1 {
		t.Errorf("status starts %d processes:\n%s", n-1, strings.Join(trace, "\n"))
	}
}

func matching(lines []string, word string) (found []string) {
	for _, line := range lines {
		if strings.Contains(line, word) {
			found = append(found, line)
		}
	}
	return found
}

// killedInstalling kills an install at its n-th step, for each n: the kernel's own module is always there.
func killedInstalling(t *testing.T, h *dkmsHost) {
	h.source(t, "dummy", "9.0")
	h.dkms(t, 0, "build dummy/9.0 -k "+h.rel)
	own := h.modules("kernel/drivers/net/dummy.ko")
	before, err := os.ReadFile(own)
	if err != nil {
		t.Fatal(err)
	}
	const calls = "fsync,fdatasync,renameat,linkat,unlinkat"
	for n := 1; ; n++ {
		r, _ := h.traced(t, "install dummy/9.0 -k "+h.rel, "-e", "trace="+calls, "-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", calls, n))
		if now, err := os.ReadFile(own); err != nil || !bytes.Equal(now, before) {
			t.Fatalf("killed at step %d, the kernel's own module is another: %v", n, err)
		}
		h.dkms(t, 0, "uninstall dummy/9.0 -k "+h.rel)
		h.loads(t, "dummy", "kernel/drivers/net/dummy.ko")
		h.is(t, "dummy", h.state("dummy/9.0", h.rel, "built"))
		if r.code == 0 {
			t.Logf("%d steps", n)
			break
		}
	}
	h.dkms(t, 0, "install dummy/9.0 -k "+h.rel)
	h.loads(t, "dummy", "updates/dkms/dummy.ko")
}

// twoAtOnce builds one module for two kernels at the same time.
func twoAtOnce(t *testing.T, h *dkmsHost) {
	h.source(t, "both", "1.0")
	h.dkms(t, 0, "add both/1.0")
	var all sync.WaitGroup
	for _, release := range []string{h.rel, h.other} {
		cmd := dkmsCommand(t, h.root, "build", "both/1.0", "-k", release)
		all.Go(func() {
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("build for %s: %v\n%s", release, err, out)
			}
		})
	}
	all.Wait()
	for _, release := range []string{h.rel, h.other} {
		info, err := ko.Open(filepath.Join(h.root, "var/lib/dkms/both/1.0", release, "x86_64/module/both.ko"))
		if err != nil || !strings.HasPrefix(info.Vermagic, release+" ") {
			t.Errorf("what was built for %s is for %q (%v)", release, info.Vermagic, err)
		}
	}
}

// signingFails: where modules have to be signed, with a key that cannot be read nothing is installed, and what was signed and installed
// before stays. Elsewhere the driver comes first, and it is told that it is not signed.
func signingFails(t *testing.T, h *dkmsHost) {
	h.one(t)
	key, cert := newKey(t, "2048")
	file(t, filepath.Join(h.root, "etc/h.der"), string(read(t, cert)))
	frame := file(t, filepath.Join(h.root, "etc/dkms/framework.conf"), "mok_signing_key=/etc/h.key\nmok_certificate=/etc/h.der\n")
	always := file(t, filepath.Join(h.root, configFile), "[sign]\nmode = \"always\"\n")
	t.Cleanup(func() { os.Remove(frame); os.Remove(always) })
	private := func(text string) { check(t, os.Chmod(file(t, filepath.Join(h.root, "etc/h.key"), text), 0o600)) }
	signed := func() bool {
		_, sig, err := modsig.Split(read(t, h.modules("updates/dkms/one.ko")))
		check(t, err)
		return sig != nil
	}
	fails := func() {
		t.Helper()
		private("no key\n")
		r := command(t, dkmsCommand(t, h.root, "install", "one/1.0", "-k", h.rel, "--force"))
		says(t, r.stderr, "/etc/h.key")
		if r.code == 0 {
			t.Error("exit 0")
		}
	}
	fails()
	h.is(t, "one", h.state("one/1.0", h.rel, "built"))
	h.loads(t, "one", "")
	private(string(read(t, key)))
	h.dkms(t, 0, "install one/1.0 -k "+h.rel)
	fails()
	h.loads(t, "one", "updates/dkms/one.ko")
	if !signed() {
		t.Error("what was signed and installed is not there any more")
	}
	h.dkms(t, 0, "uninstall one/1.0 -k "+h.rel)
	check(t, os.Remove(always))
	says(t, h.dkms(t, 0, "install one/1.0 -k "+h.rel).stderr, "is installed unsigned, until kmodctl sign one")
	if h.loads(t, "one", "updates/dkms/one.ko"); signed() {
		t.Error("it is signed")
	}
}

func depmodFails(t *testing.T, h *dkmsHost) {
	h.one(t)
	r := h.withDepmod(t, "echo 'depmod: ERROR: out of luck' >&2; exit 1", "install one/1.0 -k "+h.rel)
	says(t, r.stderr, "depmod", "out of luck")
	if r.code == 0 {
		t.Error("exit 0")
	}
	h.is(t, "one", h.state("one/1.0", h.rel, "built"))
	h.loads(t, "one", "")
	h.dkms(t, 0, "install one/1.0 -k "+h.rel)
	h.loads(t, "one", "updates/dkms/one.ko")
	if r = h.withDepmod(t, "exit 1", "uninstall one/1.0 -k "+h.rel); r.code == 0 {
		t.Error("uninstall: exit 0")
	}
	h.dkms(t, 0, "uninstall one/1.0 -k "+h.rel)
	h.loads(t, "one", "")
}

func droppedModule(t *testing.T, h *dkmsHost) {
	h.one(t)
	dir := h.source(t, "one", "0.9", "BUILT_MODULE_NAME[1]=extra", "DEST_MODULE_LOCATION[1]=/extra")
	write(t, dir, "Makefile", "obj-m := one.o extra.o\n")
	write(t, dir, "extra.c", "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\n")
	h.dkms(t, 0, "install one/0.9 -k "+h.rel)
	h.loads(t, "extra", "updates/dkms/extra.ko")
	h.dkms(t, 0, "install one/1.0 -k "+h.rel)
	h.loads(t, "one", "updates/dkms/one.ko")
	h.loads(t, "extra", "")
	h.dkms(t, 0, "remove one/0.9 --all")
	h.dkms(t, 0, "uninstall one/1.0 --all")
	h.loads(t, "one", "")
}

// differingFile puts another version's module in the place of the installed one.
func differingFile(t *testing.T, h *dkmsHost) {
	h.one(t)
	h.dkms(t, 0, "install one/1.0 -k "+h.rel)
	put := h.modules("updates/dkms/one.ko")
	text, err := os.ReadFile(put)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(put, bytes.Replace(text, []byte("version=1.0"), []byte("version=2.0"), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	says(t, h.dkms(t, 0, "status one/1.0").out, "installed (Differences between built and installed modules)")
	h.dkms(t, 0, "uninstall one/1.0 -k "+h.rel)
	h.loads(t, "one", "")
}

func failedForce(t *testing.T, h *dkmsHost) {
	dir := h.source(t, "forced", "1.0")
	h.dkms(t, 0, "install forced/1.0 -k "+h.rel)
	write(t, dir, "forced.c", "nonsense\n")
	h.dkms(t, 10, "build forced/1.0 --force -k "+h.rel)
	h.is(t, "forced", h.state("forced/1.0", h.rel, "installed"))
	h.loads(t, "forced", "updates/dkms/forced.ko")
	h.dkms(t, 0, "remove forced/1.0 --all")
	h.loads(t, "forced", "")
	if _, err := os.Lstat(filepath.Join(h.root, "var/lib/dkms/forced")); err == nil {
		t.Error("something is left of it below /var/lib/dkms")
	}
}

func otherKernel(t *testing.T, h *dkmsHost) {
	h.source(t, "wrong", "1.0", "MAKE='make -C /lib/modules/"+h.other+"/build M=$dkms_tree/wrong/1.0/build'")
	r := command(t, dkmsCommand(t, h.root, "install", "wrong/1.0", "-k", h.rel))
	says(t, r.stderr, "wrong.ko", h.other)
	if r.code == 0 {
		t.Error("exit 0")
	}
	h.is(t, "wrong", "wrong/1.0: added")
	h.loads(t, "wrong", "")
}

func otherArch(t *testing.T, h *dkmsHost) {
	h.source(t, "label", "1.0")
	h.dkms(t, 0, "add label/1.0")
	says(t, h.dkms(t, 12, "build label/1.0 -k "+h.rel+"/aarch64").stderr, "aarch64")
	h.is(t, "label", "label/1.0: added")
}

// firstCondition is the example of dkms(8): the first module is for old kernels only, the second for this one.
func firstCondition(t *testing.T, h *dkmsHost) {
	dir := h.source(t, "pair", "1.0", "BUILT_MODULE_NAME[1]=extra", "DEST_MODULE_LOCATION[1]=/extra",
		"BUILD_EXCLUSIVE_KERNEL[0]='^5\\.'", "BUILD_EXCLUSIVE_KERNEL[1]='^6\\.'")
	write(t, dir, "Makefile", "obj-m := extra.o\n")
	write(t, dir, "extra.c", "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\n")
	h.dkms(t, 0, "install pair/1.0 -k "+h.rel)
	h.loads(t, "extra", "updates/dkms/extra.ko")
	h.loads(t, "pair", "")
}

// killedBuilding kills dkms while the package's own program runs, which ends too.
func killedBuilding(t *testing.T, h *dkmsHost) {
	const seconds = "86399.25" // that nothing else on the machine sleeps for
	dir := h.source(t, "slow", "1.0", "PRE_BUILD=wait.sh")
	shellScript(t, dir, "wait.sh", "exec sleep "+seconds)
	cmd := dkmsCommand(t, h.root, "build", "slow/1.0", "-k", h.rel)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "PRE_BUILD runs", func() bool { return runs("sleep", seconds) })
	cmd.Process.Kill()
	cmd.Wait()
	until(t, "PRE_BUILD has ended", func() bool { return !runs("sleep", seconds) })
	h.is(t, "slow", "slow/1.0: added")
	h.source(t, "slow", "1.0")
	h.dkms(t, 0, "build slow/1.0 -k "+h.rel)
	if left := temporary(t, filepath.Join(h.root, "var/lib/kmodctl")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// until waits, a minute at most, for what must come true.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// runs reports whether a process with these arguments runs.
func runs(argv ...string) bool {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && string(text) == strings.Join(argv, "\x00")+"\x00" {
			return true
		}
	}
	return false
}

func killedIndexing(t *testing.T, h *dkmsHost) {
	h.one(t)
	if r := h.withDepmod(t, "kill -9 $PPID", "install one/1.0 -k "+h.rel); r.code != -1 {
		t.Fatalf("it was not killed: exit %d", r.code)
	}
	h.dkms(t, 0, "autoinstall -k "+h.rel)
	h.is(t, "one", h.state("one/1.0", h.rel, "installed"))
	h.loads(t, "one", "updates/dkms/one.ko")
}

func prermIndex(t *testing.T, h *dkmsHost) {
	for _, action := range []string{"kernel_prerm", "kernel_preinst"} {
		h.one(t)
		h.dkms(t, 0, "install one/1.0 -k "+h.rel)
		h.dkms(t, 0, action+" -k "+h.rel)
		index, err := os.ReadFile(h.modules("modules.dep"))
		_, there := os.Stat(h.modules("updates/dkms/one.ko"))
		if err != nil || bytes.Contains(index, []byte("one.ko")) != (there == nil) {
			t.Errorf("after %s the index and the folder disagree: %v, %v", action, err, there)
		}
	}
}

func sourceGone(t *testing.T, h *dkmsHost) {
	dir := h.source(t, "gone", "1.0")
	h.dkms(t, 0, "add gone/1.0")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	h.dkms(t, 0, "autoinstall -k "+h.rel)
	h.loads(t, "gone", "updates/dkms/gone.ko")
	h.dkms(t, 0, "uninstall gone/1.0 -k "+h.rel)
	h.dkms(t, 0, "remove gone/1.0 --all")
	h.is(t, "gone", "")
}

// upgradeFails is an upgrade as Debian's scripts do it, to a version that does not build.
func upgradeFails(t *testing.T, h *dkmsHost) {
	old := h.one(t)
	h.dkms(t, 0, "install one/1.0 -k "+h.rel)
	if r := dkmsScript(t, h.root, "one-dkms.prerm", "remove one/1.0 --all", "upgrade", "2.0-1"); r.code != 0 {
		t.Fatalf("prerm: exit %d\n%s", r.code, r.stderr)
	}
	if err := os.RemoveAll(old); err != nil {
		t.Fatal(err)
	}
	write(t, h.source(t, "one", "2.0"), "one.c", "nonsense\n")
	h.dkms(t, 0, "add one/2.0")
	h.dkms(t, 10, "install one/2.0 -k "+h.rel)
	h.is(t, "one", h.state("one/1.0", h.rel, "installed"), "one/2.0: added")
	h.loads(t, "one", "updates/dkms/one.ko")
}

func kernelGone(t *testing.T, h *dkmsHost) {
	h.one(t)
	h.dkms(t, 0, "install one/1.0 -k "+h.rel)
	away := filepath.Join(h.root, "away")
	if err := os.Rename(h.modules(), away); err != nil {
		t.Fatal(err)
	}
	got := h.dkms(t, 0, "status one").out
	if err := os.Rename(away, h.modules()); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(got, "installed") {
		t.Errorf("of a kernel that is gone, status says %s", got)
	}
}

// newHeaders changes the symbols of a kernel, whose release stays as it is.
func newHeaders(t *testing.T, h *dkmsHost) {
	h.one(t)
	h.dkms(t, 0, "install one/1.0 -k "+h.rel)
	symbols := filepath.Join(h.root, "usr/src/linux-headers-"+h.rel, "Module.symvers")
	before, err := os.ReadFile(symbols)
	if err != nil {
		t.Fatal(err)
	}
	replace := func(text []byte) {
		t.Helper()
		if err := os.Remove(symbols); err != nil { // the file may be the machine's own
			t.Fatal(err)
		}
		write(t, filepath.Dir(symbols), filepath.Base(symbols), string(text))
	}
	defer replace(before)
	_, rest, _ := bytes.Cut(before, []byte("\t")) // after the CRC of the first symbol
	replace(append([]byte("0x00000001\t"), rest...))
	r := h.dkms(t, 0, "autoinstall -k "+h.rel)
	says(t, r.stderr, "built one 1.0 for "+h.rel, "installed one 1.0 for "+h.rel)
}
