package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kmodctl/build"
)

// What an author's CI sees of a look at a folder and at a package: findings on standard output, an exit code,
// and a machine that is as it was.
func TestCheck(t *testing.T) {
	rels := releases(t)
	root := newRoot(t, rels...)
	must(t, "version") // the program is there before its temporary folder
	temp := t.TempDir()
	if err := os.Chmod(temp, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", temp)
	dir := t.TempDir()
	write(t, dir, "kmod.toml", "name = \"peek\"\nversion = \"1.0\"\n")
	write(t, dir, "Kbuild", "obj-m := peek.o\n")
	source := func(lines string) {
		write(t, dir, "peek.c", "#include <linux/module.h>\n"+lines+"MODULE_LICENSE(\"GPL\");\nMODULE_DESCRIPTION(\"peek\");\n")
	}
	run := func(want int, args ...string) result {
		t.Helper()
		r := kmodctl(t, append([]string{"--root", root, "build"}, args...)...)
		if r.code != want {
			t.Fatalf("%q: exit %d, want %d\n%s%s", args, r.code, want, r.out, r.stderr)
		}
		if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
			t.Fatalf("%q left %v, %v", args, left, err)
		}
		return r
	}

	source("int naked;\n")
	const text = "warning: symbol 'naked' was not declared. Should it be static?"
	r := run(exitFailed, "--check", "sparse", "-W", "1", dir, "-k", rels[0])
	if want := filepath.Join(dir, "peek.c") + ":2:5: " + text + "\n"; r.out != want || !strings.Contains(r.stderr, "check peek for "+rels[0]+": 1 finding\n") {
		t.Errorf("want %s, got\n%s%s", want, r.out, r.stderr)
	}
	if _, err := os.Stat(filepath.Join(root, "var/lib/kmodctl")); !os.IsNotExist(err) {
		t.Errorf("a look at a folder made a registry: %v", err)
	}
	run(exitDone, "--check", "sparse", dir, "--dry-run")
	run(exitDone, "-W", "1", dir)

	// A package is looked at as it is registered.
	must(t, "--root", root, "add", dir)
	source("")
	run(exitDone, "--check", "sparse", dir, "-k", rels[1])
	r = run(exitFailed, "--check", "sparse", "peek", "--json")
	checkDocumented(t, r.out)
	var doc struct{ Steps []checkStep }
	if err := json.Unmarshal([]byte(r.out), &doc); err != nil || len(doc.Steps) != len(rels) {
		t.Fatalf("%v in %s", err, r.out)
	}
	for _, s := range doc.Steps {
		if s.Outcome != "found" || len(s.Findings) != 1 || s.Findings[0].String() != "peek.c:2:5: "+text {
			t.Errorf("%+v", s)
		}
	}
	for _, k := range statusOf(t, "--root", root).Packages[0].Kernels {
		if k.State != stateAdded {
			t.Errorf("a look has made it %s for %s", k.State, k.Release)
		}
	}

	source("int naked(void) { return nothing; }\n")
	r = run(exitBuild, "--check", "sparse", dir, "-k", rels[0])
	for _, want := range []string{"peek.c:2:26: error: 'nothing' undeclared", "  why:  " + build.ClassAPI.Words(), "the same command with -v prints the whole log"} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("not told: %s\n%s", want, r.stderr)
		}
	}
	for _, args := range [][]string{{"--check", "lint", dir}, {"-W", "4", dir}, {"--check", "sparse"}, {"--check", "sparse", "--watch", dir}} {
		run(exitUsage, args...)
	}
	if r := run(exitFailed, "--check", "clang", dir, "-k", rels[0]); !strings.Contains(r.stderr, "the kernel was built with ") {
		t.Errorf("not told why clang does not do: %s", r.stderr)
	}
}

// TestCheckConf looks at sources whose dkms.conf has a MAKE and a PRE_BUILD of its own: kbuild is told what to look for whatever
// the command is.
func TestCheckConf(t *testing.T) {
	rel := releases(t)[0]
	root := newRoot(t, rel)
	for _, command := range []string{`make -C $kernel_source_dir M=$dkms_tree/peek/1.0/build`, `cd src && 'make' -C $kernel_source_dir M=$dkms_tree/peek/1.0/build`} {
		dir := dkmsSource(t, root, "peek", "1.0", `MAKE="`+command+`"`, `PRE_BUILD="prepare.sh"`)
		write(t, dir, "peek.c", "#include <linux/module.h>\n#include \"made.h\"\nint naked;\nMODULE_LICENSE(\"GPL\");\nMODULE_DESCRIPTION(\"peek\");\n")
		if err := os.MkdirAll(filepath.Join(dir, "src"), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "src"), "README", "")
		if err := os.WriteFile(filepath.Join(dir, "prepare.sh"), []byte("#!/bin/sh\n>made.h\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		r := kmodctl(t, "--root", root, "build", "--check", "sparse", "-W", "1", dir, "-k", rel)
		if want := filepath.Join(dir, "peek.c") + ":3:5: warning: symbol 'naked' was not declared. Should it be static?\n"; r.out != want || r.code != exitFailed {
			t.Errorf("%s: exit %d, want %s, got\n%s%s", command, r.code, want, r.out, r.stderr)
		}
	}
}

// TestRunConf loads the modules of a dkms.conf with a MAKE of its own into a virtual machine, those first that others need.
func TestRunConf(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "dkms.conf", `PACKAGE_NAME=pair
PACKAGE_VERSION=1.0
MAKE="make -C $kernel_source_dir M=$dkms_tree/pair/1.0/build WORD=hail"
BUILT_MODULE_NAME[0]=user
BUILT_MODULE_NAME[1]=base
DEST_MODULE_LOCATION[0]=/extra
DEST_MODULE_LOCATION[1]=/extra
`)
	write(t, dir, "Makefile", "obj-m := base.o user.o\nccflags-y := -DWORD='\"$(WORD)\"'\n")
	write(t, dir, "base.c", "#include <linux/module.h>\nconst char *word(void) { return WORD; }\nEXPORT_SYMBOL_GPL(word);\nMODULE_LICENSE(\"GPL\");\nMODULE_DESCRIPTION(\"base\");\n")
	write(t, dir, "user.c", "#include <linux/module.h>\nconst char *word(void);\nstatic int __init begin(void) { pr_info(\"user says %s\\n\", word()); return 0; }\n"+
		"static void __exit end(void) {}\nmodule_init(begin);\nmodule_exit(end);\nMODULE_LICENSE(\"GPL\");\nMODULE_DESCRIPTION(\"user\");\n")
	for _, release := range releases(t) {
		says(t, must(t, "run", dir, "-k", release, "--dry-run").out, "build pair 1.0 for "+release, "load and unload user, base")
		says(t, must(t, "run", dir, "-k", release).out, "user says hail")
	}
}
