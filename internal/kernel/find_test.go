package kernel

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
)

const (
	debian   = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n"
	ubuntu   = "ID=ubuntu\nID_LIKE=debian\n"
	rocky    = "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"
	fedora   = "ID=fedora\nVARIANT_ID=server\n"
	arch     = "ID=arch\n"
	opensuse = "ID='opensuse-leap'\nID_LIKE='suse opensuse'\n"
	alpine   = "ID=alpine\n"
)

const x86Config = "CONFIG_CC_VERSION_TEXT=\"gcc (GCC) 14.2.1\"\nCONFIG_X86_64=y\nCONFIG_NET=y\n"

// tree is the files of a build tree that can be used.
func tree(folder string) map[string]string {
	return map[string]string{
		folder + "/Makefile":       "",
		folder + "/scripts/":       "",
		folder + "/.config":        x86Config,
		folder + "/Module.symvers": "0x00000000\tprintk\tvmlinux\tEXPORT_SYMBOL\t\n",
	}
}

func join(parts ...map[string]string) map[string]string {
	all := map[string]string{}
	for _, part := range parts {
		maps.Copy(all, part)
	}
	return all
}

func built(path string) *Tree { return &Tree{Path: path, CC: "gcc (GCC) 14.2.1"} }

// The layouts of the distributions as their packages bring them.
func TestFind(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  []Release
	}{
		"Debian": {join(tree("usr/src/linux-headers-6.1.0-56-amd64"), tree("usr/src/linux-headers-6.1.0-9-amd64"), map[string]string{
			"etc/os-release":                                 debian,
			"lib":                                            "-> usr/lib",
			"usr/lib/modules/6.1.0-56-amd64/build":           "-> /usr/src/linux-headers-6.1.0-56-amd64",
			"usr/lib/modules/6.1.0-9-amd64/build":            "-> /usr/src/linux-headers-6.1.0-9-amd64",
			"usr/lib/modules/6.12.117+deb12-amd64/":          "",
			"usr/lib/modules/README":                         "",
			"usr/src/linux-headers-6.1.0-56-common/Makefile": "",
			"boot/vmlinuz-6.1.0-56-amd64":                    "",
			"boot/vmlinuz-6.12.117+deb12-amd64":              "",
		}), []Release{
			{Name: "6.1.0-9-amd64", Arch: "x86_64", Modules: "/lib/modules/6.1.0-9-amd64", Tree: built("/usr/src/linux-headers-6.1.0-9-amd64")},
			{Name: "6.1.0-56-amd64", Arch: "x86_64", Modules: "/lib/modules/6.1.0-56-amd64", Image: "/boot/vmlinuz-6.1.0-56-amd64", Tree: built("/usr/src/linux-headers-6.1.0-56-amd64")},
			{Name: "6.12.117+deb12-amd64", Modules: "/lib/modules/6.12.117+deb12-amd64", Image: "/boot/vmlinuz-6.12.117+deb12-amd64", Missing: []Missing{
				{"headers for 6.12.117+deb12-amd64 are not installed", "apt install linux-headers-6.12.117+deb12-amd64", ""}}},
		}},
		"Ubuntu, headers without a kernel": {join(tree("usr/src/linux-headers-6.8.0-31-generic"), map[string]string{
			"etc/os-release": ubuntu,
			"usr/src/linux-headers-6.8.0-31/Makefile": "",
			"lib/modules/6.8.0-40-generic/build":      "-> /usr/src/linux-headers-6.8.0-40-generic",
		}), []Release{
			{Name: "6.8.0-31-generic", Arch: "x86_64", Tree: built("/usr/src/linux-headers-6.8.0-31-generic")},
			{Name: "6.8.0-40-generic", Modules: "/lib/modules/6.8.0-40-generic", Missing: []Missing{
				{"headers for 6.8.0-40-generic are not installed (/lib/modules/6.8.0-40-generic/build leads to /usr/src/linux-headers-6.8.0-40-generic, which cannot be opened)", "apt install linux-headers-6.8.0-40-generic", ""}}},
		}},
		"Fedora": {join(tree("usr/src/kernels/6.8.9-300.fc40.x86_64"), map[string]string{
			"usr/lib/os-release": fedora,
			"lib":                "-> usr/lib",
			"usr/lib/modules/6.8.9-300.fc40.x86_64/build":    "-> /usr/src/kernels/6.8.9-300.fc40.x86_64",
			"usr/lib/modules/6.8.9-300.fc40.x86_64/vmlinuz":  "",
			"usr/lib/modules/6.8.10-300.fc40.x86_64/vmlinuz": "",
		}), []Release{
			{Name: "6.8.9-300.fc40.x86_64", Arch: "x86_64", Modules: "/lib/modules/6.8.9-300.fc40.x86_64", Image: "/lib/modules/6.8.9-300.fc40.x86_64/vmlinuz", Tree: built("/usr/src/kernels/6.8.9-300.fc40.x86_64")},
			{Name: "6.8.10-300.fc40.x86_64", Modules: "/lib/modules/6.8.10-300.fc40.x86_64", Image: "/lib/modules/6.8.10-300.fc40.x86_64/vmlinuz", Missing: []Missing{
				{"headers for 6.8.10-300.fc40.x86_64 are not installed", "dnf install kernel-devel-6.8.10-300.fc40.x86_64", ""}}},
		}},
		"RHEL, headers without a kernel": {join(tree("usr/src/kernels/4.18.0-553.8.1.el8_10.x86_64"), tree("usr/src/kernels/4.18.0-553.el8_10.x86_64"), map[string]string{
			"etc/os-release": rocky,
		}), []Release{
			{Name: "4.18.0-553.el8_10.x86_64", Arch: "x86_64", Tree: built("/usr/src/kernels/4.18.0-553.el8_10.x86_64")},
			{Name: "4.18.0-553.8.1.el8_10.x86_64", Arch: "x86_64", Tree: built("/usr/src/kernels/4.18.0-553.8.1.el8_10.x86_64")},
		}},
		"Arch": {join(tree("usr/lib/modules/6.12.1-arch1-1/build"), map[string]string{
			"etc/os-release":                         arch,
			"lib":                                    "-> usr/lib",
			"usr/lib/modules/6.12.1-arch1-1/vmlinuz": "",
			"usr/lib/modules/6.6.63-1-lts/vmlinuz":   "",
			"usr/lib/modules/extramodules-6.12/":     "",
		}), []Release{
			{Name: "6.6.63-1-lts", Modules: "/lib/modules/6.6.63-1-lts", Image: "/lib/modules/6.6.63-1-lts/vmlinuz", Missing: []Missing{
				{"headers for 6.6.63-1-lts are not installed", "pacman -S linux-lts-headers", ""}}},
			{Name: "6.12.1-arch1-1", Arch: "x86_64", Modules: "/lib/modules/6.12.1-arch1-1", Image: "/lib/modules/6.12.1-arch1-1/vmlinuz", Tree: built("/usr/lib/modules/6.12.1-arch1-1/build")},
		}},
		"openSUSE": {join(tree("usr/src/linux-6.4.0-150600.23.7-obj/x86_64/default"), tree("usr/src/linux-6.4.0-150600.23.7-obj/x86_64/64kb"), map[string]string{
			"etc/os-release": opensuse,
			"usr/lib/modules/6.4.0-150600.23.7-default/build":   "-> /usr/src/linux-6.4.0-150600.23.7-obj/x86_64/default",
			"usr/lib/modules/6.4.0-150600.23.7-default/vmlinuz": "",
			"usr/lib/modules/6.4.0-150600.21-default/":          "",
			"usr/src/linux-6.4.0-150600.23.7/Makefile":          "",
			"usr/src/linux-obj":                                 "-> linux-6.4.0-150600.23.7-obj",
		}), []Release{
			{Name: "6.4.0-150600.21-default", Modules: "/usr/lib/modules/6.4.0-150600.21-default", Missing: []Missing{
				{"headers for 6.4.0-150600.21-default are not installed", "zypper install kernel-default-devel=6.4.0-150600.21", ""}}},
			{Name: "6.4.0-150600.23.7-default", Arch: "x86_64", Modules: "/usr/lib/modules/6.4.0-150600.23.7-default", Image: "/usr/lib/modules/6.4.0-150600.23.7-default/vmlinuz", Tree: built("/usr/src/linux-6.4.0-150600.23.7-obj/x86_64/default")},
			{Name: "6.4.0-150600.23.7-64kb", Arch: "x86_64", Tree: built("/usr/src/linux-6.4.0-150600.23.7-obj/x86_64/64kb")},
		}},
		"Alpine": {join(tree("usr/src/linux-headers-6.6.31-0-lts"), map[string]string{
			"etc/os-release":                    alpine,
			"lib/modules/6.6.31-0-lts/build":    "-> /usr/src/linux-headers-6.6.31-0-lts",
			"lib/modules/6.6.31-0-virt/kernel/": "",
		}), []Release{
			{Name: "6.6.31-0-lts", Arch: "x86_64", Modules: "/lib/modules/6.6.31-0-lts", Tree: built("/usr/src/linux-headers-6.6.31-0-lts")},
			{Name: "6.6.31-0-virt", Modules: "/lib/modules/6.6.31-0-virt", Missing: []Missing{
				{"headers for 6.6.31-0-virt are not installed", "apk add linux-virt-dev", ""}}},
		}},
		"a stranger": {map[string]string{
			"lib/modules/6.6.0/": "",
			"etc/os-release":     "ID=nobody\n",
		}, []Release{
			{Name: "6.6.0", Modules: "/lib/modules/6.6.0", Missing: []Missing{{What: "headers for 6.6.0 are not installed"}}},
		}},
		"nothing": {nil, []Release{}},
	} {
		t.Run(name, func(t *testing.T) {
			root := plant(t, c.files)
			got, err := Find(root)
			if err != nil {
				t.Fatal(err)
			}
			onlyNames := cmpopts.IgnoreFields(Tree{}, "Host", "Config", "ConfigFile", "Symvers")
			for i := range c.want {
				c.want[i].Root = root
			}
			if diff := cmp.Diff(c.want, got, onlyNames); diff != "" {
				t.Errorf("kernels (-want +got):\n%s", diff)
			}
			for _, want := range got {
				one, err := Get(root, want.Name)
				if diff := cmp.Diff(want, one, onlyNames); diff != "" || err != nil {
					t.Errorf("Get differs from Find: %v\n%s", err, diff)
				}
				if want.Tree == nil {
					continue
				}
				if host := filepath.Join(string(root), want.Tree.Path); want.Tree.Host != host || want.Tree.Symvers != host+"/Module.symvers" || !strings.HasPrefix(want.Tree.ConfigFile, host+"/") {
					t.Errorf("tree %s, %s and %s do not lie in %s", want.Tree.Host, want.Tree.Symvers, want.Tree.ConfigFile, host)
				}
				if net, err := want.Tree.Config.Has("NET"); !net || err != nil {
					t.Errorf("the configuration of %s is not there", want.Name)
				}
			}
		})
	}
}

// What is wrong with a tree is said by name, with the command that mends it.
func TestFindDamagedTree(t *testing.T) {
	const release, folder = "6.1.0-56-amd64", "usr/src/linux-headers-6.1.0-56-amd64"
	const again = "apt install --reinstall linux-headers-6.1.0-56-amd64"
	link := map[string]string{"etc/os-release": debian, "lib/modules/" + release + "/build": "-> /" + folder}
	without := func(names ...string) map[string]string {
		files := join(tree(folder), link)
		for _, name := range names {
			delete(files, folder+"/"+name)
		}
		return files
	}
	for name, c := range map[string]struct {
		files map[string]string
		want  []Missing
	}{
		"no Module.symvers": {without("Module.symvers"), []Missing{
			{"build tree /" + folder + " has no Module.symvers, the list of the kernel's symbols", again, ""}}},
		"no .config": {without(".config"), []Missing{
			{"build tree /" + folder + " has no .config", again, ""}}},
		"no Makefile": {without("Makefile"), []Missing{
			{"build tree /" + folder + " has no Makefile", again, ""}}},
		"only a Makefile": {without(".config", "Module.symvers"), []Missing{
			{"build tree /" + folder + " has no .config", again, ""},
			{"build tree /" + folder + " has no Module.symvers, the list of the kernel's symbols", again, ""}}},
		"an empty .config": {join(without(), map[string]string{folder + "/.config": ""}), []Missing{
			{"build tree /" + folder + " has a damaged .config: no CONFIG_ line", again, ""}}},
		"another kernel's tree": {join(without(), map[string]string{folder + "/include/generated/utsrelease.h": "#define UTS_RELEASE \"6.1.0-57-amd64\"\n"}), []Missing{
			{"build tree /" + folder + " is for kernel 6.1.0-57-amd64", again, ""}}},
		"a broken link": {link, []Missing{
			{"headers for " + release + " are not installed (/lib/modules/" + release + "/build leads to /" + folder + ", which cannot be opened)", "apt install linux-headers-" + release, ""}}},
		"a link to itself": {join(link, map[string]string{"lib/modules/" + release + "/build": "-> build"}), []Missing{
			{"headers for " + release + " are not installed (/lib/modules/" + release + "/build leads to build, which cannot be opened)", "apt install linux-headers-" + release, ""}}},
		"scripts in a package that is not there": {join(without("scripts/"), map[string]string{folder + "/scripts": "-> ../../lib/linux-kbuild-6.1/scripts"}), []Missing{
			{"headers for " + release + " are incomplete: /usr/lib/linux-kbuild-6.1/scripts does not exist", "apt install linux-kbuild-6.1", "linux-kbuild-6.1"}}},
		"scripts elsewhere": {join(without("scripts/"), map[string]string{folder + "/scripts": "-> /opt/gone"}), []Missing{
			{"headers for " + release + " are incomplete: /opt/gone does not exist", again, ""}}},
		"scripts of this machine": {join(without("scripts/"), map[string]string{folder + "/scripts": "-> /proc/self"}), []Missing{
			{"headers for " + release + " are incomplete: /proc/self does not exist", again, ""}}},
		"no scripts": {without("scripts/"), []Missing{
			{"headers for " + release + " are incomplete: /" + folder + "/scripts does not exist", again, ""}}},
		"a Makefile that includes one of a package that is not there": {join(without(), map[string]string{folder + "/Makefile": "include /usr/src/linux-headers-6.1.0-56-common/Makefile\n"}), []Missing{
			{"headers for " + release + " are incomplete: /usr/src/linux-headers-6.1.0-56-common/Makefile does not exist", "apt install linux-headers-6.1.0-56-common", "linux-headers-6.1.0-56-common"}}},
		"a Makefile in a package that is not there": {join(without("Makefile"), map[string]string{folder + "/Makefile": "-> ../linux-headers-6.1.0-56/Makefile"}), []Missing{
			{"headers for " + release + " are incomplete: /usr/src/linux-headers-6.1.0-56/Makefile does not exist", "apt install linux-headers-6.1.0-56", "linux-headers-6.1.0-56"}}},
		"an own tree": {map[string]string{"etc/os-release": debian, "home/u/linux/scripts/": "", "home/u/linux/Makefile": "", "home/u/linux/.config": x86Config, "lib/modules/" + release + "/build": "-> /home/u/linux"}, []Missing{
			{"build tree /home/u/linux has no Module.symvers, the list of the kernel's symbols", "", ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := Get(plant(t, c.files), release)
			if err != nil {
				t.Fatal(err)
			}
			if r.Tree != nil {
				t.Errorf("the tree %s is taken for usable", r.Tree.Path)
			}
			if diff := cmp.Diff(c.want, r.Missing); diff != "" {
				t.Errorf("missing (-want +got):\n%s", diff)
			}
		})
	}
}

// A tree in no known place says itself for which kernel it is.
func TestAt(t *testing.T) {
	const folder = "home/u/linux"
	release := map[string]string{folder + "/include/generated/utsrelease.h": "#define UTS_RELEASE \"6.1.0-own\"\n"}
	k, err := At(plant(t, join(tree(folder), release)), "/"+folder)
	if err != nil || k.Name != "6.1.0-own" || k.Arch != "x86_64" || k.Tree == nil || k.Tree.Path != "/"+folder {
		t.Errorf("an own tree: %+v, %v", k, err)
	}
	for name, files := range map[string]map[string]string{"never built": tree(folder), "not there": nil} {
		if k, err := At(plant(t, files), "/"+folder); err == nil {
			t.Errorf("%s: %+v", name, k)
		}
	}
	files := join(tree(folder), release)
	delete(files, folder+"/Module.symvers")
	if k, err := At(plant(t, files), "/"+folder); err != nil || k.Tree != nil || len(k.Missing) != 1 {
		t.Errorf("no Module.symvers: %+v, %v", k, err)
	}
}

// A tree that can be used counts, wherever it lies.
func TestFindTakesTheTreeThatWorks(t *testing.T) {
	const release, folder = "6.1.0-56-amd64", "usr/src/linux-headers-6.1.0-56-amd64"
	for name, files := range map[string]map[string]string{
		"no link":             {"lib/modules/" + release + "/": ""},
		"a broken link":       {"lib/modules/" + release + "/build": "-> /gone"},
		"a link to less":      {"lib/modules/" + release + "/build": "-> /home/u", "home/u/Makefile": ""},
		"a good link":         {"lib/modules/" + release + "/build": "-> /" + folder},
		"this kernel's name":  {folder + "/include/generated/utsrelease.h": "#define UTS_RELEASE \"" + release + "\"\n"},
		"no modules folder":   nil,
		"only in /usr/lib":    {"usr/lib/modules/" + release + "/build": "-> ../../../src/linux-headers-" + release},
		"links out of a root": {"lib/modules/" + release + "/build": "-> ../../../../../../../../../" + folder},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := Get(plant(t, join(tree(folder), files)), release)
			if err != nil {
				t.Fatal(err)
			}
			if r.Tree == nil || r.Tree.Path != "/"+folder || r.Missing != nil {
				t.Errorf("tree %+v, missing %v", r.Tree, r.Missing)
			}
		})
	}
}

// Before Kconfig's .config some packages ship only what kbuild reads.
func TestFindConfigOfAutoConf(t *testing.T) {
	files := tree("lib/modules/6.6.0/build")
	files["lib/modules/6.6.0/build/include/config/auto.conf"] = files["lib/modules/6.6.0/build/.config"]
	delete(files, "lib/modules/6.6.0/build/.config")
	r, err := Get(plant(t, files), "6.6.0")
	if err != nil || r.Tree == nil {
		t.Fatalf("release %+v, %v", r, err)
	}
	if net, err := r.Tree.Config.Has("NET"); !net || err != nil {
		t.Errorf("CONFIG_NET: %v, %v", net, err)
	}
}

func TestGetNotFound(t *testing.T) {
	root := plant(t, map[string]string{
		"lib/modules/6.1.0-56-amd64/":       "",
		"lib/modules/6.1.0-9-amd64/":        "",
		"lib/modules/6.12.117+deb12-amd64/": "",
	})
	all := []string{"6.1.0-9-amd64", "6.1.0-56-amd64", "6.12.117+deb12-amd64"}
	for name, near := range map[string][]string{
		"6.1":                   all[:2],
		"6.1.0-57-amd64":        all[:2],
		"6.12.116-amd64":        all[2:],
		"5.10.0-28-amd64":       all,
		"":                      all,
		"..":                    all,
		"../modules/6.1":        all,
		"6.1.0-9-amd64/../":     all[:2],
		"6.1.0-9-amd64/../../.": all[:2],
	} {
		_, err := Get(root, name)
		var missing *NotFoundError
		if !errors.As(err, &missing) {
			t.Errorf("Get(%q): error %v, want a NotFoundError", name, err)
			continue
		}
		if diff := cmp.Diff(&NotFoundError{name, near}, missing); diff != "" {
			t.Errorf("Get(%q) (-want +got):\n%s", name, diff)
		}
		if !strings.Contains(err.Error(), name) {
			t.Errorf("Get(%q): error %q does not name it", name, err)
		}
	}
}

func TestFindWithoutRoot(t *testing.T) {
	root := plant(t, map[string]string{"file": ""})
	for _, r := range []Root{root + "/absent", root + "/file"} {
		if _, err := Find(r); err == nil || !strings.Contains(err.Error(), string(r)) {
			t.Errorf("Find: error %v does not name %s", err, r)
		}
		if _, err := Get(r, "6.1.0"); err == nil || !strings.Contains(err.Error(), string(r)) {
			t.Errorf("Get: error %v does not name %s", err, r)
		}
	}
	if _, err := Find(root + "/absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v is not fs.ErrNotExist", err)
	}
}

// A folder that cannot be listed must not read as "no kernels here".
func TestFindUnreadable(t *testing.T) {
	root := plant(t, map[string]string{"lib/modules": "-> modules"})
	if _, err := Find(root); err == nil || !strings.Contains(err.Error(), filepath.Join(string(root), "lib/modules")) {
		t.Errorf("error %v does not name lib/modules", err)
	}
}

func TestRemedy(t *testing.T) {
	for _, c := range []struct{ system, release, want string }{
		{debian, "6.12.117+deb12-cloud-amd64", "apt install linux-headers-6.12.117+deb12-cloud-amd64"},
		{"ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", "6.8.0-31-generic", "apt install linux-headers-6.8.0-31-generic"},
		{rocky, "5.14.0-427.13.1.el9_4.x86_64", "dnf install kernel-devel-5.14.0-427.13.1.el9_4.x86_64"},
		{rocky, "5.14.0-427.13.1.el9_4.x86_64+rt", "dnf install kernel-rt-devel-5.14.0-427.13.1.el9_4.x86_64"},
		{arch, "6.12.1-arch1-1", "pacman -S linux-headers"},
		{arch, "6.12.1-zen1-1-zen", "pacman -S linux-zen-headers"},
		{arch, "6.12.1-hardened1-1-hardened", "pacman -S linux-hardened-headers"},
		{"ID=manjaro\nID_LIKE=arch\n", "6.12.1-4-MANJARO", "pacman -S linux612-headers"},
		{arch, "6.12.1", ""},
		{opensuse, "6.11.8-1-default", "zypper install kernel-default-devel=6.11.8-1"},
		{opensuse, "6.4.0-150600.23.7-64kb", "zypper install kernel-64kb-devel=6.4.0-150600.23.7"},
		{alpine, "6.6.31-0-lts", "apk add linux-lts-dev"},
		{alpine, "6.6.31", ""},
		{"", "6.6.31", ""},
		{"ID\n=\nID_LIKE", "6.6.31", ""},
	} {
		root := plant(t, map[string]string{"etc/os-release": c.system, "lib/modules/" + c.release + "/": ""})
		r, err := Get(root, c.release)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Missing) != 1 || r.Missing[0].Remedy != c.want {
			t.Errorf("%q, %s: missing %q, want the remedy %q", c.system, c.release, r.Missing, c.want)
		}
	}
}

// No fact of this machine may show under another root.
func TestFindUnderRootIgnoresHost(t *testing.T) {
	running, err := Running()
	if err != nil {
		t.Fatal(err)
	}
	root := plant(t, map[string]string{"lib/modules/" + running + "/build": "-> " + os.TempDir()})
	releases, err := Find(root)
	if err != nil || len(releases) != 1 {
		t.Fatalf("kernels %v, %v", releases, err)
	}
	if r := releases[0]; r.Running || r.Arch != "" || r.Tree != nil {
		t.Errorf("release %+v knows this machine", r)
	}
	if _, err := Get(plant(t, nil), running); err == nil {
		t.Errorf("the running kernel is found in an empty root")
	}
}

// A disk that fails while one kernel is looked at must not hide that kernel.
func TestFindOnAFailingDisk(t *testing.T) {
	for errno, fails := range map[error]bool{unix.ENOENT: false, unix.EACCES: false, unix.ELOOP: false, unix.EIO: true, unix.EMFILE: true} {
		s, err := newSurvey(Root(t.TempDir()))
		if err != nil {
			t.Fatal(err)
		}
		if s.saw(&fs.PathError{Op: "open", Path: "/lib/modules/6.1.0-1", Err: errno}); fails != errors.Is(s.err, errno) {
			t.Errorf("%v: %v", errno, s.err)
		}
	}
	k, err := Get(Root(t.TempDir()), "6.1.0-1") // nothing is there
	if nothing := (*NotFoundError)(nil); !errors.As(err, &nothing) {
		t.Errorf("%+v, %v", k, err)
	}
}
