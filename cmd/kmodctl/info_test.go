package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestInfoAsModinfo: who has used modinfo finds all that it prints, of files and of what is built in, and -F prints the same.
func TestInfoAsModinfo(t *testing.T) {
	for _, release := range releases(t) {
		for _, module := range []string{"fat", "snd-hda-intel", "8250", "usbcore"} {
			args := []string{"-k", release, module}
			shown := must(t, append([]string{"info", "-v"}, args...)...).out
			lines := map[string]bool{}
			for line := range strings.Lines(strings.ReplaceAll(shown, "/usr/lib/", "/lib/")) {
				lines[line] = true
			}
			for line := range strings.Lines(modinfo(t, args...)) {
				if !lines[line] {
					t.Errorf("%s of %s: info does not print %q", module, release, line)
				}
			}
			for _, field := range []string{"license", "parm", "alias", "nothing"} {
				got, want := must(t, append([]string{"info", "-F", field}, args...)...).out, modinfo(t, append([]string{"-F", field}, args...)...)
				want = strings.ReplaceAll(want, "nousb: (bool)", "nousb:bool") // as modinfo itself has it without -F
				if got != want {
					t.Errorf("-F %s of %s of %s prints %q, modinfo %q", field, module, release, got, want)
				}
			}
		}
	}
}

func modinfo(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("modinfo", args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("modinfo %v (apt install kmod): %v", args, err)
	}
	return string(out)
}

// TestInfoSeveral: each module that is named gets its lines or its document, up to the first that is not there; a file
// needs no kernel.
func TestInfoSeveral(t *testing.T) {
	rels := releases(t)
	root := newRoot(t, rels[0])
	run := inRoot(t, root)
	if got := run(0, "info", "-F", "name", "vfat", "fat").out; got != "vfat\nfat\n" {
		t.Errorf("info -F name vfat fat prints %q", got)
	}
	r := run(exitNotFound, "info", "-F", "name", "fat", "fta", "vfat")
	if r.out != "fat\n" || !strings.Contains(r.stderr, "find module fta") {
		t.Errorf("info of a module that is not there: %q, %q", r.out, r.stderr)
	}
	docs := json.NewDecoder(strings.NewReader(run(0, "info", "--json", "fat", "8250").out))
	for _, want := range []infoDocument{{File: filepath.Join(root, "usr/lib/modules", rels[0], "kernel/fs/fat/fat.ko")}, {Builtin: true}} {
		var text json.RawMessage
		var got infoDocument
		if err := docs.Decode(&text); err != nil {
			t.Fatal(err)
		}
		checkDocumented(t, string(text))
		if err := json.Unmarshal(text, &got); err != nil || got.File != want.File || got.Builtin != want.Builtin || got.License != "GPL" {
			t.Errorf("%s: %v", text, err)
		}
	}
	empty := inRoot(t, t.TempDir())
	file := filepath.Join(root, "lib/modules", rels[0], "kernel/fs/fat/fat.ko")
	if got := empty(0, "info", "-F", "name", file).out; got != "fat\n" {
		t.Errorf("info of a file, where there is no kernel, prints %q", got)
	}
	empty(exitFailed, "info", "fat")
}
