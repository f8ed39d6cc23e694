package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

// versionsOf is what a root's registry has installed, as release=version.
func versionsOf(t testing.TB, root string) map[string]string {
	t.Helper()
	reg, err := registry.Open(t.Context(), filepath.Join(root, "var/lib/kmodctl"))
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	rows, err := reg.Installs()
	if err != nil {
		t.Fatal(err)
	}
	if drift, err := reg.Look(kernel.Root(root)); err != nil || len(drift) > 0 {
		t.Fatalf("rows and files differ: %+v %v", drift, err)
	}
	out := map[string]string{}
	for _, i := range rows {
		out[i.Release] = i.Version
	}
	return out
}

// TestRollback goes forth and back between versions that are kept side by side.
func TestRollback(t *testing.T) {
	rels := releases(t)
	root := newRoot(t, rels...)
	dir, _ := examplePaths(t)
	hello := filepath.Join(dir, "hello")
	km := inRoot(t, root)
	has := func(old, new string) {
		t.Helper()
		if got := versionsOf(t, root); got[rels[0]] != old || got[rels[1]] != new {
			t.Fatalf("installed are %v, want %s and %s", got, old, new)
		}
	}
	version := func(v, source string) {
		t.Helper()
		write(t, hello, "kmod.toml", fmt.Sprintf("name = \"hello\"\nversion = %q\n\n[[module]]\nname = \"hello\"\n", v))
		write(t, hello, "hello.c", "#include <linux/module.h>\n#include <linux/version.h>\n"+source+
			"\nMODULE_LICENSE(\"GPL\");\nMODULE_VERSION(\""+v+"\");\n")
	}
	km(exitNotFound, "rollback", "hello")
	version("1.0", "")
	km(0, "build", hello)
	r := km(exitFailed, "rollback", "hello")
	says(t, r.stderr, "roll back hello for "+rels[0]+": nothing was installed before 1.0", "kmodctl history hello")
	version("1.1", "")
	km(0, "build", hello)
	has("1.1", "1.1")

	// Back everywhere in one command, and no night's build goes forth again.
	checkDocumented(t, km(0, "rollback", "hello", "--dry-run", "--json").out)
	says(t, km(0, "rollback", "hello", "--dry-run").out, "roll back hello 1.1 to 1.0 for "+rels[0])
	has("1.1", "1.1")
	r = km(0, "rollback", "hello", "--json")
	checkDocumented(t, r.out)
	says(t, r.stderr, "rolled back hello 1.1 to 1.0 for "+rels[1]+"; pinned there: kmodctl unpin hello")
	has("1.0", "1.0")
	if r := km(0, "build", "-q"); r.out+r.stderr != "" {
		t.Errorf("a build after the rollback says:\n%s%s", r.out, r.stderr)
	}
	has("1.0", "1.0")
	says(t, km(0, "pin").out, "every kernel", rels[0])
	checkDocumented(t, km(0, "pin", "--json").out)
	says(t, km(0, "status").out, "pinned to 1.0")
	checkDocumented(t, km(0, "status", "--json").out)

	// Who asks for the other version is told of the pin.
	says(t, km(exitRefused, "install", "hello@1.1").stderr, "pinned to 1.0", "kmodctl unpin hello")
	version("1.1", `MODULE_INFO(mark, "changed");`)
	r = km(0, "build", hello)
	says(t, r.stderr, "built hello 1.1 for "+rels[0], "is built and not installed: pinned to 1.0: kmodctl unpin hello")
	has("1.0", "1.0")

	checkDocumented(t, km(0, "unpin", "hello", "--json").out)
	says(t, km(0, "unpin", "hello").stderr, "nothing to do")
	km(0, "build")
	has("1.1", "1.1")
	version("1.1", `MODULE_INFO(mark, "again");`)
	km(0, "build", hello)

	// A version that does not build for one kernel leaves the one before it there.
	version("1.2", "#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)\n#error not for this one\n#endif")
	says(t, km(exitPartly, "build", hello).stderr, "not for this one", "installed hello 1.2 for "+rels[0])
	has("1.2", "1.1")
	for _, p := range statusOf(t, "--root", root).Packages {
		k := p.Kernels[1]
		if p.Version == "1.2" && (k.State != stateFailed || k.Installed != "1.1") || p.Version == "1.1" && k.State != stateInstalled {
			t.Errorf("%s for %s: %+v", p.Version, k.Release, k)
		}
	}

	// Each kernel has its own past; a version that was built twice counts twice.
	km(0, "rollback", "hello", "-k", rels[0])
	has("1.1", "1.1")
	says(t, km(0, "rollback", "hello", "-k", rels[1]).stderr, "rolled back hello 1.1 to its build of ")
	has("1.1", "1.1")
	km(0, "rollback", "hello")
	has("1.1", "1.0")
	says(t, km(exitPartly, "rollback", "hello").stderr, "rolled back hello 1.1 to 1.0 for "+rels[0], "nothing was installed before 1.0")
	has("1.0", "1.0")
	if out := km(0, "pin").out; strings.Contains(out, "every kernel") {
		t.Errorf("kernels that did not go back together pinned all:\n%s", out)
	}
}

// TestRollbackCutOff kills a rollback at its first rename for each kernel: the same command does
// what is left of it, and takes no kernel further back.
func TestRollbackCutOff(t *testing.T) {
	m := newMachine(t)
	m.must(t, "install", "net@1.0")
	for i, release := range tortured {
		if i > 0 {
			m.must(t, "unpin", "net")
		}
		m.must(t, "install", "net@1.1")
		if r := m.failRenames(t, release, "signal=KILL"); r.code == 0 {
			t.Fatalf("it was not killed: %s", r.stderr)
		}
		r := m.must(t, "rollback", "net")
		for j, other := range tortured {
			want := "passed over " + other + ": net is back at 1.0"
			if strings.Contains(r.stderr, want) != (j <= i) {
				t.Errorf("killed for %s: %q is said, or is not: %s", release, want, r.stderr)
			}
			if got := versionsOf(t, m.root)[other]; got != "1.0" {
				t.Errorf("killed for %s, then run again: %s has %s", release, other, got)
			}
		}
		says(t, m.must(t, "pin").out, "every kernel")
	}
}

// failRenames rolls net back, and has each rename in that kernel's folder fail.
func (m machine) failRenames(t *testing.T, release, how string) result {
	t.Helper()
	return m.run(t, []string{"rollback", "net"}, "strace", "-f", "-qq", "-o", "/dev/null", "-P", filepath.Join(m.root, "lib/modules", release, "updates/kmodctl"),
		"-e", "trace=renameat", "-e", "inject=renameat:"+how)
}

// TestRollbackHint: when a kernel fails, the hint is no command that takes the others further back.
func TestRollbackHint(t *testing.T) {
	m := newMachine(t)
	m.must(t, "install", "net@1.0")
	m.must(t, "install", "net@1.1")
	r := m.failRenames(t, tortured[1], "error=ENOSPC")
	if r.code != exitPartly {
		t.Fatalf("exit %d: %s", r.code, r.stderr)
	}
	says(t, r.stderr, "rolled back net 1.1 to 1.0 for "+tortured[0], "try:  make room, then kmodctl rollback net -k "+tortured[1])
}

// TestHistoryAndGC: what was tried is told, and what nothing needs goes.
func TestHistoryAndGC(t *testing.T) {
	rels := releases(t)[:1]
	root := newRoot(t, rels...)
	dir, _ := examplePaths(t)
	hello := filepath.Join(dir, "hello")
	run := func(args ...string) result { t.Helper(); return must(t, append([]string{"--root", root}, args...)...) }
	text, err := os.ReadFile(filepath.Join(hello, "hello.c"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 { // another module each time: to the very same one nothing goes back
		write(t, hello, "hello.c", fmt.Sprintf("%sMODULE_INFO(mark, \"%d\");\n", text, i))
		run("build", hello, "-k", rels[0])
	}
	write(t, hello, "hello.c", "no C at all\n")
	if r := kmodctl(t, "--root", root, "build", hello, "-k", rels[0]); r.code != exitBuild {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	r := run("history", "hello", "--json")
	checkDocumented(t, r.out)
	var doc struct{ Attempts []historyEntry }
	if err := json.Unmarshal([]byte(r.out), &doc); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range doc.Attempts {
		got = append(got, strings.TrimSpace(h.Op+" "+h.Outcome+" "+strings.Join(h.Changed, ",")))
	}
	want := []string{"build failed source", "install ok", "build ok source", "install ok", "build ok source", "install ok", "build ok"}
	if !slices.Equal(got, want) {
		t.Errorf("history: %q, want %q", got, want)
	}
	says(t, run("history", "hello").out, "failed", "hello.c:1", rels[0])
	says(t, run("history", "hello", "-v").out, "source", doc.Attempts[0].Log)

	// The first of three builds is superseded, the second is what a rollback takes.
	r = run("gc", "--dry-run", "--json")
	checkDocumented(t, r.out)
	says(t, r.out, doc.Attempts[6].Artifact)
	says(t, run("gc", "--dry-run").out, "remove hello 1.0.0 for "+rels[0], "KiB: superseded", "remove in all: ")
	if r := run("gc"); strings.Count(r.stderr, "\n") != 2 || r.out != "" {
		t.Errorf("gc says:\n%s%s", r.out, r.stderr)
	}
	says(t, run("gc").stderr, "nothing to do")
	says(t, run("rollback", "hello").stderr, "rolled back hello 1.0.0 to its build of ")
	checkInstalled(t, root, rels, map[string][]string{"hello": exampleDirs["hello"]})
	run("remove", "hello")
	says(t, run("history", "hello").out, "rollback")
}

// TestChoose: a kernel gets the version that is pinned for it, or for every kernel,
// else the newest; and the one that the user names.
func TestChoose(t *testing.T) {
	reg, err := registry.OpenWriter(t.Context(), t.TempDir(), kernel.Root(t.TempDir()), registry.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	for _, v := range []string{"1.0", "1.1", "1.2"} {
		dir := t.TempDir()
		text := write(t, dir, "kmod.toml", "version = "+v)
		if _, _, err := reg.AddSource(t.Context(), dir, "hello", v, text); err != nil {
			t.Fatal(err)
		}
	}
	old, here, fresh := kernel.Release{Name: "5.10"}, kernel.Release{Name: "6.1"}, kernel.Release{Name: "6.12"}
	kernels := []kernel.Release{old, here, fresh}
	for _, c := range []struct {
		pin   registry.Pin
		named bool
		want  string
	}{
		{registry.Pin{}, false, "1.2: 5.10 6.1 6.12"},
		{registry.Pin{Version: "1.1", Release: "6.1"}, false, "1.2: 5.10 6.12, 1.1: 6.1"},
		{registry.Pin{Version: "1.0"}, false, "1.0: 5.10 6.12, 1.1: 6.1"},
		{registry.Pin{}, true, "1.2: 5.10 6.1 6.12"},
	} {
		if c.pin.Version != "" {
			c.pin.Package = "hello"
			if err := reg.SetPin(c.pin); err != nil {
				t.Fatal(err)
			}
		}
		j := &job{env: &env{}, reg: reg, named: map[string]bool{"hello": c.named}}
		sources, err := newest(reg)
		if err != nil {
			t.Fatal(err)
		}
		choices, err := j.choose(sources, kernels)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range choices {
			text := c.Version + ":"
			for _, k := range c.kernels {
				text += " " + k.Name
			}
			got = append(got, text)
		}
		if text := strings.Join(got, ", "); text != c.want {
			t.Errorf("with %+v: %s, want %s", c.pin, text, c.want)
		}
	}
}
