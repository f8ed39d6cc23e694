package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/u-root/u-root/pkg/cpio"

	"kmodctl/loader"
)

// modulesRoot is a machine that has kernels with a few of their modules, and nothing else.
func modulesRoot(t testing.TB, releases ...string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, release := range releases {
		base := "/lib/modules/" + release
		for _, pattern := range []string{"kernel/fs/fat/*.ko*", "kernel/drivers/net/dummy.ko*", "modules.order", "modules.builtin", "modules.builtin.modinfo"} {
			found, _ := filepath.Glob(filepath.Join(base, pattern))
			if len(found) == 0 {
				t.Fatalf("%s/%s is missing: .ci/setup test", base, pattern)
			}
			for _, path := range found {
				text, err := os.ReadFile(path)
				if err == nil {
					err = os.MkdirAll(filepath.Join(root, filepath.Dir(path)), 0o755)
				}
				if err == nil {
					err = os.WriteFile(filepath.Join(root, path), text, 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		if out, err := exec.Command("depmod", "-b", root, release).CombinedOutput(); err != nil {
			t.Fatalf("depmod: %v: %s", err, out)
		}
	}
	return root
}

// settingsOf is what is in the files that the commands write; "" for one that is not there.
func settingsOf(t testing.TB, root string) (modprobe, load string) {
	t.Helper()
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		_, text2, _ := strings.Cut(string(text), "Lines of yours stay.\n")
		if text2 == "" {
			return string(text)
		}
		return text2
	}
	return read(loader.ModprobeFile), read(loader.ModulesLoadFile)
}

// TestSettingsCommands walks through what an administrator does to a module, and looks at what is in the files after each command,
// and at what the real modprobe makes of them.
func TestSettingsCommands(t *testing.T) {
	rels := releases(t)
	root := modulesRoot(t, rels...)
	run := inRoot(t, root)
	modprobe := func(args ...string) string {
		args = append([]string{"-d", root, "-S", rels[0], "-C", filepath.Join(root, "etc/modprobe.d"), "-n", "-v"}, args...)
		out, err := exec.Command("modprobe", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("modprobe %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	const denied = "# kmodctl deny: vfat: not here\ninstall vfat /bin/false\nblacklist vfat\n"
	for _, c := range []struct {
		args           []string
		code           int
		modprobe, load string
		says           string // of either stream
	}{
		{[]string{"options", "dummy", "numdummies=3", "--dry-run"}, 0, "", "", "+options dummy numdummies=3"},
		{[]string{"options", "dummy", "numdummies=3"}, 0, "options dummy numdummies=3\n", "", "wrote " + loader.ModprobeFile},
		{[]string{"options", "dummy", "numdummies=3"}, 0, "options dummy numdummies=3\n", "", ""},
		{[]string{"options", "dummy", "numdumies=3"}, exitRefused, "options dummy numdummies=3\n", "", "numdummies (the nearest name)"},
		{[]string{"options", "dummy", "numdummies=three"}, exitRefused, "options dummy numdummies=3\n", "", `"three" is no int`},
		{[]string{"options", "dummy", "numdummies=1\ninstall fat /bin/sh"}, exitRefused, "options dummy numdummies=3\n", "", "is no int"},
		{[]string{"options", "du*", "x=1"}, exitUsage, "options dummy numdummies=3\n", "", "module name"},
		{[]string{"options", "8250", "nr_uarts=8"}, exitRefused, "options dummy numdummies=3\n", "", "built into the kernel"},
		{[]string{"deny", "vfat", "--reason", " not here ", "--dry-run"}, 0, "options dummy numdummies=3\n", "", "+blacklist vfat"},
		{[]string{"deny", "vfat"}, exitUsage, "options dummy numdummies=3\n", "", "--reason TEXT"},
		{[]string{"deny", "vfat", "--reason", "a\nb"}, exitUsage, "options dummy numdummies=3\n", "", "one line"},
		{[]string{"deny", "8250", "--reason", "x"}, exitRefused, "options dummy numdummies=3\n", "", "built into the kernel"},
		{[]string{"deny", "vfat", "--reason", "not here"}, 0, "options dummy numdummies=3\n" + denied, "", "wrote"},
		{[]string{"enable", "dummy", "dyndbg=func x +p"}, 0, "options dummy numdummies=3 dyndbg=\"func x +p\"\n" + denied, "dummy\n", "wrote " + loader.ModulesLoadFile},
		{[]string{"enable", "vfat"}, 0, "options dummy numdummies=3 dyndbg=\"func x +p\"\n" + denied, "dummy\nvfat\n", "vfat is denied at " + loader.ModprobeFile},
		{[]string{"disable", "vfat"}, 0, "options dummy numdummies=3 dyndbg=\"func x +p\"\n" + denied, "dummy\n", ""},
		{[]string{"options", "dummy", "--unset", "dyndbg"}, 0, "options dummy numdummies=3\n" + denied, "dummy\n", ""},
		{[]string{"load", "--dry-run", "vfat"}, exitRefused, "options dummy numdummies=3\n" + denied, "dummy\n", "not here"},
		{[]string{"allow", "vfat"}, 0, "options dummy numdummies=3\n", "dummy\n", ""},
		{[]string{"allow", "vfat"}, 0, "options dummy numdummies=3\n", "dummy\n", "vfat was not denied"},
		{[]string{"enable", "to-come"}, 0, "options dummy numdummies=3\n", "dummy\nto_come\n", "no kernel of this machine has a module to_come"},
		{[]string{"disable", "to_come"}, 0, "options dummy numdummies=3\n", "dummy\n", ""},
		{[]string{"disable", "dummy"}, 0, "options dummy numdummies=3\n", "", ""},
	} {
		r := run(c.code, c.args...)
		if got, load := settingsOf(t, root); got != c.modprobe || load != c.load {
			t.Errorf("%v: modprobe.d has %q, want %q; modules-load.d has %q, want %q", c.args, got, c.modprobe, load, c.load)
		}
		if !strings.Contains(r.out+r.stderr, c.says) {
			t.Errorf("%v does not say %q:\n%s%s", c.args, c.says, r.out, r.stderr)
		}
		if strings.HasPrefix(c.modprobe, "options") {
			first, _, _ := strings.Cut(strings.TrimPrefix(c.modprobe, "options dummy "), "\n")
			if got := modprobe("dummy"); !strings.HasSuffix(got, "dummy.ko "+first+" \n") {
				t.Errorf("after %v modprobe would do %q", c.args, got)
			}
			if refuses := strings.Contains(modprobe("vfat"), "install /bin/false"); refuses != strings.Contains(c.modprobe, denied) {
				t.Errorf("after %v modprobe refuses vfat: %v", c.args, refuses)
			}
		}
	}
	run(0, "options", "dummy", "--unset", "numdummies")
	if left, _ := filepath.Glob(filepath.Join(root, "etc/*/*")); len(left) > 0 {
		t.Errorf("when all is taken back, %v are left", left)
	}
}

// TestSettingsBesideOthers: what other files say is shown with its place, and told where it stands against what was asked.
func TestSettingsBesideOthers(t *testing.T) {
	release := releases(t)[0]
	root := modulesRoot(t, release)
	run := inRoot(t, root)
	for name, text := range map[string]string{
		"usr/sbin/update-initramfs":  "",
		"boot/initrd.img-" + release: initramfsWith(t, "usr/lib/modules/"+release+"/kernel/fs/fat/fat.ko"),
		"etc/modprobe.d/a.conf":      "# mine\noptions dummy numdummies=1\n",
		"lib/modprobe.d/z.conf":      "options dummy numdummies=9\ninstall vfat /bin/true\nblacklist fat\n",
		"lib/modules-load.d/x.conf":  "# x\nvfat\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var doc settingDocument
	ask := func(args ...string) []string {
		out := run(0, append(args, "--json")...).out
		checkDocumented(t, out)
		doc = settingDocument{}
		if err := json.Unmarshal([]byte(out), &doc); err != nil {
			t.Fatal(err)
		}
		return doc.Notes
	}
	notes := ask("options", "dummy", "numdummies=3")
	if want := []string{"numdummies=9 at /lib/modprobe.d/z.conf:1 comes later, and is what the module gets"}; !slices.Equal(notes, want) {
		t.Errorf("notes %q, want %q", notes, want)
	}
	want := []optionLine{{"numdummies=1", "/etc/modprobe.d/a.conf:2", true}, {"numdummies=3", loader.ModprobeFile + ":2", true}, {"numdummies=9", "/lib/modprobe.d/z.conf:1", false}}
	if diff := cmp.Diff(want, doc.Options); diff != "" {
		t.Error(diff)
	}
	ask("options", "dummy")
	if diff := cmp.Diff(want, doc.Options); diff != "" || len(doc.Files) != 0 {
		t.Errorf("%v, %s", doc.Files, diff)
	}
	if out := run(0, "options", "dummy").out; strings.Count(out, "(not used)") != 2 {
		t.Errorf("options dummy:\n%s", out)
	}
	if notes := ask("options", "dummy", "--unset", "numdummies"); len(notes) != 2 {
		t.Errorf("notes %q", notes)
	}
	if notes, want := ask("disable", "vfat"), []string{"vfat is loaded at boot by /lib/modules-load.d/x.conf:2"}; !slices.Equal(notes, want) {
		t.Errorf("notes %q, want %q", notes, want)
	}
	old := "the initramfs of " + release + " holds fat, with the settings of before: /usr/sbin/update-initramfs -u -k " + release
	if notes := ask("deny", "fat", "--reason", "x"); !slices.Equal(notes, []string{old}) {
		t.Errorf("notes %q, want %q", notes, old)
	}
	if notes := ask("allow", "fat"); len(notes) != 2 || notes[1] != old || !strings.Contains(notes[0], "blacklisted at /lib/modprobe.d/z.conf:3") {
		t.Errorf("notes %q", notes)
	}
	ask("enable", "fat")
	r := run(exitRefused, "allow", "vfat")
	if !strings.Contains(r.stderr, "denied at /lib/modprobe.d/z.conf:2 too") {
		t.Errorf("allow of what another file denies: %s", r.stderr)
	}
}

// initramfsWith is an initramfs that holds one empty file.
func initramfsWith(t *testing.T, name string) string {
	t.Helper()
	var b bytes.Buffer
	w := cpio.Newc.Writer(&b)
	if err := errors.Join(w.WriteRecord(cpio.StaticFile(name, "", 0o644)), cpio.WriteTrailer(w)); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
