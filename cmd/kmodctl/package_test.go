package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"kmodctl/internal/vm"
)

// besideFiles are the files of examples/acme-led, inside the root and in the source.
var besideFiles = map[string]string{
	"lib/firmware/updates/acme/led.bin":    "firmware/acme/led.bin",
	"etc/udev/rules.d/90-acme-led.rules":   "90-acme-led.rules",
	"etc/modules-load.d/acme-led.conf":     "acme-led.conf",
	"etc/modprobe.d/acme-led-options.conf": "acme-led-options.conf",
}

// checkBeside fails unless all the files that acme-led ships are there as they are in dir, or none.
func checkBeside(t *testing.T, root, dir string, there bool) {
	t.Helper()
	for path, file := range besideFiles {
		got, err := os.ReadFile(filepath.Join(root, path))
		want, _ := os.ReadFile(filepath.Join(dir, file))
		if (err == nil) != there || there && !bytes.Equal(got, want) {
			t.Errorf("%s: %q %v, want %q", path, got, err, want)
		}
	}
}

func acmeLED(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "acme-led")
	if err := os.CopyFS(dir, os.DirFS("../../examples/acme-led")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestBeside: firmware, rules and options come and go with the modules; what others have made of them is not lost.
func TestBeside(t *testing.T) {
	rels := releases(t)
	root := newRoot(t, rels...)
	dir := acmeLED(t)
	km := func(args ...string) result { t.Helper(); return must(t, append([]string{"--root", root}, args...)...) }
	options := filepath.Join(root, "etc/modprobe.d/acme-led-options.conf")
	rules := filepath.Join(root, "etc/udev/rules.d/90-acme-led.rules")

	km("--dry-run", "build", dir)
	checkBeside(t, root, dir, false)
	says(t, km("build", dir).stderr, "installed /etc/modprobe.d/acme-led-options.conf of acme-led 1.0.0")
	checkBeside(t, root, dir, true)
	silent(t, km("build", "-q"))

	// What was lost, or was cut off before it was done, the next command puts right.
	if err := os.Remove(rules); err != nil {
		t.Fatal(err)
	}
	km("build")
	checkBeside(t, root, dir, true)

	// What is lost, damaged or edited is told; repair mends the first two.
	firmware := filepath.Join(root, "lib/firmware/updates/acme/led.bin")
	for path, text := range map[string]string{firmware: "damaged", options: "options acme_led brightness=1\n"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(rules); err != nil {
		t.Fatal(err)
	}
	says(t, km("status").out, "/lib/firmware/updates/acme/led.bin is modified", "/etc/udev/rules.d/90-acme-led.rules is missing")
	r := kmodctl(t, "--root", root, "verify")
	says(t, r.out, "modified: file /lib/firmware/updates/acme/led.bin (acme-led 1.0.0)", "missing: file /etc/udev/rules.d/90-acme-led.rules",
		"edited: file /etc/modprobe.d/acme-led-options.conf")
	if r.code != exitFailed {
		t.Errorf("verify: exit %d", r.code)
	}
	says(t, km("repair").stderr, "left alone: edited: file /etc/modprobe.d/acme-led-options.conf", "copy it from the source of acme-led 1.0.0")
	if err := os.Remove(options); err != nil {
		t.Fatal(err)
	}
	km("repair")
	checkBeside(t, root, dir, true)
	says(t, km("verify").stderr, "everything is as it should be")

	km("uninstall", "acme-led", "-k", rels[0])
	checkBeside(t, root, dir, true)
	km("uninstall", "acme-led", "-k", rels[1])
	checkBeside(t, root, dir, false)
	if _, err := os.Stat(filepath.Join(root, "lib/firmware/updates/acme")); err == nil {
		t.Error("the folder of the firmware is left")
	}
	km("install", "acme-led")
	checkBeside(t, root, dir, true)

	// An upgrade brings its own, but for what the administrator has changed; that outlives the package too.
	if err := os.WriteFile(rules, []byte("# mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "acme-led-options.conf", "options acme_led brightness=30\n")
	text, err := os.ReadFile(filepath.Join(dir, "kmod.toml"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "kmod.toml", strings.Replace(string(text), "1.0.0", "1.1.0", 1))
	km("build", dir)
	if got, _ := os.ReadFile(options); string(got) != "options acme_led brightness=30\n" {
		t.Errorf("after an upgrade: %q", got)
	}
	km("remove", "acme-led")
	if _, err := os.Stat(options); err == nil {
		t.Error("the options outlive the package")
	}
	if got, _ := os.ReadFile(rules); string(got) != "# mine\n" {
		t.Errorf("an administrator's file is %q", got)
	}

	// A file that was there before is nobody's to overwrite; the modules are installed all the same.
	says(t, km("build", dir).stderr, rules[len(root):]+" was not put there by kmodctl", "installed /etc/modprobe.d/acme-led-options.conf")
	km("remove", "acme-led")
	if got, _ := os.ReadFile(rules); string(got) != "# mine\n" {
		t.Errorf("a file that was there before is %q", got)
	}
}

// TestPackage makes the vendor's packages of examples/acme-led, and runs their scripts as dpkg does.
func TestPackage(t *testing.T) {
	rels := releases(t)
	root := newRoot(t, rels...)
	dir := acmeLED(t)
	made := func(args ...string) string {
		t.Helper()
		var files []string
		for range 2 {
			out := t.TempDir()
			must(t, append([]string{"--root", root, "package", dir, "-o", out}, args...)...)
			found, _ := filepath.Glob(filepath.Join(out, "*"))
			if len(found) != 1 {
				t.Fatalf("package %v made %v", args, found)
			}
			files = append(files, found[0])
		}
		a, _ := os.ReadFile(files[0])
		if b, err := os.ReadFile(files[1]); err != nil || !bytes.Equal(a, b) {
			t.Errorf("package %v makes another file the second time: %v", args, err)
		}
		return files[0]
	}
	output := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}

	// The source: installed, removed.
	deb := made()
	if filepath.Base(deb) != "acme-led_1.0.0_all.deb" {
		t.Errorf("made %s", deb)
	}
	says(t, output("dpkg-deb", "-f", deb), "Depends: kmodctl")
	control := filepath.Join(t.TempDir(), "control")
	output("dpkg-deb", "-e", deb, control)
	output("dpkg-deb", "-x", deb, root)
	h := hooked{t, root, rels}
	script := func(name string, args ...string) result {
		t.Helper()
		return h.command("", []string{"PATH=" + filepath.Dir(program) + ":" + os.Getenv("PATH")}, filepath.Join(control, name), args...)
	}
	script("postinst", "configure", "")
	checkInstalled(t, root, rels, map[string][]string{"acme-led": {"acme_led"}})
	checkBeside(t, root, dir, true)
	silent(t, script("prerm", "upgrade", "1.1.0"))
	checkBeside(t, root, dir, true)
	script("prerm", "remove")
	checkInstalled(t, root, rels, nil)
	checkBeside(t, root, dir, false)

	// The modules for one kernel need nothing of ours.
	deb = made("--binary", "-k", rels[0])
	facts := output("dpkg-deb", "-f", deb)
	says(t, facts, "linux-image-"+rels[0])
	if strings.Contains(facts, "kmodctl") {
		t.Errorf("modules depend on kmodctl:\n%s", facts)
	}
	// And as .rpm.
	says(t, output("rpm", "-qp", "--requires", "--scripts", "-l", made("--format", "rpm")), "kmodctl package-hook postinst acme-led 1.0.0", "/usr/src/acme-led-1.0.0/kmod.toml")
	says(t, output("rpm", "-qp", "--requires", "-l", made("--format", "rpm", "--binary", "-k", rels[0])), "/lib/modules/"+rels[0], "/updates/acme-led/acme_led.ko")

	for _, wrong := range [][]string{{"--binary"}, {"-k", rels[0]}, {"--format", "apk"}} {
		if r := kmodctl(t, append([]string{"--root", root, "package", dir}, wrong...)...); r.code != exitUsage {
			t.Errorf("package %v: exit %d", wrong, r.code)
		}
	}
}

// installedRoot is a whole Debian, of .ci/test-debian, in which dpkg has installed what TestModulesPackage else unpacks.
var installedRoot = flag.String("installed", "", "the root in which a package of the modules of examples/acme-led is installed")

// guestPackaged has the guest run packagedChecks.
const guestPackaged = "packaged"

// TestModulesPackage: what package --binary makes needs nothing of ours. The kernel's own modprobe loads the module, with the
// options and the firmware that came with it.
func TestModulesPackage(t *testing.T) {
	root := *installedRoot
	if root == "" {
		root = unpackModules(t, releases(t)[0])
	}
	found, _ := filepath.Glob(filepath.Join(root, "usr/lib/modules/*/updates/acme-led/acme_led.ko"))
	if len(found) != 1 {
		t.Fatalf("modules in %s: %v", root, found)
	}
	modules := filepath.Dir(filepath.Dir(filepath.Dir(found[0])))
	release := filepath.Base(modules)
	files := append(program(t, "modprobe"),
		vm.File{Guest: filepath.Join("/lib/modules", release, "updates"), Host: filepath.Join(modules, "updates")},
		vm.File{Guest: "/lib/firmware/updates", Host: filepath.Join(root, "usr/lib/firmware/updates")},
		vm.File{Guest: "/lib/modprobe.d", Host: filepath.Join(root, "usr/lib/modprobe.d")})
	index, _ := filepath.Glob(filepath.Join(modules, "modules.*"))
	for _, file := range index {
		files = append(files, vm.File{Guest: filepath.Join("/lib/modules", release, filepath.Base(file)), Host: file})
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out, console bytes.Buffer
	code, err := vm.Run(t.Context(), vm.Config{
		Image: filepath.Join(root, "boot/vmlinuz-"+release), Init: self, Env: map[string]string{guestEnv: guestPackaged},
		Files: files, Output: &out, Console: &console,
	})
	if err != nil || code != 0 {
		t.Fatalf("on %s: exit %d, %v\n%s\n%s", release, code, err, out.String(), console.String())
	}
}

// unpackModules makes a root with a package of modules unpacked in it.
func unpackModules(t *testing.T, release string) (root string) {
	t.Helper()
	root = newRoot(t, release)
	out := t.TempDir()
	must(t, "--root", root, "package", acmeLED(t), "--binary", "-k", release, "-o", out)
	deb, _ := filepath.Glob(filepath.Join(out, "*.deb"))
	unpacked := t.TempDir()
	for _, args := range [][]string{
		append([]string{"dpkg-deb", "-x"}, append(deb, unpacked)...),
		{"cp", "-a", unpacked + "/usr/lib/.", filepath.Join(root, "usr/lib")},
		{"depmod", "-b", root, release},
	} {
		if text, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, text)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "usr/lib/udev/rules.d/90-acme-led.rules")); err != nil {
		t.Error(err)
	}
	return root
}

// packagedChecks is the main program of the virtual machine of TestModulesPackage.
func packagedChecks() int {
	g := &guest{}
	g.command(0, exec.Command("/sbin/modprobe", "acme_led"))
	g.file("/sys/module/acme_led/parameters/brightness", "70") // by acme-led-options.conf
	text := make([]byte, 1<<20)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, text)
	if log := string(text[:max(n, 0)]); err != nil || !strings.Contains(log, "bytes of firmware") {
		g.errorf("the kernel's log has no firmware: %v\n%s", err, log)
	}
	g.command(0, exec.Command("/sbin/modprobe", "-r", "acme_led"))
	if live := g.live(); len(live) > 0 {
		g.errorf("still live: %v", live)
	}
	if g.failed > 0 {
		fmt.Printf("%d checks failed\n", g.failed)
		return 1
	}
	return 0
}
