package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A module that is another one each time it is built.
const saltedKbuild = "obj-m := salted.o\nccflags-y := -DSALT=$(shell cat /proc/sys/kernel/random/uuid)\n"

const saltedSource = `#include <linux/module.h>
static int __init salted_init(void) { pr_info("salt " __stringify(SALT) "\n"); return 0; }
static void __exit salted_exit(void) { }
module_init(salted_init);
module_exit(salted_exit);
MODULE_LICENSE("GPL");
`

// TestVerifyRebuild rebuilds what was built: it is the same, or it is said in what it is not,
// or why that cannot be told; and all that is kept and installed stays as it is.
func TestVerifyRebuild(t *testing.T) {
	rels := releases(t)
	root := newRoot(t, rels...)
	dir, _ := examplePaths(t)
	salted := t.TempDir()
	write(t, salted, "kmod.toml", "name = \"salted\"\nversion = \"1\"\n\n[[module]]\nname = \"salted\"\n")
	write(t, salted, "Kbuild", saltedKbuild)
	write(t, salted, "salted.c", saltedSource)
	hello := filepath.Join(dir, "hello")
	rebuild := func(code int, args ...string) (r result, outcomes []string) {
		t.Helper()
		r = kmodctl(t, append([]string{"--root", root, "verify", "--rebuild", "--json"}, args...)...)
		if r.code != code {
			t.Fatalf("exit %d, want %d\n%s%s", r.code, code, r.out, r.stderr)
		}
		checkDocumented(t, r.out)
		var doc struct{ Rebuilds []rebuild }
		if err := json.Unmarshal([]byte(r.out), &doc); err != nil {
			t.Fatal(err)
		}
		for _, b := range doc.Rebuilds {
			outcomes = append(outcomes, b.Package+" "+b.Release+" "+b.Outcome)
		}
		return r, outcomes
	}
	want := func(outcomes []string, lines ...string) {
		t.Helper()
		if !slices.Equal(outcomes, lines) {
			t.Errorf("got %q, want %q", outcomes, lines)
		}
	}
	if r := kmodctl(t, "--root", root, "verify", "--rebuild"); r.code != 0 {
		t.Errorf("with nothing registered: exit %d\n%s", r.code, r.stderr)
	}
	if _, err := os.Stat(filepath.Join(root, "var/lib/kmodctl")); err == nil {
		t.Error("a registry was made to look into it")
	}
	must(t, "--root", root, "build", hello, salted)
	before := everything(t, root)

	r, got := rebuild(1)
	want(got, "hello "+rels[0]+" identical", "hello "+rels[1]+" identical", "salted "+rels[0]+" differs", "salted "+rels[1]+" differs")
	says(t, r.out, `"section": ".note.gnu.build-id"`, `"section": ".rodata`)
	says(t, r.stderr, "of 4 artifacts 2 could not be built again as recorded")
	_, got = rebuild(0, "hello@1.0.0", "-k", rels[1])
	want(got, "hello "+rels[1]+" identical")
	says(t, must(t, "--root", root, "verify", "--rebuild", "hello", "-v").out, "identical: hello 1.0.0 for "+rels[0]+"\nidentical: hello 1.0.0 for "+rels[1]+"\n")
	_, got = rebuild(0, "hello", "--dry-run")
	want(got, "hello "+rels[0]+" ", "hello "+rels[1]+" ")
	if after := everything(t, root); after != before {
		t.Errorf("verify --rebuild has changed something:\n%s\nbefore:\n%s", after, before)
	}

	for _, args := range [][]string{{"helo"}, {"hello", "-k", "6.1"}} {
		if r := kmodctl(t, append([]string{"--root", root, "verify", "--rebuild"}, args...)...); r.code != exitNotFound {
			t.Errorf("%v: exit %d\n%s", args, r.code, r.stderr)
		}
	}

	tree := filepath.Join(root, "usr/src/linux-headers-"+rels[0])
	t.Run("does not build", func(t *testing.T) {
		defer edit(t, filepath.Join(tree, "Makefile"), "$(error no more)\n")()
		r, got := rebuild(1, "hello")
		want(got, "hello "+rels[0]+" failed", "hello "+rels[1]+" identical")
		says(t, r.out, "no more")
	})
	t.Run("interrupted", func(t *testing.T) {
		defer edit(t, filepath.Join(tree, "Makefile"), "$(shell sleep 600)\n")()
		path, err := binary()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(path, "--root", root, "verify", "--rebuild", "hello", "-k", rels[0])
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(time.Minute)
		for !slices.ContainsFunc(processesOf(filepath.Join(root, "var/lib/kmodctl")), func(c string) bool { return strings.HasPrefix(c, "sleep") }) {
			if time.Now().After(deadline) {
				cmd.Process.Kill()
				t.Fatal("the build did not get to its sleep within a minute")
			}
			time.Sleep(10 * time.Millisecond)
		}
		cmd.Process.Signal(syscall.SIGINT)
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != exitInterrupted {
			t.Errorf("exit %d, want %d", code, exitInterrupted)
		}
	})
	t.Run("other configuration", func(t *testing.T) {
		defer edit(t, filepath.Join(tree, ".config"), "# another\n")()
		r, got := rebuild(0, "hello")
		want(got, "hello "+rels[0]+" not compared", "hello "+rels[1]+" identical")
		says(t, r.out, "config changed")
	})
	if after := everything(t, root); after != before {
		t.Errorf("verify --rebuild has changed something:\n%s\nbefore:\n%s", after, before)
	}
	t.Run("no headers", func(t *testing.T) {
		if err := os.RemoveAll(tree); err != nil {
			t.Fatal(err)
		}
		r, got := rebuild(0, "hello", "-k", rels[0])
		want(got, "hello "+rels[0]+" not compared")
		says(t, r.out, "headers")
	})
	t.Run("other source", func(t *testing.T) {
		changeByte(t, filepath.Join(hello, "hello.c"))
		must(t, "--root", root, "add", hello)
		r, got := rebuild(0, "hello", "-k", rels[1])
		want(got, "hello "+rels[1]+" not compared")
		says(t, r.out, "source changed")
	})
}

// A user who is not root builds again in a temporary folder, which is gone afterwards.
func TestVerifyRebuildAsUser(t *testing.T) {
	rel := releases(t)[0]
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	home, temp := publicDir(t), publicDir(t)
	if err := os.CopyFS(filepath.Join(home, "hello"), os.DirFS("../../examples/hello")); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"build", "./hello", "-k", rel}, {"verify", "--rebuild"}} {
		cmd := exec.Command(path, args...)
		cmd.Dir, cmd.Env = home, []string{"HOME=" + home, "TMPDIR=" + temp}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		r := command(t, cmd)
		if r.code != 0 || args[0] == "verify" && r.out != "identical: hello 1.0.0 for "+rel+"\n" {
			t.Errorf("%v: exit %d\n%s%s", args, r.code, r.out, r.stderr)
		}
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// edit puts a line before a file of a root, whose files are links to the machine's, until
// undo is called.
func edit(t *testing.T, path, line string) (undo func()) {
	t.Helper()
	aside := path + ".aside"
	if err := os.Rename(path, aside); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(aside)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Dir(path), filepath.Base(path), line+string(text))
	return func() {
		if err := os.Rename(aside, path); err != nil {
			t.Error(err)
		}
	}
}

// everything is the history, and each file of the registry and of what is installed, but for those of the database.
func everything(t *testing.T, root string) string {
	t.Helper()
	text := must(t, "--root", root, "history", "hello", "--json").out
	for _, dir := range []string{"var/lib/kmodctl/blobs", "var/lib/kmodctl/work", "lib/modules/"} {
		out, err := exec.Command("find", filepath.Join(root, dir), "-type", "f", "-printf", "%p %s %T@ %m\n").Output()
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(out), "\n")
		slices.Sort(lines)
		text += strings.Join(lines, "\n")
	}
	return text
}
