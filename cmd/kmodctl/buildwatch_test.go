package main

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Who reads --json sees each build begin, its steps and its end; the last line is the document.
func TestBuildEvents(t *testing.T) {
	rels := releases(t)[:1]
	root := newRoot(t, rels...)
	r := must(t, "--root", root, "build", "--json", "--timings", "--no-install", "../../examples/hello", "-k", rels[0])
	type line struct {
		Schema, Event, Package, Release, Step, What, Outcome string
		Seconds                                              float64
		Steps                                                []struct{ Outcome string }
	}
	var events []string
	var last line
	for text := range strings.Lines(r.out) {
		last = line{}
		if err := json.Unmarshal([]byte(text), &last); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if last.Schema == "kmodctl.build-event/1" {
			events = append(events, strings.Join(strings.Fields(last.Event+" "+last.Step+" "+last.What+" "+last.Outcome), " "))
			if last.Package != "hello" || last.Release != rels[0] {
				t.Errorf("of whom is %s", text)
			}
		}
	}
	if last.Schema != "kmodctl.build/1" || len(last.Steps) != 1 || last.Steps[0].Outcome != "built" {
		t.Errorf("the last line is no document of a build: %s", r.out)
	}
	got := strings.Join(events, ", ")
	for _, want := range []string{"begin, step copy, step isolate, step make, step make CC hello.o, ", ", step strip, step take, step store, end built"} {
		if !strings.Contains(got, want) {
			t.Errorf("the events are %s, without %s", got, want)
		}
	}
	says(t, r.stderr, "  copy 0.", " s, isolate 0.", " s, make ", " s, strip 0.", " s, store 0.")
}

// --keep leaves what a build has left, and the command that goes on there.
func TestBuildKeep(t *testing.T) {
	rels := releases(t)[:1]
	root := newRoot(t, rels...)
	dir := t.TempDir()
	write(t, dir, "kmod.toml", "name = \"broken\"\nversion = \"1\"\n")
	write(t, dir, "Kbuild", "obj-m := broken.o\n")
	write(t, dir, "broken.c", "int x = y;\n")
	r := kmodctl(t, "--root", root, "build", "--keep", dir, "-k", rels[0])
	_, text, _ := strings.Cut(r.stderr, "kept broken: cd ")
	kept, command, _ := strings.Cut(text, " && ")
	command, _, _ = strings.Cut(command, "\n")
	t.Cleanup(func() { os.RemoveAll(kept) })
	if r.code != exitBuild || !strings.HasPrefix(kept, "/var/tmp/kmodctl-broken-"+rels[0]+"-") {
		t.Fatalf("exit %d: %s", r.code, r.stderr)
	}
	write(t, kept, "broken.c", "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\n")
	cmd := exec.Command("sh", "-c", command)
	cmd.Dir = kept
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	if _, err := os.Stat(filepath.Join(kept, "broken.ko")); err != nil {
		t.Error(err)
	}
}

// --watch builds when a file is saved, is not stopped by a mistake, and ends with Ctrl-C.
func TestBuildWatch(t *testing.T) {
	rels := releases(t)[:1]
	root := newRoot(t, rels...)
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../examples/hello")); err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(filepath.Join(dir, "hello.c"))
	if err != nil {
		t.Fatal(err)
	}
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path, "--root", root, "build", "--watch", "--no-install", dir, "-k", rels[0])
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(said)
	until := func(want string) { // what is saved in two steps may be built twice
		t.Helper()
		var all string
		for said := false; lines.Scan(); {
			all += lines.Text() + "\n"
			said = said || strings.Contains(lines.Text(), want)
			if said && lines.Text() == "waiting for changes" {
				return
			}
		}
		t.Fatalf("it ended without %q:\n%s", want, all)
	}
	until("built hello 1.0.0 for " + rels[0])
	write(t, dir, "hello.c", string(source)+"int x = y;\n")
	until("'y' undeclared here")
	write(t, dir, "kmod.toml", "nam = \"hello\"\n")
	until(`unknown key "nam"`)
	write(t, dir, "kmod.toml", "name = \"hello\"\nversion = \"1.0.1\"\n")
	write(t, dir, "hello.c", string(source)+"int x = 1;\n")
	until("built hello 1.0.1 for " + rels[0])
	cmd.Process.Signal(syscall.SIGINT)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted {
		t.Errorf("exit %d, want %d", code, exitInterrupted)
	}
	for _, args := range [][]string{{"build", "--watch"}, {"build", "--watch", "hello"}, {"build", "--watch", "--dry-run", dir}} {
		if r := kmodctl(t, append([]string{"--root", root}, args...)...); r.code != exitUsage {
			t.Errorf("%v: exit %d", args, r.code)
		}
	}
}
