package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// inTree is the file of a module that came with a kernel, whatever it is packed with.
func inTree(t *testing.T, release, module string) string {
	t.Helper()
	found, err := filepath.Glob("/lib/modules/" + release + "/kernel/" + module + ".ko*")
	if err != nil || len(found) != 1 {
		t.Fatalf("%s has %d of %s: %v", release, len(found), module, err)
	}
	return found[0]
}

// TestExplain: what would become of a module is told for a kernel that does not run, as the exit code, in words and as a document.
func TestExplain(t *testing.T) {
	all := releases(t)
	here, other := all[0], all[1]
	const dummy = "drivers/net/dummy"
	dir := t.TempDir()
	cut := filepath.Join(dir, "cut.ko")
	write(t, dir, "cut.ko", readFile(t, inTree(t, here, dummy))[:4000])
	for _, c := range []struct {
		args        []string
		code        int
		out, stderr string // each of these lines' words must be there, in this order
	}{
		{[]string{"garp", "-k", here}, exitDone, "insert|/llc.ko|insert|/stp.ko|insert|/garp.ko|garp would load into kernel " + here, ""},
		{[]string{inTree(t, other, dummy), "-k", here}, exitRefused,
			"insert|refused dummy: the file was built for " + other + " (module-layout)|module_layout: CRC 0x",
			"kmodctl: load dummy: kernel " + here + " would refuse the module: exec format error|why:  the file was built for " + other + "|try:  kmodctl build DIR -k " + here},
		{[]string{inTree(t, here, dummy), "-k", other}, exitRefused, "refused dummy: the file was built for " + here + " (struct-module-size)|struct module has", "why:"},
		{[]string{"dummy", "numdumies=2", "-k", here}, exitRefused, "(parameter-unknown)|the nearest name is numdummies",
			"load dummy: it has no parameter numdumies|try:  kmodctl info dummy"},
		{[]string{"dummy", "numdummies=two", "-k", here}, exitRefused, `"two" is not a value for parameter numdummies (parameter-value)`, "invalid argument"},
		{[]string{cut, "-k", here}, exitRefused, "refused cut: the file is cut short (truncated)", "why:  the file is cut short"},
		{[]string{"no_such_module", "-k", here}, exitNotFound, "", "no_such_module"},
	} {
		got := kmodctl(t, append([]string{"explain"}, c.args...)...)
		if got.code != c.code || !follow(got.out, c.out) || !follow(got.stderr, c.stderr) || c.stderr == "" && got.stderr != "" {
			t.Errorf("explain %q: exit %d\n%s%s", c.args, got.code, got.out, got.stderr)
		}
	}

	got := kmodctl(t, "explain", inTree(t, other, dummy), "-k", here, "--json")
	var doc struct {
		Schema   string
		Loads    bool
		Plan     struct{ Steps []struct{ Module string } }
		Findings []struct{ Module, Cause, Errno, Severity string }
	}
	if err := json.Unmarshal([]byte(got.out), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Schema != "kmodctl.explain/1" || doc.Loads || len(doc.Plan.Steps) != 1 || len(doc.Findings) == 0 || got.code != exitRefused {
		t.Errorf("exit %d, %+v", got.code, doc)
	}
	if f := doc.Findings; len(f) > 0 && (f[0].Cause != "module-layout" && f[0].Cause != "struct-module-size" || f[0].Severity == "refused" && f[0].Errno != "ENOEXEC") {
		t.Errorf("%+v", f)
	}
}

// follow reports whether the words between bars come one behind the other.
func follow(text, words string) bool {
	for _, w := range strings.Split(words, "|") {
		_, rest, ok := strings.Cut(text, w)
		if !ok {
			return false
		}
		text = rest
	}
	return true
}

// TestLoadChecks: load stops before the kernel is asked, unless it is told not to look.
func TestLoadChecks(t *testing.T) {
	release := releases(t)[0]
	for _, c := range []struct {
		args []string
		code int
		err  string
	}{
		{[]string{"dummy", "numdummies=2"}, exitDone, ""},
		{[]string{"dummy", "numdumies=2"}, exitRefused, "it has no parameter numdumies"},
		{[]string{"dummy", "numdumies=2", "--allow-unknown-parameters"}, exitDone, "note: dummy: it has no parameter numdumies"},
		{[]string{"dummy", "numdumies=2", "--unchecked"}, exitDone, ""},
		{[]string{inTree(t, releases(t)[1], "drivers/net/dummy")}, exitRefused, "why:  the file was built for " + releases(t)[1]},
		{[]string{inTree(t, releases(t)[1], "drivers/net/dummy"), "--unchecked"}, exitDone, ""},
	} {
		got := kmodctl(t, append([]string{"load", "-k", release, "--dry-run"}, c.args...)...)
		if got.code != c.code || !strings.Contains(got.stderr, c.err) || !strings.Contains(got.out, "insert ") {
			t.Errorf("load %q: exit %d\n%s%s", c.args, got.code, got.out, got.stderr)
		}
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
