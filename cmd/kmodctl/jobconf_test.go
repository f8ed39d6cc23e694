package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"kmodctl/build"
	"kmodctl/internal/dkms"
	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/registry"
)

// oddConf is a dkms.conf with shell logic. Its source builds in /usr/src and moves what it made, as west-chamber's.
const oddConf = `PACKAGE_NAME=odd
PACKAGE_VERSION="1.0~2+git"
AUTOINSTALL=yes
. $kernel_source_dir/.config
PRE_BUILD="configure ${CONFIG_HZ}"
MAKE="make -C $kernel_source_dir M=/usr/src/odd-1.0~2+git && mv /usr/src/odd-1.0~2+git/*.ko $dkms_tree/odd/$PACKAGE_VERSION/build"
for i in 0 1; do
	BUILT_MODULE_NAME[$i]=odd$i
	DEST_MODULE_LOCATION[$i]=/kernel/drivers/misc
done
DEST_MODULE_NAME[1]=odd-new
`

const oddSource = `#include <linux/module.h>
static int __init odd_init(void) { return 0; }
module_init(odd_init);
MODULE_LICENSE("GPL");
`

// A folder that has a dkms.conf alone is added, built for each kernel as it says, and installed in DKMS's place; what it
// says is asked for once, and again when what it depends on has changed.
func TestConf(t *testing.T) {
	rels := releases(t)
	root, dir := newRoot(t, rels...), t.TempDir()
	if err := os.Chmod(filepath.Dir(root), 0o755); err != nil { // the build user evaluates
		t.Fatal(err)
	}
	write(t, dir, "dkms.conf", oddConf)
	write(t, dir, "configure", "#!/bin/sh\ntest \"$1\" = 250\n")
	write(t, dir, "Kbuild", "obj-m := odd0.o odd1.o\n")
	write(t, dir, "odd0.c", oddSource)
	write(t, dir, "odd1.c", oddSource)
	if err := os.Symlink("../../share/doc/odd/README", filepath.Join(dir, "README")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "configure"), 0o755); err != nil {
		t.Fatal(err)
	}
	km := inRoot(t, root)
	says(t, km(0, "add", dir).stderr, "added odd 1.0~2+git from ")
	km(0, "build")
	for _, rel := range rels {
		for _, name := range []string{"odd0", "odd-new"} {
			found, _ := filepath.Glob(filepath.Join(root, "lib/modules", rel, "updates/dkms", name+".ko*")) // compressed as the kernel's own
			if len(found) != 1 {
				t.Fatalf("%s for %s: %v", name, rel, found)
			}
			if info, err := ko.Open(found[0]); err != nil || info.Release() != rel {
				t.Errorf("%s for %s: %+v, %v", name, rel, info, err)
			}
		}
	}
	says(t, km(0, "status").out, "installed", "odd0,odd_new")
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	learn(t, path, root) // the headers are as new as the root
	nothingToDo(t, root, len(series))
	says(t, km(0, "verify", "--rebuild", "odd").out, "identical: odd 1.0~2+git for "+rels[0])

	// It travels like any other.
	tar := filepath.Join(t.TempDir(), "odd.tar")
	km(0, "export", "odd", "-o", tar)
	km(0, "remove", "odd")
	if left, _ := filepath.Glob(root + "/lib/modules/*/updates"); len(left) > 0 {
		t.Errorf("remove left %v", left)
	}
	km(0, "import", tar)
	km(0, "install", "odd")
	says(t, km(0, "status").out, "installed", "odd0,odd_new")

	// The administrator's word goes over the package's, for one kernel.
	admin := filepath.Join(root, "etc/dkms")
	if err := os.Mkdir(admin, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, admin, "odd--"+rels[0]+".conf", "PRE_BUILD=\n")
	says(t, km(0, "build", "--dry-run").out, "build odd 1.0~2+git for "+rels[0]+": manifest changed")
	if out := km(0, "build", "--dry-run").out; strings.Contains(out, rels[1]) {
		t.Errorf("for another kernel too:\n%s", out)
	}
	km(0, "build")
	nothingToDo(t, root, len(series))
	for text, want := range map[string]string{
		"BUILD_EXCLUSIVE_ARCH=sparc": "BUILD_EXCLUSIVE_ARCH is ",
		"AUTOINSTALL=":               "its dkms.conf has no AUTOINSTALL: kmodctl build odd",
	} {
		write(t, admin, "odd--"+rels[0]+".conf", text+"\n")
		says(t, km(0, "build", "-v").stderr, "skipped odd 1.0~2+git for "+rels[0]+": "+want)
	}
	write(t, admin, "odd--"+rels[0]+".conf", "BUILT_MODULE_NAME[0]=../odd\n")
	says(t, km(exitFailed, "build").stderr, "build odd for "+rels[0]+": read ", "../odd")
}

// A dkms.conf that says the same for two kernels but for their names makes the same input: a build may then be reused.
func TestConfToManifest(t *testing.T) {
	of := func(release string) *build.Manifest {
		c := dkms.Conf{Make: "make KVER=" + release, PreBuild: "configure " + release, Modules: []dkms.Module{{Name: "a", Dest: "a", DestLocation: "/extra"}}}
		return confToManifest(registry.Source{Name: "a", Version: "1"}, c, kernel.Release{Name: release}, placesIn("/"))
	}
	if a, b := of("6.1.0-1-amd64"), of("6.1.0-2-amd64"); !reflect.DeepEqual(a, b) {
		t.Errorf("%+v, %+v", a.DKMS, b.DKMS)
	}
}

// What a Makefile builds for another kernel than it is told is not taken.
func TestConfForAnotherKernel(t *testing.T) {
	rels := releases(t)
	root, dir := newRoot(t, rels...), t.TempDir()
	write(t, dir, "dkms.conf", "PACKAGE_NAME=hello\nPACKAGE_VERSION=1\nDEST_MODULE_LOCATION=/updates\nMAKE='make -C /usr/src/linux-headers-"+rels[0]+" M=$dkms_tree/hello/1/build'\n")
	write(t, dir, "Kbuild", "obj-m := hello.o\n")
	write(t, dir, "hello.c", oddSource)
	r := kmodctl(t, "--root", root, "build", dir, "-k", rels[1])
	if r.code != exitBuild {
		t.Errorf("exit %d", r.code)
	}
	says(t, r.stderr, "hello.ko was built for "+rels[0])
}

// TestConfWarnings is a dkms.conf with directives that do not mean what its author thinks: it is said when the source is
// added, once, and not to a package manager.
func TestConfWarnings(t *testing.T) {
	rel := releases(t)[0]
	root := newRoot(t, rel)
	const clean, near = "note: dkms.conf of one 1.0: CLEAN has no effect any more", "AUTOINSTAL in line "
	dir := dkmsSource(t, root, "one", "1.0", `CLEAN="make clean"`, `AUTOINSTAL=yes`)
	says(t, must(t, "--root", root, "build", dir, "-k", rel).stderr, clean, near)
	for _, args := range [][]string{{"add", dir}, {"build", dir}, {"build", "one"}, {"hook", "add", rel}, {"install", "one"}} {
		if r := must(t, append([]string{"--root", root}, args...)...); strings.Contains(r.stderr, "note:") {
			t.Errorf("%v says again:\n%s", args, r.stderr)
		}
	}
	must(t, "--root", root, "remove", "one")
	if r := must(t, "--root", root, "package-hook", "postinst", "one", "1.0", "configure"); strings.Contains(r.stderr, "CLEAN") {
		t.Errorf("a hook says\n%s", r.stderr)
	}
	must(t, "--root", root, "remove", "one")
	says(t, dkmsRuns(t, root, 0, "add", "one/1.0").stderr, clean, near)
}
