package dkms

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kmodctl/internal/kernel"
)

func TestMain(m *testing.M) {
	Stage()
	os.Exit(m.Run())
}

// target is a kernel without headers.
var target = kernel.Release{Name: "6.1.0-56-amd64", Arch: "x86_64", Root: "/"}

func read(t *testing.T, text string) (Conf, error) {
	t.Helper()
	return Evaluate(t.Context(), Source{Text: []byte(text)}, target)
}

// newRoot is a root with files, by name.
func newRoot(t *testing.T, files map[string]string) kernel.Root {
	t.Helper()
	root := t.TempDir()
	for dir := root; dir != os.TempDir(); dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755)) // the child is another user
	}
	for name, text := range files {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(root, name), []byte(text), 0o644))
	}
	return kernel.Root(root)
}

func TestPlain(t *testing.T) {
	conf, err := read(t, `
PACKAGE_NAME="vendor-nic"
PACKAGE_VERSION=2.4.1
BUILT_MODULE_NAME[0]=vendor_nic
BUILT_MODULE_LOCATION[0]=src/nic/
DEST_MODULE_LOCATION[0]=/kernel/drivers/net
BUILT_MODULE_NAME[1]=vendor_diag
DEST_MODULE_NAME[1]=vendor_diagnosis
DEST_MODULE_LOCATION[1]=/extra
STRIP[1]=no
MAKE[0]="make KVER=$kernelver -C $dkms_tree/$PACKAGE_NAME/$PACKAGE_VERSION/build"
AUTOINSTALL=yes
`)
	want := Conf{
		Name: "vendor-nic", Version: "2.4.1", AutoInstall: true,
		Make: "make KVER=6.1.0-56-amd64 -C /var/lib/dkms/vendor-nic/2.4.1/build",
		Modules: []Module{
			{Name: "vendor_nic", Location: "src/nic", Dest: "vendor_nic", DestLocation: "/kernel/drivers/net", Strip: true},
			{Name: "vendor_diag", Dest: "vendor_diagnosis", DestLocation: "/extra"},
		},
	}
	if diff := cmp.Diff(want, conf); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

// TestOverrides: the administrator's files go over the conf, the more special ones last, and each sees what was before it.
func TestOverrides(t *testing.T) {
	k := target
	k.Root = newRoot(t, map[string]string{
		"etc/dkms/evil.conf":                         `MAKE="$MAKE A"; BUILT_MODULE_NAME[0]=other`,
		"etc/dkms/evil-1.conf":                       `MAKE="$MAKE B"`,
		"etc/dkms/evil-1-6.1.0-56-amd64.conf":        `MAKE="$MAKE C"`,
		"etc/dkms/evil-1-6.1.0-56-amd64-x86_64.conf": `MAKE="$MAKE D"`,
		"etc/dkms/evil--6.1.0-56-amd64.conf":         `MAKE="$MAKE E"`,
		"etc/dkms/evil--6.1.0-56-amd64-x86_64.conf":  `MAKE="$MAKE F"; unset PACKAGE_NAME`,
		"etc/dkms/evil-2.conf":                       `MAKE=wrong`,
		"etc/dkms/evil-1-6.12.117+deb12-amd64.conf":  `MAKE=wrong`,
		"etc/dkms/framework.conf":                    "# nothing\ndkms_tree=/srv/dkms\n",
		"etc/dkms/framework.conf.d/10.conf":          "dkms_tree=$dkms_tree/2; unknown=x\n",
	})
	conf, err := Evaluate(t.Context(), Source{Text: []byte(head + `MAKE="make -C $dkms_tree"`)}, k)
	if want := "make -C /srv/dkms/2 A B C D E F"; err != nil || conf.Make != want || conf.Modules[0].Name != "other" {
		t.Errorf("%v: %+v, not %q", err, conf, want)
	}
	frame, err := ReadFramework(t.Context(), k.Root, "")
	if diff := cmp.Diff(Framework{"dkms_tree": "/srv/dkms/2"}, frame); diff != "" || err != nil {
		t.Errorf("%v, %s", err, diff)
	}
	k.Root = newRoot(t, map[string]string{"etc/dkms/evil.conf": "\nDEST_MODULE_LOCATION=/opt\n"})
	if _, err := Evaluate(t.Context(), Source{Text: []byte(head)}, k); err == nil || !strings.Contains(err.Error(), "read /etc/dkms/evil.conf:2: DEST_MODULE_LOCATION[0]") {
		t.Error(err)
	}
	k.Root = newRoot(t, map[string]string{"etc/dkms/evil.conf": "\nMAKE=`touch /x`\n"})
	if _, err := Evaluate(t.Context(), Source{Text: []byte(head)}, k); err == nil || !strings.Contains(err.Error(), "read /etc/dkms/evil.conf:2: it runs touch") {
		t.Error(err)
	}
}

// TestRoot: a conf sees the kernel's tree of a root, and its own files, by the names that they have there.
func TestRoot(t *testing.T) {
	root := newRoot(t, map[string]string{
		"usr/src/linux-headers-9.9.9/.config":        "CONFIG_X86_64=y\nCONFIG_PCI=m\n# CONFIG_NET is not set\n",
		"usr/src/linux-headers-9.9.9/Makefile":       "all:\n",
		"usr/src/linux-headers-9.9.9/Module.symvers": "",
		"usr/src/linux-headers-9.9.9/scripts/x":      "",
		"lib/modules/9.9.9/modules.order":            "",
		"src/version":                                "7.1\n",
		"etc/some-release":                           "",
	})
	must(t, os.Symlink("/usr/src/linux-headers-9.9.9", filepath.Join(string(root), "lib/modules/9.9.9/build")))
	found, err := kernel.Find(root)
	must(t, err)
	if len(found) != 1 || found[0].Tree == nil {
		t.Fatalf("%+v", found)
	}
	conf, err := Evaluate(t.Context(), Source{Dir: filepath.Join(string(root), "src"), Text: []byte(head + `
. $kernel_source_dir/.config
here=$(dirname $BASH_SOURCE)
PACKAGE_VERSION=$(cat $here/version)
PRE_BUILD="$here/x $CONFIG_PCI $(sed -n '/CONFIG/p' /lib/modules/$(uname -r)/build/.config | wc -l) $(arch)"
BUILD_EXCLUSIVE_CONFIG="CONFIG_PCI !CONFIG_NET"
[ -f /etc/some-release -a ! -e /etc/passwd ] && POST_BUILD=root
`), Name: "evil", Version: "7.1"}, found[0])
	if want := "/var/lib/dkms/evil/7.1/source/x m 3 x86_64"; err != nil || conf.PreBuild != want || conf.Version != "7.1" || conf.PostBuild != "root" || conf.Excluded != "" {
		t.Errorf("%v: %+v, not %q", err, conf, want)
	}
}

func TestDirectives(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		ok   func(c Conf) bool
	}{
		"the last that matches":      {`MAKE[0]=a; MAKE[1]=b; MAKE_MATCH[1]='^6\.1\.'; MAKE[2]=c; MAKE_MATCH[2]=^5; MAKE[4]=d; MAKE_MATCH[4]=amd64$`, func(c Conf) bool { return c.Make == "d" }},
		"MAKE[0] must match too":     {`MAKE[0]=a; MAKE_MATCH[0]=^5`, func(c Conf) bool { return c.Make == "" }},
		"patches in order":           {`PATCH[3]=c; PATCH[0]=a; PATCH[1]=b; PATCH_MATCH[1]=^5; PATCH_MATCH[3]=^6`, func(c Conf) bool { return slices.Equal(c.Patches, []string{"a", "c"}) }},
		"depends":                    {`BUILD_DEPENDS[0]=a; BUILD_DEPENDS[2]="b c"; BUILD_DEPENDS_REBUILD=yes`, func(c Conf) bool { return slices.Equal(c.Depends, []string{"a", "b", "c"}) && c.DependsRebuild }},
		"the name of the package":    {`unset BUILT_MODULE_NAME`, func(c Conf) bool { return c.Modules[0].Name == "evil" && c.Modules[0].Dest == "evil" }},
		"strip of the first":         {`BUILT_MODULE_NAME[1]=b; DEST_MODULE_LOCATION[1]=/extra; STRIP[0]=No`, func(c Conf) bool { return !c.Modules[0].Strip && !c.Modules[1].Strip }},
		"no is no":                   {`AUTOINSTALL=no`, func(c Conf) bool { return !c.AutoInstall && len(c.Warnings) == 0 }},
		"another word is yes":        {`AUTOINSTALL=true`, func(c Conf) bool { return c.AutoInstall && len(c.Warnings) == 1 }},
		"another kernel":             {`BUILD_EXCLUSIVE_KERNEL=^5`, func(c Conf) bool { return strings.Contains(c.Excluded, `BUILD_EXCLUSIVE_KERNEL is "^5"`) }},
		"at least":                   {`BUILD_EXCLUSIVE_KERNEL_MIN=6.12`, func(c Conf) bool { return strings.Contains(c.Excluded, "6.12") }},
		"at least, met":              {`BUILD_EXCLUSIVE_KERNEL_MIN=5.20`, func(c Conf) bool { return c.Excluded == "" }},
		"at most":                    {`BUILD_EXCLUSIVE_KERNEL_MAX=5.20`, func(c Conf) bool { return c.Excluded != "" }},
		"obsolete":                   {`OBSOLETE_BY=5.20`, func(c Conf) bool { return c.Excluded != "" && len(c.Warnings) == 1 }},
		"another architecture":       {`BUILD_EXCLUSIVE_ARCH='i.86|aarch64'`, func(c Conf) bool { return strings.Contains(c.Excluded, "x86_64") }},
		"deprecated":                 {`CLEAN="make clean"; REMAKE_INITRD=no`, func(c Conf) bool { return len(c.Warnings) == 2 }},
		"cleaning with true is none": {`CLEAN=/bin/true`, func(c Conf) bool { return len(c.Warnings) == 0 }},
		"misspelt":                   {`BULT_MODULE_NAME=x`, func(c Conf) bool { return len(c.Warnings) == 1 && strings.Contains(c.Warnings[0], "BUILT_MODULE_NAME") }},
		"its words":                  {`echo "needs a card" >&2`, func(c Conf) bool { return slices.Equal(c.Warnings, []string{"it says: needs a card"}) }},
		// To DKMS 3.4 the first module's is everybody's: with its manual's own example it builds nothing on 6.1.
		"each module's own": {`BUILT_MODULE_NAME[1]=b; DEST_MODULE_LOCATION[1]=/extra; BUILD_EXCLUSIVE_KERNEL[0]=^5; BUILD_EXCLUSIVE_KERNEL[1]=^6`, func(c Conf) bool {
			return c.Excluded == "" && c.Modules[0].Excluded != "" && c.Modules[1].Excluded == ""
		}},
		"all modules by their own": {`BUILT_MODULE_NAME[1]=b; DEST_MODULE_LOCATION[1]=/extra; BUILD_EXCLUSIVE_KERNEL[0]=^5; BUILD_EXCLUSIVE_KERNEL[1]=^4`, func(c Conf) bool { return c.Excluded != "" }},
		"without an index all":     {`BUILT_MODULE_NAME[1]=b; DEST_MODULE_LOCATION[1]=/extra; BUILD_EXCLUSIVE_KERNEL=^5; BUILD_EXCLUSIVE_KERNEL[1]=^6`, func(c Conf) bool { return c.Excluded != "" }},
	} {
		if conf, err := read(t, head+c.text); err != nil || !c.ok(conf) {
			t.Errorf("%s: %v, %+v", name, err, conf)
		}
	}
}

// TestFaults: what cannot be is an error with its line, which says what to write instead.
func TestFaults(t *testing.T) {
	for text, want := range map[string]string{
		"":                              "read dkms.conf: PACKAGE_NAME is not set: add PACKAGE_NAME=...",
		"PACKAGE_NAME=x":                "read dkms.conf: PACKAGE_VERSION is not set: add",
		head + "PACKAGE_NAME='a b'":     `read dkms.conf:5: PACKAGE_NAME is "a b"`,
		head + "\nif [ a; then":         "read dkms.conf:6: ",
		head + "BUILT_MODULE_NAME=x.ko": `read dkms.conf:5: BUILT_MODULE_NAME[0] is "x.ko": the name goes without .ko`,
		head + "BUILT_MODULE_NAME[1]=evil; DEST_MODULE_LOCATION[1]=/extra":                        "names evil a second time",
		head + "BUILT_MODULE_NAME[1]=b; DEST_MODULE_NAME[1]=evil; DEST_MODULE_LOCATION[1]=/extra": "is installed as evil",
		head + "BUILT_MODULE_NAME[1]=b":                                                           "DEST_MODULE_LOCATION[1] is not set",
		head + "DEST_MODULE_LOCATION=/opt":                                                        `"/opt": it begins with /kernel, /updates or /extra`,
		head + "DEST_MODULE_LOCATION=/updates/../../etc":                                          "it begins with",
		head + "MAKE=a; MAKE_MATCH='(5'":                                                          `MAKE_MATCH[0] is "(5"`,
		head + "MAKE='make A=\"b c\"'":                                                            "the second time MAKE[0] does not hold together",
	} {
		if _, err := read(t, text); err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), "/var/lib/dkms/evil/1/source/", ""), want) {
			t.Errorf("%q: %v, not %q", text, err, want)
		}
	}
}
