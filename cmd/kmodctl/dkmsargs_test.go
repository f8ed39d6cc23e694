package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// lookAt knows these files and no others.
func lookAt(word string) int {
	switch word {
	case "/src/tree", ".":
		return wordTree
	case "/src/tree/dkms.conf", "dkms.conf":
		return wordConf
	case "m.dkms.tar.gz", "driver.rpm":
		return wordOfFile
	}
	return wordName
}

func TestParseDKMS(t *testing.T) {
	for _, c := range []struct {
		line string
		want dkmsCall
		code int
	}{
		{line: "status", want: dkmsCall{action: "status"}},
		{line: "add m/1.0", want: dkmsCall{action: "add", module: "m", version: "1.0"}},
		{line: "m/1.0 add", want: dkmsCall{action: "add", module: "m", version: "1.0"}},
		{line: "add -m m -v 1.0", want: dkmsCall{action: "add", module: "m", version: "1.0"}},
		{line: "add -m m/1.0", want: dkmsCall{action: "add", module: "m", version: "1.0"}},
		{line: "add --module=m/1.0", want: dkmsCall{action: "add", module: "m", version: "1.0"}},
		{line: "add m/1.0/x", want: dkmsCall{action: "add", module: "m", version: "1.0/x"}},
		{line: "status -m m/1.0 -v 2.0", want: dkmsCall{action: "status", module: "m", version: "2.0"}},
		{line: "status -v 2.0 -m m", want: dkmsCall{action: "status", module: "m", version: "2.0"}},
		{line: "install -k 6.1.0/x86_64 -k 6.2.0/i686 m/1", want: dkmsCall{action: "install", module: "m", version: "1",
			kernels: []string{"6.1.0", "6.2.0"}, arches: []string{"x86_64", "i686"}}},
		{line: "build --kernelver 6.1.0 --arch x86_64 m/1", want: dkmsCall{action: "build", module: "m", version: "1",
			kernels: []string{"6.1.0"}, arches: []string{"x86_64"}}},
		{line: "build --kernelversion=6.1.0 --archive=f --architecture a", want: dkmsCall{action: "build", kernels: []string{"6.1.0"},
			archive: "f", arches: []string{"a"}}},
		{line: "add /src/tree", want: dkmsCall{action: "add", tree: "/src/tree"}},
		{line: "install .", want: dkmsCall{action: "install", tree: "."}},
		{line: "add /src/tree/dkms.conf", want: dkmsCall{action: "add", tree: "/src/tree/."}},
		{line: "add dkms.conf", want: dkmsCall{action: "add", tree: "."}},
		{line: "ldtarball m.dkms.tar.gz --force", want: dkmsCall{action: "ldtarball", archive: "m.dkms.tar.gz", force: true}},
		{line: "install driver.rpm", want: dkmsCall{action: "install", archive: "driver.rpm"}},
		{line: "add /no/such", want: dkmsCall{action: "add", version: "no/such"}},
		{line: "add m/1 n/2", want: dkmsCall{action: "add", module: "m", version: "1",
			notes: []string{"n/2 is passed over: it is neither an action nor a file, and a module is given"}}},
		{line: "autoinstall --no-initrd -k 6.1.0", want: dkmsCall{action: "autoinstall", kernels: []string{"6.1.0"},
			notes: []string{"--no-initrd is of a DKMS of old and means nothing"}}},
		{line: "build m/1 --directive=MAKE='x' --directive A=b=c -j 4", want: dkmsCall{action: "build", module: "m", version: "1",
			directives: []string{"MAKE='x'", "A=b=c"}, jobs: "4"}},
		{line: "match --templatekernel=6.1.0 -k 6.2.0 m", want: dkmsCall{action: "match", template: "6.1.0", kernels: []string{"6.2.0"}, module: "m"}},
		{line: "remove --all -q --verbose m/1", want: dkmsCall{action: "remove", all: true, quiet: true, verbose: true, module: "m", version: "1"}},
		{line: "add --dkmstree /d --sourcetree=/s --installtree /i --config /c --kernelsourcedir=/k -c conf", want: dkmsCall{action: "add",
			dkmsTree: "/d", sourceTree: "/s", installTree: "/i", config: "/c", kernelSource: "/k", conf: "conf"}},
		{line: "mktarball --source-only --binaries-only --no-depmod --modprobe-on-install --symlink-modules --rpm_safe_upgrade --force-version-override",
			want: dkmsCall{action: "mktarball", sourceOnly: true, binariesOnly: true, noDepmod: true, modprobe: true, symlinks: true, rpmSafe: true, forceVersion: true}},
		{line: "status -k", want: dkmsCall{action: "status", kernels: []string{""}}},
		{line: "-V --nonsense", want: dkmsCall{showVersion: true}},
		{line: "status --help build", want: dkmsCall{action: "status", help: true}},
		{line: "mkdeb m/1", want: dkmsCall{module: "mkdeb", notes: []string{"m/1 is passed over: it is neither an action nor a file, and a module is given"}}},
		{line: "status --nonsense", code: 2},
		{line: "status -m=m", code: 2},
		{line: "add build", code: 4},
		{line: "add add", code: 4},
	} {
		got, err := parseDKMS(strings.Fields(c.line), lookAt)
		if code := dkmsCodeOf(err); code != c.code {
			t.Errorf("dkms %s: %v is code %d, want %d", c.line, err, code, c.code)
		}
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(dkmsCall{})); c.code == 0 && diff != "" {
			t.Errorf("dkms %s:\n%s", c.line, diff)
		}
	}
}

func dkmsCodeOf(err error) int {
	var d dkmsError
	if errors.As(err, &d) {
		return d.code
	}
	return 0
}

// TestCheckDKMS holds exit codes to those of DKMS 3.4 for the same command line.
func TestCheckDKMS(t *testing.T) {
	for line, want := range map[string]int{
		"":                           2, // DKMS prints its usage and exits with 0
		"mkdeb m/1":                  2, // this too
		"status":                     0,
		"status m":                   0,
		"status -k":                  0,
		"status --all":               0,
		"autoinstall":                0,
		"autoinstall --all":          5,
		"autoinstall -k 6.1 -k 6.2":  4,
		"match -k 6.1":               1,
		"match --templatekernel 6.1": 0,
		"match --templatekernel 6.1 -k 6.2 -k 6.3": 4,
		"add":                               1,
		"add m":                             1,
		"add m/":                            1,
		"add /no/such":                      1,
		"add m/1":                           0,
		"add m/1 --all":                     5,
		"build --all":                       5,
		"install /src/tree":                 0,
		"install /src/tree -m m":            1, // of a module that is named, the folder is passed over
		"install m.dkms.tar.gz":             0,
		"uninstall":                         1,
		"uninstall m":                       1,
		"remove -m m -v 1 --all":            0,
		"remove m/1 --all -k 6.1":           2,
		"remove m/1 --all -a x86_64":        3,
		"build m/1 -k 6.1 -k 6.2 -a x86_64": 0,
		"build m/1 -k 6.1 -k 6.2 -k 6.3 -a a -a b":    1,
		"build m/1 -a a -a b":                         1,
		"build m/1 -k":                                16,
		"build m/1 -k 6.1/":                           16,
		"mktarball":                                   1,
		"mktarball m/1 --binaries-only --source-only": 8,
		"ldtarball":                                   2,
		"kernel_prerm":                                4,
		"kernel_prerm --all":                          5,
		"kernel_preinst -k 6.1 -k 6.2":                4,
		"kernel_postinst -k 6.1":                      0,
		"generate_mok":                                0,
	} {
		c, err := parseDKMS(strings.Fields(line), lookAt)
		if err == nil {
			err = c.check()
		}
		if got := dkmsCodeOf(err); got != want {
			t.Errorf("dkms %s: %v is code %d, want %d", line, err, got, want)
		}
	}
}

// TestDKMSTargets is the example of dkms(8): which -a belongs to which -k.
func TestDKMSTargets(t *testing.T) {
	for line, want := range map[string][]dkmsTarget{
		"build m/1":                   {{"6.9.9", "x86_64"}},
		"build m/1 -k a -k b -a i386": {{"a", "i386"}, {"b", "i386"}},
		"build m/1 -k a -k b -a i386 -k c -a i686 -a x86_64": {{"a", "i386"}, {"b", "i686"}, {"c", "x86_64"}},
		"build m/1 -k a/i386 -k b/i686":                      {{"a", "i386"}, {"b", "i686"}},
		"build m/1 -a i386":                                  {{"6.9.9", "i386"}},
		"remove m/1 --all":                                   nil,
	} {
		c, err := parseDKMS(strings.Fields(line), lookAt)
		if err == nil {
			err = c.check()
		}
		got := c.targets("6.9.9", "x86_64")
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(dkmsTarget{})); diff != "" || err != nil {
			t.Errorf("dkms %s: %v\n%s", line, err, diff)
		}
	}
}
