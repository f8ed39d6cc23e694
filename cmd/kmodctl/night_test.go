package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// says fails unless text holds each of the words.
func says(t testing.TB, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("not said: %q in\n%s", w, text)
		}
	}
}

// TestNight is what a machine meets that nobody looks after: kernels come without
// headers, files are damaged, one package fails, several versions are about.
func TestNight(t *testing.T) {
	rels := releases(t)
	root := newRoot(t, rels...)
	dir, _ := examplePaths(t)
	hello, stack := filepath.Join(dir, "hello"), filepath.Join(dir, "stack")
	km := func(code int, args ...string) result {
		t.Helper()
		r := kmodctl(t, append([]string{"--root", root}, args...)...)
		if r.code != code {
			t.Errorf("kmodctl %s: exit %d, want %d\n%s%s", strings.Join(args, " "), r.code, code, r.out, r.stderr)
		}
		return r
	}
	tree := filepath.Join(root, "usr/src/linux-headers-"+rels[1])
	installed := filepath.Join(root, "lib/modules", rels[0], "updates/kmodctl/hello.ko")

	// A kernel whose headers are not there is told of, even to a silent hook.
	if err := os.Rename(tree, tree+".away"); err != nil {
		t.Fatal(err)
	}
	must(t, "--root", root, "build", hello, stack)
	r := km(0, "build", "-q")
	says(t, r.stderr, "not built for "+rels[1], "headers", "apt install linux-headers-"+rels[1])
	if err := os.Rename(tree+".away", tree); err != nil {
		t.Fatal(err)
	}

	// The headers have come: one line per package.
	if r := km(0, "build", "-q"); strings.Count(r.stderr, "\n") != 2 {
		t.Errorf("a hook's log has not one line per package:\n%s", r.stderr)
	}
	if r := km(0, "build", "-q"); r.stderr+r.out != "" {
		t.Errorf("a hook with nothing to do says:\n%s%s", r.out, r.stderr)
	}

	// Damage is told, with what mends it; and that mends it.
	damage := map[string]func() error{
		"is missing":   func() error { return os.Remove(installed) },
		"is modified":  func() error { return overwrite(installed) },
		"is unindexed": func() error { return os.Remove(filepath.Join(root, "lib/modules", rels[0], "modules.dep")) },
	}
	for what, do := range damage {
		if err := do(); err != nil {
			t.Fatal(err)
		}
		says(t, km(0, "status", "hello").out, "damaged", what, "kmodctl install hello@1.0.0 puts it right")
		km(0, "install", "hello")
		if out := km(0, "status", "hello").out; strings.Contains(out, "damaged") {
			t.Errorf("%s: not mended:\n%s", what, out)
		}
	}
	if err := damage["is unindexed"](); err != nil {
		t.Fatal(err)
	}
	says(t, km(0, "build", "--dry-run").out, "install hello 1.0.0 for "+rels[0])
	km(0, "build")
	checkInstalled(t, root, rels, map[string][]string{"hello": exampleDirs["hello"], "stack": exampleDirs["stack"]})

	// A second version that fails to build leaves the first where it is, and other
	// packages alone.
	text, err := os.ReadFile(filepath.Join(hello, "kmod.toml"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, hello, "kmod.toml", strings.Replace(string(text), "1.0.0", "1.1.0", 1))
	write(t, hello, "hello.c", "#include <linux/module.h>\nint f(void) { return no_such_thing; }\nMODULE_LICENSE(\"GPL\");\n")
	changeByte(t, filepath.Join(stack, "stack_user.c"))
	r = km(exitPartly, "build", hello, stack)
	says(t, r.stderr, "hello.c:2", "no_such_thing", "kmodctl log hello -k "+rels[0], "installed stack 1.0.0 for "+rels[1])
	says(t, km(0, "status").out, "failed", "1.0.0 is installed")
	says(t, km(0, "log", "hello").out, "no_such_thing")
	says(t, km(0, "log", "hello@1.0.0").out, "strip")
	says(t, km(exitNotFound, "log", "hello", "-k", "6.9").stderr, "no such kernel")

	// Put right again, nothing is left of the failure, and nothing has to be built.
	write(t, hello, "kmod.toml", string(text))
	source, err := os.ReadFile("../../examples/hello/hello.c")
	if err != nil {
		t.Fatal(err)
	}
	broken := write(t, hello, "hello.c", string(source)+"garbage;\n")
	km(exitBuild, "build", hello)
	says(t, km(0, "status", "hello@1.0.0").out, "failed", "garbage")
	write(t, hello, "hello.c", strings.TrimSuffix(broken, "garbage;\n"))
	says(t, km(0, "build", hello).stderr, "nothing to do")
	if out := km(0, "status", "hello@1.0.0").out; strings.Contains(out, "failed") {
		t.Errorf("a failure that was put right is still told:\n%s", out)
	}

	// A dry run says what the run then does.
	if err := overwrite(installed); err != nil {
		t.Fatal(err)
	}
	says(t, km(0, "install", "hello@1.0.0", "--dry-run").out, "install hello 1.0.0 for "+rels[0])
	says(t, km(0, "install", "hello@1.0.0").stderr, "installed hello 1.0.0 for "+rels[0])
	changeByte(t, filepath.Join(stack, "stack_user.c"))
	dry := km(0, "build", stack, "--dry-run").out
	says(t, dry, "build stack 1.0.0 for "+rels[0], "install stack 1.0.0 for "+rels[1])

	// No name is nobody's name.
	for _, command := range []string{"remove", "uninstall", "install", "log", "status"} {
		km(exitUsage, command, "")
	}

	// Another package with a module of the same name keeps nobody from his.
	thief := t.TempDir()
	write(t, thief, "kmod.toml", "name = \"athief\"\nversion = \"1\"\n\n[[module]]\nname = \"stack\"\n")
	write(t, thief, "Kbuild", "obj-m := stack.o\n")
	write(t, thief, "stack.c", "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\n")
	r = km(exitPartly, "build", thief, stack)
	says(t, r.stderr, "module stack belongs to package stack", "installed stack 1.0.0 for "+rels[0])

	// remove takes every version, and nothing is left.
	says(t, km(0, "remove", "hello").stderr, "removed hello 1.0.0", "removed hello 1.1.0")
	km(0, "remove", "athief")
	km(0, "remove", "stack")
	checkInstalled(t, root, rels, nil)
}

func overwrite(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text[len(text)/2] ^= 1
	return os.WriteFile(path, text, 0o644)
}

// TestRootStaysInside: a link that leads out of a --root never reaches this
// machine's own registry.
func TestRootStaysInside(t *testing.T) {
	host := t.TempDir()
	for link, at := range map[string]string{"var/lib/kmodctl": host, "var/lib": host, "var": host} {
		root := t.TempDir()
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(link)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(at, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
		r := kmodctl(t, "--root", root, "add", "../../examples/hello")
		if r.code == 0 {
			t.Errorf("%s -> %s: the registry was made: %s", link, at, r.stderr)
		}
		says(t, r.stderr, "does not exist inside")
		if left, _ := os.ReadDir(host); len(left) > 0 {
			t.Errorf("%s -> %s: %v was written outside of the root", link, at, left)
		}
	}
}

// TestRun runs examples in virtual machines, as a user without rights.
func TestRun(t *testing.T) {
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	home := publicDir(t)
	for _, name := range []string{"hello", "params"} {
		if err := os.CopyFS(filepath.Join(home, name), os.DirFS("../../examples/"+name)); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) result {
		t.Helper()
		cmd := exec.Command(path, args...)
		cmd.Dir, cmd.Env = home, []string{"HOME=" + home, "TMPDIR=" + home, "PATH=" + os.Getenv("PATH")}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		return command(t, cmd)
	}
	for _, release := range releases(t) {
		r := run("run", "./hello", "-k", release)
		if r.code != 0 || !strings.Contains(r.out, "hello: module loaded\nhello: module unloaded\n") {
			t.Errorf("%s: exit %d\n%s%s", release, r.code, r.out, r.stderr)
		}
	}
	r := run("run", "./params", "count=5", "ports=80,443")
	says(t, r.out, "params: loaded: count=5", "ports[1]=443")
	r = run("run", "./params", "count=101")
	if r.code != exitRefused {
		t.Errorf("a value out of range: exit %d", r.code)
	}
	says(t, r.out+r.stderr, "101")
	if r := run("run", "./params", "cuont=1"); r.code != exitUsage {
		t.Errorf("an unknown parameter: exit %d, %s", r.code, r.stderr)
	}

	// He builds into a registry of his own; installing is for root.
	r = run("build", "./hello")
	if r.code != 0 {
		t.Errorf("build: exit %d\n%s", r.code, r.stderr)
	}
	says(t, r.stderr, "is built and not installed: that needs root", filepath.Join(home, ".local/state/kmodctl/blobs"))
	r = run("install", "hello")
	if r.code != exitFailed {
		t.Errorf("install: exit %d", r.code)
	}
	says(t, r.stderr, "needs root")
	says(t, run("status").out, "hello", "built")
	if left, _ := filepath.Glob(filepath.Join(home, "kmodctl-run-*")); len(left) > 0 {
		t.Errorf("run left %v", left)
	}
}

// publicDir is a folder of the user 65534 that he can reach.
func publicDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kmodctl-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	return dir
}
