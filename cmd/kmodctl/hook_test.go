package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// hooked is a machine with two kernels whose hooks are in place, and two packages that are not
// built yet: hello, and broken, which does not build.
type hooked struct {
	t    *testing.T
	root string
	rels []string
}

func newHooked(t *testing.T) hooked {
	h := hooked{t, "", releases(t)}
	h.root = newRoot(t, h.rels...)
	for _, at := range hookSystems { // it has every system there is
		if err := os.MkdirAll(filepath.Join(h.root, at), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	broken := t.TempDir()
	write(t, broken, "kmod.toml", "name = \"broken\"\nversion = \"1\"\n")
	write(t, broken, "Kbuild", "obj-m := broken.o\n")
	write(t, broken, "broken.c", "#include <linux/module.h>\nint f(void) { return no_such_thing; }\nMODULE_LICENSE(\"GPL\");\n")
	dir, _ := examplePaths(t)
	must(t, "--root", h.root, "add", broken)
	must(t, "--root", h.root, "add", filepath.Join(dir, "hello"))
	must(t, "--root", h.root, "hooks", "install")
	return h
}

// run runs a hook's file, as its caller does, with a kmodctl that works below the root.
func (h hooked) run(stdin string, env []string, file string, args ...string) result {
	h.t.Helper()
	program, err := binary()
	if err != nil {
		h.t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(h.root, file))
	if err != nil {
		h.t.Fatal(err)
	}
	copied := filepath.Join(h.t.TempDir(), filepath.Base(file))
	if err := os.WriteFile(copied, bytes.ReplaceAll(text, []byte(packagedProgram), []byte(program)), 0o755); err != nil {
		h.t.Fatal(err)
	}
	return h.command(stdin, env, copied, args...)
}

func (h hooked) command(stdin string, env []string, name string, args ...string) result {
	h.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(append(os.Environ(), "KMODCTL_ROOT="+h.root), env...)
	cmd.Stdin = strings.NewReader(stdin)
	r := command(h.t, cmd)
	if r.code != 0 {
		h.t.Errorf("%s %v: exit %d\n%s%s", name, args, r.code, r.out, r.stderr)
	}
	return r
}

// has fails unless hello is installed for exactly these kernels.
func (h hooked) has(want ...string) {
	h.t.Helper()
	for _, release := range h.rels {
		files, _ := filepath.Glob(filepath.Join(h.root, "lib/modules", release, "updates/kmodctl/hello.ko*")) // compressed as the kernel's own are
		if got := len(files) == 1; got != slices.Contains(want, release) {
			h.t.Errorf("hello is installed for %s: %v", release, got)
		}
	}
}

func (h hooked) forget() {
	h.t.Helper()
	must(h.t, "--root", h.root, "uninstall", "hello")
}

// silent fails when a hook said something.
func silent(t *testing.T, r result) {
	t.Helper()
	if r.out+r.stderr != "" {
		t.Errorf("a hook with nothing to do says:\n%s%s", r.out, r.stderr)
	}
}

// TestHookDebian is what linux-image and linux-headers of Debian run, in the order of a transaction in
// which the headers come last.
func TestHookDebian(t *testing.T) {
	h := newHooked(t)
	release := h.rels[1]
	scripts := func(folder string, env ...string) result {
		t.Helper()
		return h.run("", env, "etc/kernel/"+folder+"/dkms", release, "/boot/vmlinuz-"+release)
	}
	tree := filepath.Join(h.root, "usr/src/linux-headers-"+release)
	if err := os.Rename(tree, tree+".away"); err != nil {
		t.Fatal(err)
	}
	r := scripts("postinst.d")
	says(t, r.stderr, "not built for "+release, "apt install linux-headers-"+release)
	if strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("a kernel without headers is told of in more than a line:\n%s", r.stderr)
	}
	h.has()
	if err := os.Rename(tree+".away", tree); err != nil {
		t.Fatal(err)
	}
	r = scripts("header_postinst.d")
	says(t, r.stderr, "installed hello 1.0.0 for "+release, "kmodctl: build broken for "+release, "broken.c:2", "no_such_thing", "kmodctl log broken -k "+release)
	if strings.Count(r.stderr, "\n") != 2 || r.out != "" {
		t.Errorf("not one line per package:\n%s%s", r.out, r.stderr)
	}
	h.has(release)
	says(t, must(t, "--root", h.root, "status", "broken").out, "failed", "no_such_thing")
	says(t, atLogin(t, h.root), "broken 1 for "+release+": ", "broken.c:2", "kmodctl status")
	silent(t, scripts("postinst.d"))
	silent(t, scripts("header_postinst.d"))

	must(t, "--root", h.root, "hook", "add", h.rels[0])
	h.has(h.rels...)
	silent(t, scripts("postrm.d", "DEB_MAINT_PARAMS=upgrade 6.1.1"))
	h.has(h.rels...)
	says(t, scripts("prerm.d", "DEB_MAINT_PARAMS=remove").stderr, "uninstalled hello for "+release)
	h.has(h.rels[0])
	silent(t, scripts("postrm.d", "DEB_MAINT_PARAMS=remove"))
	h.has(h.rels[0])

	// A kernel that went without prerm.d leaves nothing of ours.
	scripts("postinst.d")
	h.has(h.rels...)
	says(t, scripts("postrm.d", "DEB_MAINT_PARAMS=purge").stderr, "uninstalled hello for "+release)
	h.has(h.rels[0])

	// Installed again, it gets what was built before: no headers are needed for that.
	if err := os.RemoveAll(tree); err != nil {
		t.Fatal(err)
	}
	says(t, scripts("postinst.d").stderr, "installed hello 1.0.0 for "+release)
	h.has(h.rels...)

	// At the next login everybody sees what is amiss, and nothing once it is not.
	must(t, "--root", h.root, "remove", "broken")
	if shown := atLogin(t, h.root); shown != "" {
		t.Errorf("at login, with nothing amiss: %s", shown)
	}
	must(t, "--root", h.root, "uninstall", "hello", "-k", release)
	says(t, atLogin(t, h.root), "hello for "+release+": ")
	must(t, "--root", h.root, "remove", "hello")
	if shown := atLogin(t, h.root); shown != "" {
		t.Errorf("at login, with nothing registered: %s", shown)
	}
}

// atLogin is what pam_motd, which login and sshd call, shows a user of what kmodctl has left in the /run of root.
func atLogin(t *testing.T, root string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, "su-l", "auth sufficient pam_rootok.so\naccount required pam_permit.so\nsession required pam_permit.so\nsession optional pam_motd.so noupdate\n")
	write(t, dir, "motd", "") // the machine's own
	if err := os.MkdirAll(filepath.Join(root, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := command(t, exec.Command("unshare", "-m", "sh", "-ec",
		"mount --bind $0/su-l /etc/pam.d/su-l; mount --bind $0/motd /etc/motd; mount --bind $1/run /run; exec su - nobody -s /bin/true", dir, root))
	if r.code != 0 {
		t.Fatalf("su: exit %d\n%s%s", r.code, r.out, r.stderr)
	}
	if info, err := os.Stat(filepath.Join(root, loginNote)); err == nil && info.Mode() != 0o644 {
		t.Errorf("%s has mode %v", loginNote, info.Mode())
	}
	return r.out
}

// TestHookOthers runs the hooks of the other package managers with what these give them.
func TestHookOthers(t *testing.T) {
	h := newHooked(t)
	one, other := h.rels[0], h.rels[1]

	t.Run("kernel-install", func(t *testing.T) { // kernel-install(8): add|remove RELEASE ENTRY-FOLDER [IMAGE [INITRD ...]]
		h.t = t
		const file = "etc/kernel/install.d/40-dkms.install"
		entry := "/boot/0123456789abcdef/" + one
		h.run("", nil, file, "add", one, entry, "/lib/modules/"+one+"/vmlinuz")
		h.has(one)
		silent(t, h.run("", nil, file, "add", one, entry, "/lib/modules/"+one+"/vmlinuz", "/boot/initrd.img"))
		h.run("", nil, file, "remove", one, entry)
		h.has()
		silent(t, h.run("", nil, file, "inspect"))
	})

	t.Run("pacman", func(t *testing.T) { // alpm-hooks(5): NeedsTargets are paths on standard input
		h.t = t
		alpm := func(file, targets string) result {
			t.Helper()
			text, err := os.ReadFile(filepath.Join(h.root, "etc/pacman.d/hooks", file))
			if err != nil {
				t.Fatal(err)
			}
			_, exec, _ := strings.Cut(string(text), "\nExec = ")
			exec, _, _ = strings.Cut(exec, "\n")
			words := strings.Fields(exec)
			if words[0] != packagedProgram {
				t.Fatalf("%s runs %s", file, words[0])
			}
			program, _ := binary()
			return h.command(targets, nil, program, words[1:]...)
		}
		targets := "usr/lib/modules/" + one + "/vmlinuz\nusr/lib/modules/" + other + "/build/include/\nusr/lib/modules/" + other + "/vmlinuz\nusr/lib/modules/extramodules-6.1/x\n"
		alpm("70-dkms-install.hook", targets)
		h.has(h.rels...)
		silent(t, alpm("70-dkms-install.hook", targets))
		silent(t, alpm("70-dkms-install.hook", ""))
		alpm("71-dkms-remove.hook", "usr/lib/modules/"+other+"/vmlinuz\n")
		h.has(one)
		h.forget()
	})

	t.Run("apk", func(t *testing.T) { // apk(8): the stage alone
		h.t = t
		const file = "etc/apk/commit_hooks.d/kmodctl"
		silent(t, h.run("", nil, file, "pre-commit"))
		h.has()
		h.run("", nil, file, "post-commit")
		h.has(h.rels...)
		silent(t, h.run("", nil, file, "post-commit"))

		// apk-package(5): a trigger is given the folders that matched, those of kernels that went too.
		h.forget()
		trigger := func(folders ...string) result {
			t.Helper()
			if err := os.CopyFS(filepath.Join(h.root, "trigger"), os.DirFS("../../packaging/apk")); err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(filepath.Join(h.root, "trigger"))
			return h.run("", nil, "trigger/kmodctl.trigger", folders...)
		}
		trigger("/lib/modules/" + one)
		h.has(one)
		trigger("/lib/modules/" + other)
		h.has(h.rels...)
		for _, name := range kernelFilesOfPackages {
			if err := os.RemoveAll(filepath.Join(h.root, "lib/modules", other, name)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Rename(filepath.Join(h.root, "usr/src/linux-headers-"+other), filepath.Join(h.root, "away")); err != nil {
			t.Fatal(err)
		}
		says(t, trigger("/lib/modules/"+other).stderr, "uninstalled hello for "+other)
		h.has(one)
		h.forget()
	})

	t.Run("zypper", func(t *testing.T) { // the frames that libzypp sends a commit plugin
		h.t = t
		const file = "usr/lib/zypp/plugins/commit/kmodctl"
		frame := func(command, body string) string { return command + "\nlocale:C\n\n" + body + "\x00" }
		begin := frame("PLUGINBEGIN", "") + frame("COMMITBEGIN", `{"TransactionStepList":[]}`)
		silent := h.run(begin+frame("PLUGINEND", "")+frame("_DISCONNECT", ""), nil, file)
		if want := strings.Repeat("ACK\n\n\x00", 4); silent.out != want || silent.stderr != "" {
			t.Errorf("answers %q, %s", silent.out, silent.stderr)
		}
		h.has()
		r := h.run(begin+frame("COMMITEND", "{\n\n}")+frame("UNHEARDOF", "")+frame("PLUGINEND", "")+frame("_DISCONNECT", ""), nil, file)
		if want := strings.Repeat("ACK\n\n\x00", 3) + "_ENOMETHOD\nCommand:UNHEARDOF\n\n\x00" + strings.Repeat("ACK\n\n\x00", 2); r.out != want {
			t.Errorf("answers %q", r.out)
		}
		h.has(one)
	})
}

// kernelFilesOfPackages are what a kernel's package takes away of its modules folder.
var kernelFilesOfPackages = []string{"kernel", "build", "modules.order", "modules.builtin", "modules.builtin.modinfo"}

// TestHookBounds: no hook keeps a package manager waiting, or stops it, unless it is told to.
func TestHookBounds(t *testing.T) {
	h := newHooked(t)
	km := func(code int, args ...string) result {
		t.Helper()
		r := kmodctl(t, append([]string{"--root", h.root, "hook"}, args...)...)
		if r.code != code {
			t.Errorf("hook %v: exit %d, want %d\n%s%s", args, r.code, code, r.out, r.stderr)
		}
		return r
	}
	release := h.rels[0]
	lock, err := os.OpenFile(filepath.Join(h.root, system, "lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	says(t, km(0, "add", release, "--time-limit", "200ms").stderr, "hook add: not done after 200ms, the time limit")
	km(exitFailed, "add", release, "--time-limit", "200ms", "--strict")
	conf := filepath.Join(h.root, "etc/kmodctl")
	if err := os.MkdirAll(conf, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, conf, "config.toml", "[hook]\nstrict = true\ntime_limit = \"100ms\"\n")
	says(t, km(exitFailed, "add", release).stderr, "not done after 100ms")
	km(0, "add", release, "--strict=false", "--time-limit", "200ms")
	lock.Close()
	text, err := os.ReadFile("../../packaging/config.toml") // what a package brings changes nothing
	if err != nil {
		t.Fatal(err)
	}
	write(t, conf, "config.toml", string(text))

	// A build that hangs is ended, and what was built is installed all the same.
	km(exitPartly, "add", release, "--strict")
	h.has(release)
	h.forget()
	slow := t.TempDir()
	write(t, slow, "kmod.toml", "name = \"slow\"\nversion = \"1\"\n[build]\nprepare = [[\"sleep\", \"1000\"]]\n")
	write(t, slow, "Kbuild", "obj-m := slow.o\n")
	must(t, "--root", h.root, "add", slow)
	says(t, km(0, "add", release, "--time-limit", "30s").stderr, "build slow for "+release, "the time limit", "installed hello 1.0.0 for "+release)
	h.has(release)
	must(t, "--root", h.root, "remove", "slow")
	km(exitBuild, "add", release, "--strict") // broken alone is left to be done

	km(0, "add", "6.9.9-none")
	km(exitNotFound, "add", "6.9.9-none", "--strict")
	km(exitUsage, "added", release)
	km(exitUsage, "add")
	km(exitUsage, "add", release, "--time-limit", "0s")
}

// TestHooks: install takes over what DKMS has there, remove puts it back, and nothing else is touched.
func TestHooks(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"var/lib/dpkg", "usr/lib/systemd/system", "etc/kernel/postinst.d"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const theirs = "#!/bin/sh\n/usr/lib/dkms/dkms_autoinstaller start $1\n"
	dkms := filepath.Join(root, "etc/kernel/postinst.d/dkms")
	if err := os.WriteFile(dkms, []byte(theirs), 0o755); err != nil {
		t.Fatal(err)
	}
	states := func() map[string]string {
		t.Helper()
		r := must(t, "--root", root, "--json", "hooks", "status")
		checkDocumented(t, r.out)
		var doc struct{ Hooks []hookFile }
		if err := json.Unmarshal([]byte(r.out), &doc); err != nil {
			t.Fatal(err)
		}
		m := map[string]string{}
		for _, f := range doc.Hooks {
			m[f.Path] = f.State
		}
		return m
	}
	expect := func(path, want string) {
		t.Helper()
		if got := states()[path]; got != want {
			t.Errorf("%s is %q, want %q: %v", path, got, want, states())
		}
	}
	unit := "/etc/systemd/system/" + bootUnit
	expect("/etc/kernel/postinst.d/dkms", hookForeign)
	expect(unit, hookAbsent)
	if n := len(states()); n != 6 {
		t.Errorf("%d hooks for Debian and systemd: %v", n, states())
	}
	before := tree(t, root)
	must(t, "--root", root, "--dry-run", "hooks", "install")
	if now := tree(t, root); !slices.Equal(before, now) {
		t.Errorf("a dry run left %v of %v", now, before)
	}
	says(t, must(t, "--root", root, "hooks", "install").stderr, "set aside")
	for path, state := range states() {
		if state != hookActive {
			t.Errorf("%s is %s after install", path, state)
		}
	}
	says(t, must(t, "--root", root, "hooks", "install").stderr, "nothing to do")

	// What an administrator has made of a file is seen.
	header := filepath.Join(root, "etc/kernel/header_postinst.d/dkms")
	if err := os.Chmod(header, 0o644); err != nil {
		t.Fatal(err)
	}
	expect("/etc/kernel/header_postinst.d/dkms", hookOff)
	must(t, "--root", root, "hooks", "install")
	expect("/etc/kernel/header_postinst.d/dkms", hookActive)

	must(t, "--root", root, "hooks", "remove")
	if text, _ := os.ReadFile(dkms); string(text) != theirs {
		t.Errorf("DKMS's hook is not put back: %q", text)
	}
	if out, err := exec.Command("find", root, "!", "-type", "d").Output(); err != nil || string(out) != dkms+"\n" {
		t.Errorf("remove left %v %s", err, out)
	}

	// A package's unit is masked, not removed, and install takes the mask away.
	shipped := filepath.Join(root, "usr/lib/systemd/system", bootUnit)
	text, err := os.ReadFile("../../packaging/hooks/systemd/usr/lib/systemd/system/" + bootUnit)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(shipped, text, 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, "--root", root, "hooks", "remove")
	expect(unit, hookOff)
	must(t, "--root", root, "hooks", "install")
	expect("/usr/lib/systemd/system/"+bootUnit, hookActive)
}

// tree is every path below a folder.
func tree(t *testing.T, dir string) (paths []string) {
	t.Helper()
	out, err := exec.Command("find", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	paths = strings.Fields(string(out))
	slices.Sort(paths)
	return paths
}

// TestBootUnit: systemd likes the unit, and starts it before what wants its modules.
func TestBootUnit(t *testing.T) {
	unit, err := os.ReadFile("../../packaging/hooks/systemd/usr/lib/systemd/system/" + bootUnit)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, bootUnit)
	if err := os.WriteFile(file, bytes.ReplaceAll(unit, []byte(packagedProgram), []byte("/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", file).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	says(t, string(unit), "systemd-modules-load.service", "display-manager.service")
}

func FuzzReleaseOf(f *testing.F) {
	for _, path := range []string{
		"usr/lib/modules/6.9.1-arch1-1/vmlinuz", "/lib/modules/6.1.0-56-amd64", "/usr/src/linux-headers-6.1.0-56-amd64/include/",
		"/usr/src/kernels/5.14.0-1.el9.x86_64", "usr/lib/modules/extramodules/x", "/usr/src/linux-headers-", "modules//",
	} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if r := releaseOf(path); r != "" && (strings.Contains(r, "/") || r[0] < '0' || r[0] > '9' || !strings.Contains(path, r)) {
			t.Fatalf("%q is of %q", path, r)
		}
	})
}

func FuzzConverse(f *testing.F) {
	f.Add("PLUGINBEGIN\n\n\x00COMMITEND\na:b\n\n{}\x00_DISCONNECT\n\n\x00")
	f.Add("COMMITEND")
	f.Add("\x00\x00")
	f.Fuzz(func(t *testing.T, in string) {
		var out bytes.Buffer
		done, err := converse(strings.NewReader(in), &out)
		if err != nil || done && !strings.Contains(in, "COMMITEND") {
			t.Fatalf("%q: %v %v", in, done, err)
		}
		if answers, frames := strings.Count(out.String(), "\x00"), strings.Count(in, "\x00"); answers > frames {
			t.Fatalf("%d answers to %d frames", answers, frames)
		}
	})
}
