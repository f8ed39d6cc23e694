package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kmodctl/internal/ko"
)

// A point release: the headers of a kernel under another name, as a distribution's next upload has them when nothing changed
// that modules see. Then, one by one, something does.
func TestReuse(t *testing.T) {
	old := releases(t)[0]
	root := newRoot(t, old)
	twin := strings.Replace(old, "-", "-9", 1) // 6.1.0-56-amd64 is followed by 6.1.0-956-amd64
	pointRelease(t, root, old, twin)
	dir := t.TempDir()
	manifest := write(t, dir, "kmod.toml", "name = \"reused\"\nversion = \"1\"\n")
	write(t, dir, "Kbuild", "obj-m := reused.o\n")
	write(t, dir, "reused.c", `#include <linux/module.h>
#include <linux/netdevice.h>
static int __init reused_init(void)
{
	struct net_device *dev = dev_get_by_name(&init_net, "lo");

	if (dev)
		dev_put(dev);
	return 0;
}
static void __exit reused_exit(void) { }
module_init(reused_init);
module_exit(reused_exit);
MODULE_LICENSE("GPL");
`)
	km := inRoot(t, root)
	plan := func() string { t.Helper(); return km(0, "build", "reused", "-k", twin, "--dry-run").out }
	km(0, "build", dir, "-k", old)
	if text := plan(); strings.Contains(text, "reuse ") || strings.Contains(text, "not reused") {
		t.Errorf("nobody has asked for a reuse: %s", text)
	}

	etc := filepath.Join(root, "etc/kmodctl")
	if err := os.Mkdir(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, etc, "config.toml", "[build]\nreuse = true\n")
	says(t, plan(), "reuse reused 1 for "+twin+": not built yet, and the build for "+old+" fits")
	for _, c := range []struct {
		what, file string // of the twin
		change     func(text string) string
		why        string
	}{
		{"a CRC", "Module.symvers", func(s string) string {
			before, line, _ := strings.Cut(s, "\tdev_get_by_name\t")
			return before[:len(before)-8] + "12345678\tdev_get_by_name\t" + line
		}, "the CRC of dev_get_by_name differs"},
		{"an export", "Module.symvers", func(s string) string {
			return strings.Replace(s, "\tdev_get_by_name\tvmlinux\tEXPORT_SYMBOL", "\tdev_get_by_name\tvmlinux\tEXPORT_SYMBOL_GPL", 1)
		}, "it exports dev_get_by_name otherwise"},
		{"a symbol", "Module.symvers", func(s string) string { return strings.Replace(s, "\tdev_get_by_name\t", "\tdev_got\t", 1) }, "it does not export dev_get_by_name"},
		{"the configuration", ".config", func(s string) string { return strings.Replace(s, "\nCONFIG_NET=y\n", "\n", 1) }, "CONFIG_NET differs"},
	} {
		path := filepath.Join(root, "usr/src/linux-headers-"+twin, c.file)
		was := rewrite(t, path, c.change)
		says(t, plan(), "build reused 1 for "+twin+": not built yet; not reused: the build for "+old+": "+c.why)
		rewrite(t, path, func(string) string { return was })
	}

	// Types that no CRC stands for: the image of another series has other ones.
	image := filepath.Join(root, "boot/vmlinuz-"+twin)
	replace(t, "/boot/vmlinuz-"+releases(t)[1], image)
	says(t, plan(), "not reused: the build for "+old+": the layout of struct module differs")
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	says(t, plan(), "types cannot be compared: no vmlinuz with BTF is here for "+twin)
	replace(t, "/boot/vmlinuz-"+old, image)

	// What must not fail is always built.
	write(t, dir, "kmod.toml", "required = true\n"+manifest)
	km(0, "build", dir, "-k", old)
	says(t, plan(), "not reused: the package is required, and so always built")
	write(t, dir, "kmod.toml", manifest)
	km(0, "build", dir, "-k", old)

	says(t, km(0, "build", "reused", "-k", twin).stderr, "reused reused 1 for "+twin+": the build for "+old+" fits", "installed reused 1 for "+twin, "1 of 1 build reused")
	info, err := ko.Open(filepath.Join(root, "lib/modules", twin, "updates/kmodctl/reused.ko"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Release() != old {
		t.Errorf("what is installed was built for %s", info.Release())
	}
	says(t, km(0, "build", "-k", twin).stderr, "nothing to do")
	says(t, km(0, "history", "reused", "-k", twin).out, "reuse")
	says(t, km(0, "verify", "--rebuild", "reused", "-k", twin).out, "not compared: reused 1 for "+twin+": it reuses the build for "+old)
	km(0, "verify")

	// Who no longer wants it gets a build.
	write(t, etc, "config.toml", "[build]\nreuse = true\n\n[package.reused]\nreuse = false\n")
	says(t, km(0, "build", "reused", "-k", twin).stderr, "built reused 1 for "+twin, "installed reused 1 for "+twin)
	says(t, km(0, "build", "-k", twin).stderr, "nothing to do")

	write(t, etc, "config.toml", "[build]\nresue = true\n")
	says(t, km(exitFailed, "build").stderr, `read /etc/kmodctl/config.toml:2:1: unknown key "build.resue"`)
}

// pointRelease gives a root another kernel that has all that an old one has.
func pointRelease(t *testing.T, root, old, release string) {
	t.Helper()
	copyTree(t, filepath.Join(root, "usr/src/linux-headers-"+old), filepath.Join(root, "usr/src/linux-headers-"+release))
	copyTree(t, filepath.Join(root, "lib/modules", old), filepath.Join(root, "lib/modules", release))
	replace(t, "/boot/vmlinuz-"+old, filepath.Join(root, "boot/vmlinuz-"+release))
	rewrite(t, filepath.Join(root, "usr/src/linux-headers-"+release, "include/generated/utsrelease.h"), func(s string) string {
		return strings.ReplaceAll(s, old, release)
	})
	link := filepath.Join(root, "lib/modules", release, "build")
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr/src/linux-headers-"+release, link); err != nil {
		t.Fatal(err)
	}
}

// copyTree copies a folder whose files may be links to this machine's.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}

func replace(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "--remove-destination", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}

// rewrite changes a file of a copy, and returns what it said before.
func rewrite(t *testing.T, path string, change func(string) string) (was string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	now := change(string(text))
	if now == string(text) {
		t.Fatalf("%s does not have what is to be changed", path)
	}
	if err := os.WriteFile(path, []byte(now), 0o644); err != nil {
		t.Fatal(err)
	}
	return string(text)
}
