package build

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kmodctl/internal/kernel"
)

func TestHashAndChanged(t *testing.T) {
	old := []Input{{"source", "1"}, {"compiler", "gcc 12"}, {"gone", "x"}}
	new := []Input{{"source", "2"}, {"compiler", "gcc 12"}, {"Module.symvers", "3"}}
	if got := Changed(old, new); !slices.Equal(got, []string{"source", "Module.symvers", "gone"}) {
		t.Errorf("changed: %v", got)
	}
	if got := Changed(old, old); got != nil {
		t.Errorf("changed from itself: %v", got)
	}
	// The key names artifacts on disk: it must never come out otherwise.
	if got := Hash([]Input{{"a", "b"}, {"c", "d"}}); got != "4572063f432245d2918199d6696e2ec075d668821b6907e6977111263c20d6c4" {
		t.Errorf("hash %s", got)
	}
}

// fakeKernel is a build tree of two files.
func fakeKernel(t *testing.T, cc, config string) kernel.Release {
	t.Helper()
	dir := tree(t, map[string]string{".config": config, "Module.symvers": "0x1\ta\tvmlinux\tEXPORT_SYMBOL\t\n"})
	parsed, err := kernel.ParseConfig(strings.NewReader(config))
	if err != nil {
		t.Fatal(err)
	}
	return kernel.Release{Name: "6.1.0-test", Arch: "x86_64", Tree: &kernel.Tree{
		Path: dir, Host: dir, CC: cc, Config: parsed, ConfigFile: filepath.Join(dir, ".config"), Symvers: filepath.Join(dir, "Module.symvers"),
	}}
}

// programs makes a PATH of empty programs: a test sees no compiler of this machine.
func programs(t *testing.T, names ...string) {
	t.Helper()
	dir := t.TempDir()
	for _, n := range names {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	old := searchPath
	searchPath = []string{dir}
	t.Cleanup(func() { searchPath = old })
}

// identities answers for the programs of programs.
func identities(lines map[string]string) func(string) (string, error) {
	return func(path string) (string, error) {
		if line, ok := lines[filepath.Base(path)]; ok {
			return line, nil
		}
		return "", errors.New("asked for " + path)
	}
}

func TestInputsNameWhatChanged(t *testing.T) {
	programs(t, "gcc-12", "pahole")
	k := fakeKernel(t, "gcc-12 (Debian) 12.2.0", "CONFIG_DEBUG_INFO_BTF_MODULES=y\n")
	m := &Manifest{Name: "hello", Version: "1"}
	lines := map[string]string{"gcc-12": "gcc-12 (Debian) 12.2.0", "pahole": "v1.24"}
	inputs := func() []Input {
		in, chain, err := inputs(m, "source", k, identities(lines))
		if err != nil {
			t.Fatal(err)
		}
		if chain.CC != "gcc-12" || chain.Note != "" {
			t.Fatalf("%+v", chain)
		}
		return in
	}
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(k.Tree.Host, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	last := inputs()
	for _, c := range []struct {
		name   string
		change func()
	}{
		{"", func() {}},
		{"Module.symvers", func() { write("Module.symvers", "0x2\ta\tvmlinux\tEXPORT_SYMBOL\t\n") }}, // of the same size
		{"config", func() { write(".config", "CONFIG_DEBUG_INFO_BTF_MODULES=y\nCONFIG_NET=y\n") }},
		{"compiler", func() { lines["gcc-12"] = "gcc-12 (Debian) 12.3.0" }},
		{"", func() { lines["pahole"] = "v1.25" }}, // without vmlinux kbuild makes no BTF
		{"pahole", func() { write("vmlinux", "") }},
		{"manifest", func() { m.Required = true }},
		{"release", func() { k.Name = "6.1.1-test" }},
	} {
		c.change()
		now := inputs()
		if got := strings.Join(Changed(last, now), " "); got != c.name || (Hash(last) == Hash(now)) != (c.name == "") {
			t.Errorf("changed %q, want %q", got, c.name)
		}
		last = now
	}
}

func TestNoInputs(t *testing.T) {
	programs(t, "gcc")
	tool := identities(map[string]string{"gcc": "gcc 12.2.0"})
	k := fakeKernel(t, "", "CONFIG_NET=y\n")
	k.Arch = "sparc64"
	if _, _, err := inputs(&Manifest{}, "s", k, tool); err == nil || !strings.Contains(err.Error(), "is a kernel for sparc64") {
		t.Errorf("another processor's headers: %v", err)
	}
	k = fakeKernel(t, "", "CONFIG_NET=y\n")
	if err := os.Remove(k.Tree.ConfigFile); err != nil {
		t.Fatal(err)
	}
	if _, _, err := inputs(&Manifest{}, "s", k, tool); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no .config: %v", err)
	}
	if _, _, err := inputs(&Manifest{}, "s", kernel.Release{Name: "6.1"}, tool); err == nil || err.Error() != "no build tree for 6.1" {
		t.Errorf("no tree: %v", err)
	}
}

func TestFindToolchain(t *testing.T) {
	const (
		debian = "gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0"
		triple = "x86_64-linux-gnu-gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0"
		fedora = "gcc (GCC) 14.2.1 20240912 (Red Hat 14.2.1-3)"
		clang  = "Ubuntu clang version 18.1.3 (1ubuntu1)"
	)
	for _, c := range []struct {
		kernel  string
		have    map[string]string
		want    string
		noteHas string
		flags   string
	}{
		{debian, map[string]string{"gcc-12": debian, "gcc": "gcc (Debian) 13.1.0"}, "gcc-12", "", ""},
		{triple, map[string]string{"gcc-12": debian, "gcc": debian}, "gcc-12", "", ""},
		{debian, map[string]string{"gcc": "gcc (Debian 12.2.0-14) 12.2.0"}, "gcc", "", ""},
		{debian, map[string]string{"gcc": "gcc (Debian) 13.1.0"}, "gcc", "kernel built with " + debian + ", which is not installed; building with gcc (Debian) 13.1.0", ""},
		{debian, map[string]string{"cc": "cc (Debian) 11.2.0"}, "cc", "building with cc (Debian) 11.2.0", ""},
		{fedora, map[string]string{"gcc": "gcc (GCC) 15.0.1 20250418 (Red Hat 15.0.1-0)", "gcc-14": fedora}, "gcc-14", "", ""},
		{fedora, map[string]string{"gcc": "gcc (GCC) 14.3.1 20250523 (Red Hat 14.3.1-1)"}, "gcc", "", ""}, // an update of the same compiler
		{"", map[string]string{"gcc": debian}, "gcc", "", ""},
		{"../../bin/sh 1.0", map[string]string{"gcc": "gcc 1.2.3"}, "gcc", "", ""},
		{clang, map[string]string{"clang-18": clang, "gcc": debian}, "clang-18", "", "LLVM=-18"},
		{clang, map[string]string{"clang": "clang version 18.1.8"}, "clang", "", "LLVM=1"},
		{clang, map[string]string{"clang": "clang version 17.0.6"}, "clang", "which is not installed", "LLVM=1"},
	} {
		var names []string
		for n := range c.have {
			names = append(names, n)
		}
		programs(t, names...)
		chain, err := findToolchain(c.kernel, identities(c.have))
		if err != nil {
			t.Errorf("%s with %v: %v", c.kernel, names, err)
			continue
		}
		if chain.CC != c.want || chain.Identity != c.have[c.want] || filepath.Base(chain.Path) != c.want {
			t.Errorf("%s with %v: %+v", c.kernel, names, chain)
		}
		if (chain.Note == "") != (c.noteHas == "") || !strings.Contains(chain.Note, c.noteHas) {
			t.Errorf("%s with %v: note %q", c.kernel, names, chain.Note)
		}
		if got := strings.Join(chain.flags(), " "); got != c.flags {
			t.Errorf("%s with %v: flags %q", c.kernel, names, got)
		}
	}
}

func TestNoCompiler(t *testing.T) {
	programs(t)
	_, err := findToolchain("gcc-12 (Debian) 12.2.0", nil)
	var missing *exec.Error
	if !errors.As(err, &missing) || missing.Name != "gcc" {
		t.Errorf("%v", err)
	}
	programs(t, "gcc")
	_, err = findToolchain("clang version 18.1.3", nil)
	if !errors.As(err, &missing) || missing.Name != "clang" {
		t.Errorf("gcc in place of clang: %v", err)
	}
}

func TestToolIdentity(t *testing.T) {
	path, err := findProgram("make")
	if err != nil {
		t.Fatalf("%v: apt install make", err)
	}
	line, err := toolIdentity(path)
	if err != nil || !strings.HasPrefix(line, "GNU Make ") || strings.Contains(line, "\n") {
		t.Errorf("%q, %v", line, err)
	}
	if _, err := toolIdentity("/nonexistent"); err == nil {
		t.Error("a program that does not exist has an identity")
	}
}

// inputs are those of a package that is planned alone.
func inputs(m *Manifest, source string, k kernel.Release, tool func(string) (string, error)) ([]Input, *Toolchain, error) {
	f, manifest, err := (&Planner{FileFact: answers(tool)}).shared(m, k)
	if err != nil {
		return nil, nil, err
	}
	in := f.inputs(manifest, source, k.Name)
	return in[:], f.chain, nil
}

// answers lets tool answer for programs; files are read.
func answers(tool func(string) (string, error)) func(path, what string, ask func(string) (string, error)) (string, error) {
	return func(path, what string, ask func(string) (string, error)) (string, error) {
		if what == "version" {
			return tool(path)
		}
		return ask(path)
	}
}
