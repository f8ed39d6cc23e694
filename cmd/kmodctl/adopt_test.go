package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// dkmsCommand is the real program, called by the name dkms, for the machine in root.
func dkmsCommand(t testing.TB, root string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(filepath.Dir(path), "dkms")
	if err := os.Symlink(path, link); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	cmd := exec.Command(link, args...)
	cmd.Env = append(os.Environ(), "KMODCTL_ROOT="+root)
	return cmd
}

// dkmsRuns runs dkms, which must exit with code.
func dkmsRuns(t testing.TB, root string, code int, args ...string) result {
	t.Helper()
	r := command(t, dkmsCommand(t, root, args...))
	if r.code != code {
		t.Fatalf("dkms %s: exit %d, want %d\n%s%s", strings.Join(args, " "), r.code, code, r.out, r.stderr)
	}
	return r
}

// dkmsStatusIs holds what dkms status prints to lines.
func dkmsStatusIs(t testing.TB, root string, want ...string) {
	t.Helper()
	got := dkmsRuns(t, root, 0, "status").out
	if all := strings.Join(want, "\n"); strings.TrimSuffix(got, "\n") != all {
		t.Errorf("dkms status:\n%swant:\n%s\n", got, all)
	}
}

// dkmsSource makes /usr/src/NAME-VERSION of a module that does nothing, with more lines for its dkms.conf.
func dkmsSource(t testing.TB, root, name, version string, lines ...string) (dir string) {
	t.Helper()
	dir = filepath.Join(root, "usr/src", name+"-"+version)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "Makefile", "obj-m := "+name+".o\n")
	write(t, dir, name+".c", "#include <linux/module.h>\nstatic int __init begin(void) { return 0; }\nstatic void __exit end(void) {}\n"+
		"module_init(begin);\nmodule_exit(end);\nMODULE_LICENSE(\"GPL\");\nMODULE_VERSION(\""+version+"\");\n")
	write(t, dir, "dkms.conf", fmt.Sprintf("PACKAGE_NAME=%q\nPACKAGE_VERSION=%q\nBUILT_MODULE_NAME=%[1]q\nDEST_MODULE_LOCATION=/extra\nAUTOINSTALL=yes\n%[3]s\n",
		name, version, strings.Join(lines, "\n")))
	return dir
}

// dkmsBuilt leaves what DKMS leaves of a build by plain kbuild: compress is "" or the ending of a compressed module.
func dkmsBuilt(t testing.TB, root, name, version, rel, compress string, install bool) {
	t.Helper()
	tree := filepath.Join(root, "var/lib/dkms", name)
	at := filepath.Join(tree, version, rel, "x86_64")
	build := t.TempDir()
	run := func(argv ...string) {
		t.Helper()
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
	}
	run("mkdir", "-p", at+"/module", at+"/log", filepath.Join(root, "lib/modules", rel, "updates/dkms"))
	if _, err := os.Lstat(tree + "/" + version + "/source"); err != nil {
		run("ln", "-s", "/usr/src/"+name+"-"+version, tree+"/"+version+"/source")
	}
	run("cp", "-a", filepath.Join(root, "usr/src", name+"-"+version)+"/.", build)
	run("make", "-C", "/lib/modules/"+rel+"/build", "M="+build)
	run("strip", "-g", build+"/"+name+".ko")
	file := name + ".ko"
	if compress == ".xz" {
		run("xz", "--check=crc32", build+"/"+file)
		file += compress
	}
	run("cp", build+"/"+file, at+"/module/")
	write(t, at, "log/make.log", "DKMS make.log for "+name+"-"+version+" for kernel "+rel+" (x86_64)\n")
	if install {
		run("cp", build+"/"+file, filepath.Join(root, "lib/modules", rel, "updates/dkms"))
		run("ln", "-s", version+"/"+rel+"/x86_64", tree+"/kernel-"+rel+"-x86_64")
		run("depmod", "-b", root, rel)
	}
}

// TestAdopt is a machine with DKMS that becomes one with kmodctl: nothing is built, no file of /lib/modules changes,
// and status says what it said before; a module of the kernel that DKMS had put aside loads again after an uninstall.
func TestAdopt(t *testing.T) {
	rels := releases(t)
	old, new := rels[0], rels[1]
	root := newRoot(t, rels...)
	for _, name := range []string{"one", "dummy", "built"} {
		dkmsSource(t, root, name, "9.0")
	}
	dkmsSource(t, root, "added", "1.0")
	dkmsSource(t, root, "broken", "1.0")
	dkmsBuilt(t, root, "one", "9.0", old, "", true)
	dkmsBuilt(t, root, "one", "9.0", new, ".xz", true)
	dkmsBuilt(t, root, "dummy", "9.0", old, "", true)
	dkmsBuilt(t, root, "built", "9.0", new, ".xz", false)
	tree := filepath.Join(root, "var/lib/dkms")
	for _, name := range []string{"added", "broken"} {
		if err := os.MkdirAll(filepath.Join(tree, name, "1.0"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/usr/src/"+name+"-1.0", filepath.Join(tree, name, "1.0/source")); err != nil {
			t.Fatal(err)
		}
	}
	os.RemoveAll(filepath.Join(root, "usr/src/broken-1.0"))
	aside := filepath.Join(tree, "dummy/original_module", old, "x86_64")
	own := "/lib/modules/" + old + "/kernel/drivers/net/dummy.ko"
	if err := os.MkdirAll(aside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(root, own), filepath.Join(aside, "dummy.ko")); err != nil {
		t.Fatal(err)
	}
	write(t, aside, "dummy.ko.origin", own+"\n")

	lines := []string{
		"added/1.0: added",
		"broken/1.0: broken",
		"built/9.0, " + new + ", x86_64: built",
		"dummy/9.0, " + old + ", x86_64: installed (Original modules exist)",
		"one/9.0, " + old + ", x86_64: installed",
		"one/9.0, " + new + ", x86_64: installed",
	}
	dkmsStatusIs(t, root, lines...)
	installed := filepath.Join(root, "lib/modules", old, "updates/dkms/one.ko")
	if err := os.Rename(installed, installed+".away"); err != nil { // as of several modules that DKMS has held back
		t.Fatal(err)
	}
	lines[4] += " (Differences between built and installed modules)"
	dkmsStatusIs(t, root, lines...)
	lines[4] = strings.TrimSuffix(lines[4], " (Differences between built and installed modules)")
	if err := os.Rename(installed+".away", installed); err != nil {
		t.Fatal(err)
	}
	before := updatesOf(t, root)
	says(t, must(t, "--root", root, "adopt", "--dry-run").out, "adopt one 9.0 for "+new+", which is installed")
	checkDocumented(t, must(t, "--root", root, "adopt", "--dry-run", "--json").out)
	if _, err := os.Stat(filepath.Join(root, "var/lib/kmodctl")); err == nil {
		t.Error("a dry run made a registry")
	}
	r := must(t, "--root", root, "adopt")
	says(t, r.stderr, "adopted built 9.0 for "+new+", which is built")
	says(t, r.stderr, "broken/1.0 is left as it is")
	dkmsStatusIs(t, root, lines...)
	if after := updatesOf(t, root); after != before {
		t.Errorf("under updates there was\n%sand now is\n%s", before, after)
	}
	for _, line := range strings.Split(must(t, "--root", root, "build", "--dry-run").out, "\n") {
		if strings.Contains(line, "build one") || strings.Contains(line, "build dummy 9.0 for "+old) || strings.Contains(line, "build built 9.0 for "+new) {
			t.Errorf("it would %s", line)
		}
	}
	must(t, "--root", root, "verify")
	for _, p := range statusOf(t, "--root", root).Packages {
		for _, k := range p.Kernels {
			if p.Name == "one" && k.State != stateInstalled || p.Name == "built" && k.Release == new && k.State != stateBuilt {
				t.Errorf("%s for %s is %s: %s", p.Name, k.Release, k.State, k.Why)
			}
		}
	}
	for _, name := range []string{"one/9.0/" + new + "/x86_64/module/one.ko.xz", "one/kernel-" + new + "-x86_64", "one/9.0/source", "one/9.0/" + old + "/x86_64/log/make.log"} {
		if _, err := os.Lstat(filepath.Join(tree, name)); err != nil {
			t.Error(err)
		}
	}
	says(t, must(t, "--root", root, "adopt").stderr, "nothing to do")

	// What loads now is the kernel's own.
	dkmsRuns(t, root, 0, "uninstall", "dummy/9.0", "-k", old)
	out, err := exec.Command("modprobe", "-d", root, "-S", old, "--show-depends", "dummy").CombinedOutput()
	if err != nil || !strings.Contains(string(out), own) {
		t.Errorf("modprobe would load %q for dummy (%v)", out, err)
	}
	lines[3] = "dummy/9.0, " + old + ", x86_64: built"
	dkmsStatusIs(t, root, lines...)

	// Others may do what they like to the tree: it is told, and made anew.
	if err := os.RemoveAll(filepath.Join(tree, "one")); err != nil {
		t.Fatal(err)
	}
	r = dkmsRuns(t, root, 0, "status", "one")
	says(t, r.stderr, "/var/lib/dkms/one/9.0/", "was removed by another program")
	dkmsRuns(t, root, 0, "uninstall", "built/9.0", "-k", new)
	if _, err := os.Stat(filepath.Join(tree, "one/9.0", old, "x86_64/module/one.ko")); err != nil {
		t.Error(err)
	}
	dkmsStatusIs(t, root, lines...)
	dkmsRuns(t, root, 4, "remove", "broken/1.0", "--all")
}

// updatesOf are the modules below updates, with time and sum.
func updatesOf(t testing.TB, root string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", "cd "+root+"/lib/modules && find */updates -type f -printf '%p %T@ ' -exec sha256sum {} \\;").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// TestAdoptKilled kills an adoption at each third time that it waits for the disk; the next one carries it through.
func TestAdoptKilled(t *testing.T) {
	rel := releases(t)[0]
	root := newRoot(t, rel)
	dkmsSource(t, root, "dummy", "9.0")
	dkmsBuilt(t, root, "dummy", "9.0", rel, "", true)
	own := "/lib/modules/" + rel + "/kernel/drivers/net/dummy.ko"
	aside := filepath.Join(root, "var/lib/dkms/dummy/original_module", rel, "x86_64")
	if err := os.MkdirAll(aside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(root, own), filepath.Join(aside, "dummy.ko")); err != nil {
		t.Fatal(err)
	}
	write(t, aside, "dummy.ko.origin", own+"\n")
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	before := updatesOf(t, root)
	saved := filepath.Join(t.TempDir(), "dkms")
	run := func(argv ...string) {
		t.Helper()
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
	}
	tree := filepath.Join(root, "var/lib/dkms")
	run("cp", "-a", tree, saved)
	for n := 1; ; n += 3 {
		run("rm", "-rf", tree, filepath.Join(root, "var/lib/kmodctl"), filepath.Join(root, own))
		run("cp", "-a", saved, tree)
		r := command(t, exec.Command("strace", "-f", "-o", "/dev/null", "-e", "trace=fsync,fdatasync",
			"-e", fmt.Sprintf("inject=fsync,fdatasync:signal=SIGKILL:when=%d", n), path, "--root", root, "adopt"))
		must(t, "--root", root, "adopt")
		dkmsStatusIs(t, root, "dummy/9.0, "+rel+", x86_64: installed (Original modules exist)")
		must(t, "--root", root, "verify")
		if after := updatesOf(t, root); after != before {
			t.Errorf("killed at sync %d: under updates there was\n%sand now is\n%s", n, before, after)
		}
		if _, err := os.Stat(filepath.Join(root, own)); err != nil {
			t.Errorf("killed at sync %d: %v", n, err)
		}
		if _, err := os.Stat(aside); err == nil {
			t.Errorf("killed at sync %d: what was put aside is still there", n)
		}
		if r.code == 0 {
			t.Logf("%d points", n/3)
			return
		}
	}
}
