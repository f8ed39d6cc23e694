package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// A driver that a new kernel has left behind: what is told of it, at once and the morning after.
func TestFailedBuildIsExplained(t *testing.T) {
	rels := releases(t)
	older, newer := rels[0], rels[1]
	root := newRoot(t, rels...)
	dir := t.TempDir()
	write(t, dir, "Kbuild", "obj-m := left.o\n")
	source := func(version, include string) {
		write(t, dir, "kmod.toml", "name = \"left\"\nversion = \""+version+"\"\n")
		write(t, dir, "left.c", "#include <linux/module.h>\n"+include+"MODULE_LICENSE(\"GPL\");\n")
	}
	build := func(want int, args ...string) (text string, steps []buildStep) {
		t.Helper()
		r := kmodctl(t, append([]string{"--root", root, "--json", "build", "--no-install"}, args...)...)
		lines := strings.Split(strings.TrimSpace(r.out), "\n") // the last is the document
		checkDocumented(t, lines[len(lines)-1])
		var doc struct{ Steps []buildStep }
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &doc); err != nil || r.code != want {
			t.Fatalf("exit %d, %v\n%s%s", r.code, err, r.out, r.stderr)
		}
		return r.stderr, doc.Steps
	}
	told := func(text string, lines ...string) {
		t.Helper()
		for _, line := range lines {
			if !slices.Contains(strings.Split(text, "\n"), line) {
				t.Errorf("not told: %s\n%s", line, text)
			}
		}
	}

	const gone = "#include <asm/unaligned.h>\n" // moved to linux/ in 6.12
	source("1.0", gone)
	build(exitDone, dir, "-k", older)
	text, steps := build(exitBuild, dir)
	told(text, "kmodctl: build left for "+newer+": left.c:2:10: fatal error: asm/unaligned.h: No such file or directory",
		"  2 | "+strings.TrimSpace(gone),
		"  why:  this kernel's headers do not declare what the source uses, or declare it otherwise",
		"  last: this version was built for "+older,
		"  try:  a newer version of left; until there is one, boot "+older+" (kmodctl build left -k "+older+")",
		"  try:  kmodctl log left -k "+newer)
	if s := steps[1]; s.Class != "api" || s.LastRelease != older || s.LastVersion != "" {
		t.Errorf("%+v", s)
	}

	source("1.1", "")
	build(exitDone, dir)
	source("1.2", gone+"void nothing(void);\nint x(void) { return nothing(); }\n")
	text, steps = build(exitBuild, dir)
	told(text, "  last: version 1.1 was built for this kernel", "  try:  kmodctl build left@1.1 -k "+newer)
	if s := steps[1]; s.Class != "api" || s.LastRelease != "" || s.LastVersion != "1.1" {
		t.Errorf("%+v", s)
	}

	r := must(t, "--root", root, "history", "left@1.0", "-k", newer)
	if want := "api: build left for " + newer + ": left.c:2:10: "; !strings.Contains(r.out, want) {
		t.Errorf("history does not say %q:\n%s", want, r.out)
	}
	var history struct{ Attempts []historyEntry }
	r = must(t, "--root", root, "--json", "history", "left@1.0", "-k", newer)
	checkDocumented(t, r.out)
	if err := json.Unmarshal([]byte(r.out), &history); err != nil || history.Attempts[0].Class != "api" {
		t.Errorf("%v in %s", err, r.out)
	}
	for _, p := range statusOf(t, "--root", root).Packages {
		if k := p.Kernels[1]; (k.State == stateFailed) != (p.Version != "1.1") || (k.Class == "api") != (p.Version != "1.1") {
			t.Errorf("%s %s: %+v", p.Name, p.Version, k)
		}
	}
	if r := must(t, "--root", root, "status"); !strings.Contains(r.out, "  api: build left for "+newer) {
		t.Errorf("status does not name the class:\n%s", r.out)
	}
}
