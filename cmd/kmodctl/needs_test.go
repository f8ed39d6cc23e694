package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kmodctl/internal/ko"
)

// Two packages of which one uses the other's symbols: it is built after it, against its CRCs,
// again when that changes, and not at all when that cannot be.
func TestNeeds(t *testing.T) {
	rel := releases(t)[0]
	root := newRoot(t, rel)
	base, user := t.TempDir(), t.TempDir()
	for dir, files := range map[string]map[string]string{
		base: {"stack.c": "stack.c", "stack.h": "stack.h"}, user: {"stack_user.c": "stack_user.c", "stack.h": "stack.h"},
	} {
		for to, from := range files {
			text, err := os.ReadFile(filepath.Join("../../examples/stack", from))
			if err != nil {
				t.Fatal(err)
			}
			write(t, dir, to, string(text))
		}
	}
	baseManifest := write(t, base, "kmod.toml", "name = \"stack\"\nversion = \"1\"\n")
	write(t, base, "Kbuild", "obj-m := stack.o\n")
	write(t, user, "kmod.toml", "name = \"stack_user\"\nversion = \"1\"\n\n[build]\nneeds = [\"stack\"]\n")
	write(t, user, "Kbuild", "obj-m := stack_user.o\n")
	km := inRoot(t, root)
	says(t, km(exitNotFound, "build", user, "-k", rel).stderr, "it needs the package stack: ", "kmodctl add")
	r := km(0, "build", user, base, "-k", rel) // the dependent one first
	if strings.Index(r.stderr, "built stack 1") > strings.Index(r.stderr, "built stack_user 1") {
		t.Errorf("the wrong order: %s", r.stderr)
	}
	installed := func(name string) *ko.Info {
		t.Helper()
		info, err := ko.Open(filepath.Join(root, "lib/modules", rel, "updates/kmodctl", name+".ko"))
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	exports := installed("stack").Exports
	for _, e := range exports {
		if crc, ok := installed("stack_user").CRC(e.Name); !ok || crc != e.CRC {
			t.Errorf("%s is imported with CRC %#x, %v; it is %#x", e.Name, crc, ok, e.CRC)
		}
	}
	if got := installed("stack_user").Depends; len(exports) == 0 || len(got) != 1 || got[0] != "stack" {
		t.Errorf("of %d exports: depends on %q", len(exports), got)
	}
	says(t, km(0, "build", "stack_user", "-k", rel).stderr, "nothing to do")

	says(t, km(0, "verify", "--rebuild", "stack_user").out, "identical: stack_user 1 for "+rel)

	// What it needs is built with it, also when only it is named.
	write(t, base, "extra.h", "/* of no consequence */\n")
	km(0, "add", base)
	says(t, km(0, "status", "stack_user").out, "needs stack changed")
	says(t, km(0, "build", "stack_user", "-k", rel, "--dry-run").out, "build stack 1", "build stack_user 1 for "+rel+": needs stack changed")

	// A failure of the one is told of the other, and what is installed stays.
	write(t, base, "stack.c", "int x = y;\n")
	km(0, "add", base)
	r = km(exitBuild, "build", "stack_user", "-k", rel)
	says(t, r.stderr, "'y' undeclared", "build stack_user for "+rel+": it needs the package stack: stack 1 is not built for "+rel)
	installed("stack_user")

	// One that needs itself, by way of another, never begins.
	write(t, base, "kmod.toml", baseManifest+"\n[build]\nneeds = [\"stack_user\"]\n")
	km(0, "add", base)
	says(t, km(exitBuild, "build", "-k", rel).stderr, "it needs the package stack: which needs stack_user")

	// One that is not for this kernel is passed over, and so is who needs it.
	write(t, base, "kmod.toml", baseManifest+"\n[kernel]\nrelease = \"<5\"\n")
	km(0, "add", base)
	says(t, km(0, "build", "stack_user", "-k", rel).stderr, "skipped stack_user 1 for "+rel+": it needs the package stack: release "+rel+" is not <5")
}
