package build

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"kmodctl/internal/kernel"
)

// series returns this machine's kernel of a series, "6.1." or "6.12.".
func series(t *testing.T, prefix string) kernel.Release {
	t.Helper()
	all, err := kernel.Find("/")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range all {
		if strings.HasPrefix(k.Name, prefix) && k.Tree != nil {
			return k
		}
	}
	t.Fatalf("no headers of a %s kernel: .ci/setup test", prefix)
	panic("unreachable")
}

const helloSource = `#include <linux/module.h>
#include <linux/bug.h>
static int __init hello_init(void) { WARN_ON(!THIS_MODULE); pr_info("%s\n", __FILE__); return 0; }
static void __exit hello_exit(void) { }
module_init(hello_init);
module_exit(hello_exit);
MODULE_LICENSE("GPL");
`

func helloTree(t *testing.T) map[string]string {
	t.Helper()
	return map[string]string{ManifestFile: helloManifest, "Kbuild": "obj-m := hello.o\n", "hello.c": helloSource}
}

// job is ready to run over a source: checked, with its toolchain.
func job(t *testing.T, k kernel.Release, source string) (Job, *bytes.Buffer) {
	t.Helper()
	m, err := CheckSource(source)
	if err != nil {
		t.Fatal(err)
	}
	_, chain, err := inputs(m, "source", k, toolIdentity)
	if err != nil {
		t.Fatal(err)
	}
	log := &bytes.Buffer{}
	return Job{Manifest: m, Kernel: k, Source: source, Toolchain: chain, Log: log}, log
}

func TestRun(t *testing.T) {
	for _, prefix := range []string{"6.1.", "6.12."} {
		t.Run(prefix, func(t *testing.T) {
			k := series(t, prefix)
			files := helloTree(t)
			files["Kbuild"] = "$(info built by uid $(shell id -u), home $(HOME), LANG=$(LANG), in $(PWD).)\nobj-m := hello.o\n"
			j, log := job(t, k, tree(t, files))
			t.Setenv("LANG", "de_DE.UTF-8")
			built, _, err := Run(t.Context(), j)
			if err != nil {
				t.Fatalf("%v\n%s", err, log)
			}
			if len(built) != 1 || built[0].Name != "hello" || built[0].File != filepath.Join(j.Source, "hello.ko") {
				t.Fatalf("built %v", built)
			}
			checkModule(t, built[0].File, k.Name)
			for _, want := range []string{"hello 1.0 for " + k.Name, "compiler: " + j.Toolchain.Identity, "isolation: strict: own mount, pid, ipc, uts, net namespaces, Landlock ABI ", "+ make -C " + k.Tree.Path, "home /nonexistent, LANG=, in /tmp/kmodctl/hello-1.0."} {
				if !strings.Contains(log.String(), want) {
					t.Errorf("the log lacks %q:\n%s", want, log)
				}
			}
			if strings.Contains(log.String(), "built by uid 0,") {
				t.Errorf("root has built:\n%s", log)
			}
			if strings.Contains(log.String(), j.Source) {
				t.Errorf("the log holds this run's own folder:\n%s", log)
			}
		})
	}
}

// checkModule opens a .ko as what an installer and a kernel would need it to be.
func checkModule(t *testing.T, file, release string) {
	t.Helper()
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, s := range f.Sections {
		if strings.HasPrefix(s.Name, ".debug") {
			t.Errorf("%s still has %s", file, s.Name)
		}
	}
	info, err := f.Section(".modinfo").Data()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(info, []byte("vermagic="+release+" ")) {
		t.Errorf("%s is not for %s: %q", file, release, info)
	}
}

// Patches for this kernel are applied, then the prepare steps run, then make finds
// what both left; a module in a folder of its own, written with the other of - and _.
func TestRunPrepares(t *testing.T) {
	k := series(t, "6.1.")
	j, log := job(t, k, tree(t, map[string]string{
		ManifestFile: `
name = "pre"
version = "1.0"
module = [{ name = "my_mod", dir = "sub" }]
[build]
targets = ["modules"]
prepare = [["./configure", "{build_tree}", "{source}", "{release}", "{arch}", "{cc}", "{jobs}", "a b;$(c)"], ["touch", "prepared"]]
patches = [{ file = "p/old.patch", release = "<5" }, { file = "p/now.patch", release = ">=5" }]
`,
		"p/old.patch": "no patch at all\n",
		"p/now.patch": "--- a/sub/Kbuild\n+++ b/sub/Kbuild\n@@ -1 +1 @@\n-$(error this file is to be patched)\n+obj-m := my-mod.o\n",
		"configure":   "#!/bin/sh\ngrep -q my-mod sub/Kbuild || exit 1\necho \"obj-m := sub/\" > Kbuild\nfor a; do echo \"<$a>\"; done\n",
		"sub/Kbuild":  "$(error this file is to be patched)\n",
		"sub/my-mod.c": "#include <linux/module.h>\n" +
			"MODULE_LICENSE(\"GPL\");\n",
		"sub/my_mod.ko": "shipped with the source: must not pass for a build",
	}))
	j.Jobserver = jobserver(t, 2)
	built, _, err := Run(t.Context(), j)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	if len(built) != 1 || built[0].Name != "my_mod" || built[0].File != filepath.Join(j.Source, "sub/my-mod.ko") {
		t.Fatalf("built %v", built)
	}
	checkModule(t, built[0].File, k.Name)
	want := "<" + strings.Join([]string{k.Tree.Path, "/tmp/kmodctl/pre-1.0", k.Name, k.Arch, j.Toolchain.Path, "2", "a b;$(c)"}, ">\n<") + ">\n"
	if !strings.Contains(log.String(), want) {
		t.Errorf("configure did not get %q:\n%s", want, log)
	}
	if _, err := os.Stat(filepath.Join(j.Source, "prepared")); err != nil {
		t.Error(err)
	}
}

func TestRunFails(t *testing.T) {
	k := series(t, "6.1.")
	with := func(name, content string) map[string]string {
		files := helloTree(t)
		files[name] = content
		return files
	}
	recipe := func(r string) string { return helloManifest + "[build]\n" + r + "\n" }
	for name, c := range map[string]struct {
		files         map[string]string
		step, err     string
		source, inLog string
	}{
		"compile error": {with("hello.c", "#include <linux/module.h>\nint f(void)\n{\n\treturn nothing;\n}\n"),
			"make", "build hello for " + k.Name + ": hello.c:4:16: error: 'nothing' undeclared (first use in this function)", "4 | \treturn nothing;", "hello.c:4:16"},
		"missing symbol": {with("hello.c", helloSource+"void nothing_here(void);\nvoid f(void) { nothing_here(); }\nEXPORT_SYMBOL(f);\n"),
			"make", "build hello for " + k.Name + `: ERROR: modpost: "nothing_here" [hello.ko] undefined!`, "", "MODPOST"},
		"other module": {with(ManifestFile, "name = \"hello\"\nversion = \"1.0\"\nmodule = [{name = \"helo\"}, {name = \"hello\", dir = \"sub\"}]\n"),
			"collect", "build hello for " + k.Name + ": collect: kbuild did not produce helo.ko, sub/hello.ko, only hello.ko", "", "kbuild did not produce helo.ko"},
		// A link in place of a module would have the installer read what it points at.
		"link for a module": {with("Kbuild", "$(info $(shell ln -s /etc/shadow $(src)/hello.ko && echo linked))\n"),
			"collect", "build hello for " + k.Name + ": collect: kbuild did not produce hello.ko, nor any other module", "", "\nlinked\n"},
		"prepare fails": {with(ManifestFile, recipe(`prepare = [["sh", "-c", "echo it is not there >&2; exit 3"]]`)),
			"prepare", "build hello for " + k.Name + ": prepare: sh: exit status 3", "", "it is not there"},
		"prepare is no program": {with(ManifestFile, recipe(`prepare = [["./configure"]]`)),
			"prepare", "build hello for " + k.Name + ": prepare: ./configure: exec: no such file or directory", "", "+ ./configure"},
		"patch does not fit": {with(ManifestFile, recipe(`patches = [{ file = "Kbuild" }]`)),
			"patch", "build hello for " + k.Name + ": Kbuild does not apply: Only garbage was found in the patch input.", "", "+ patch -p1"},
		"patch for other lines": {map[string]string{ManifestFile: recipe(`patches = [{ file = "p/api.patch" }]`), "Kbuild": "obj-m := hello.o\n", "hello.c": helloSource,
			"p/api.patch": "--- a/hello.c\n+++ b/hello.c\n@@ -1 +1 @@\n-nothing of the kind\n+other\n"},
			"patch", "build hello for " + k.Name + ": p/api.patch does not apply: Hunk #1 FAILED at 1.", "", "patching file hello.c"},
		"patch that is in already": {map[string]string{ManifestFile: recipe(`patches = [{ file = "p/api.patch" }]`), "Kbuild": "obj-m := hello.o\n", "hello.c": helloSource,
			"p/api.patch": "--- a/Kbuild\n+++ b/Kbuild\n@@ -1 +1 @@\n-obj-m := helo.o\n+obj-m := hello.o\n"},
			"patch", "build hello for " + k.Name + ": p/api.patch does not apply: Reversed (or previously applied) patch detected!  Skipping patch.", "", "patching file Kbuild"},
		"no source for an object": {with("Kbuild", "obj-m := frist.o\n"),
			"make", "build hello for " + k.Name + ": Kbuild names frist.o, but there is no frist.c (or .S, .rs)", "", "No rule to make target"},
		"program of the source without ./": {map[string]string{ManifestFile: recipe(`prepare = [["configure"]]`), "configure": "#!/bin/sh\n"},
			"prepare", "build hello for " + k.Name + ": prepare: configure is not on the build's PATH; the source has ./configure", "", "the source has ./configure"},
		// What an earlier step complains of, and gets over, is not why a later one fails.
		"complaint of a step that went well": {with(ManifestFile, recipe(`prepare = [["sh", "-c", "echo conftest.c:1:1: error: x"], ["false"]]`)),
			"prepare", "build hello for " + k.Name + ": prepare: false: exit status 1", "", "conftest.c"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j, log := job(t, k, tree(t, c.files))
			built, _, err := Run(t.Context(), j)
			var failed *Error
			if !errors.As(err, &failed) {
				t.Fatalf("%v is no *Error; built %v\n%s", err, built, log)
			}
			if failed.Error() != c.err {
				t.Errorf("\n got %s\nwant %s\n%s", failed, c.err, log)
			}
			if failed.Step != c.step || strings.Join(failed.Source, "\n") != c.source {
				t.Errorf("step %q, source %q", failed.Step, failed.Source)
			}
			if !strings.Contains(log.String(), c.inLog) {
				t.Errorf("the log lacks %q:\n%s", c.inLog, log)
			}
		})
	}
}

func TestRunOnAFullDisk(t *testing.T) {
	k := series(t, "6.1.")
	files := helloTree(t)
	files["Kbuild"] = "$(shell echo 'hello.c:1:1: error: x' >&2; cat $(srctree)/Makefile >/dev/full)\n$(error no more)\n"
	j, log := job(t, k, tree(t, files))
	_, _, err := Run(t.Context(), j)
	var failed *Error
	if !errors.As(err, &failed) || !errors.Is(err, syscall.ENOSPC) || failed.Line != "cat: write error: No space left on device" {
		t.Errorf("%v\n%s", err, log)
	}

	// The log itself may be what the disk has no room for.
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	j, _ = job(t, k, tree(t, helloTree(t)))
	j.Log = full
	if built, _, err := Run(t.Context(), j); !errors.Is(err, syscall.ENOSPC) || built != nil {
		t.Errorf("built %v, %v", built, err)
	}
}

func TestRunWithoutAProgram(t *testing.T) {
	k := series(t, "6.1.")
	files := helloTree(t)
	files[ManifestFile] += "[build]\npatches = [{ file = \"Kbuild\" }]\n"
	j, _ := job(t, k, tree(t, files))
	programs(t)
	_, _, err := Run(context.Background(), j)
	if want := "build hello for " + k.Name + `: exec: "patch": not installed`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
