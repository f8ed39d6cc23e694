package build

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kmodctl/internal/kernel"
)

func TestMain(m *testing.M) {
	Stage()
	if dir := os.Getenv(helperDir); dir != "" {
		os.Exit(helper(dir))
	}
	os.Exit(m.Run())
}

const full = `
name = "vendor-nic"
version = "2.4.1"
required = true

[[module]]
name = "vendor-nic"
dir = "src/nic"

[[module]]
name = "vendor_diag"
params = ["level=2", "text=a b"]

[kernel]
release = ">=5.10, <6.13"
config = ["NET", "!PREEMPT_RT"]
arch = ["x86_64", "aarch64"]

[build]
targets = ["modules", "src/"]
prepare = [
  ["./configure", "--with-linux={build_tree}"], # a comment
  ["true", "{source}{release}{arch}{cc}{jobs}", "{}"],
]
patches = [{ file = "patches/6.6.patch", release = ">=6.6" }, { file = "all.patch" }]
`

func TestParseManifest(t *testing.T) {
	got, err := ParseManifest("kmod.toml", []byte(full))
	if err != nil {
		t.Fatal(err)
	}
	want := &Manifest{
		Name: "vendor-nic", Version: "2.4.1", Required: true,
		Modules: []Module{{Name: "vendor-nic", Dir: "src/nic"}, {Name: "vendor_diag", Params: []string{"level=2", "text=a b"}}},
		Kernel:  Kernels{">=5.10, <6.13", []string{"NET", "!PREEMPT_RT"}, []string{"x86_64", "aarch64"}},
		Build: Recipe{
			Targets: []string{"modules", "src/"},
			Prepare: [][]string{{"./configure", "--with-linux={build_tree}"}, {"true", "{source}{release}{arch}{cc}{jobs}", "{}"}},
			Patches: []Patch{{"patches/6.6.patch", ">=6.6"}, {"all.patch", ""}},
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestManifestDefaults(t *testing.T) {
	got, err := ParseManifest("kmod.toml", []byte("name = 'hello'\r\nversion = '1'\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := &Manifest{Name: "hello", Version: "1", Modules: []Module{{Name: "hello"}}, Build: Recipe{Targets: []string{"modules"}}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestManifestErrors(t *testing.T) {
	const head = "name = \"hello\"\nversion = \"1.0\"\n"
	for _, c := range []struct{ manifest, want string }{
		// no TOML
		{"name = ", "read kmod.toml:1:7: expected value, not end of input"},
		{head + "name = \"b\"", "read kmod.toml:3:1: key name is already defined"},
		// unknown keys
		{"name = \"hello\"\n\nverison = \"1\"", `read kmod.toml:3:1: unknown key "verison" (nearest: "version")`},
		{"Name = \"hello\"", `read kmod.toml:1:1: unknown key "Name" (nearest: "name")`},
		{head + "[kernel]\nreleases = \"6\"", `read kmod.toml:4:1: unknown key "releases" (nearest: "release")`},
		{head + "release = \">=6\"", `read kmod.toml:3:1: unknown key "release" (nearest: "kernel.release")`},
		{head + "colour = \"blue\"", `read kmod.toml:3:1: unknown key "colour"`},
		{head + "[[modules]]\nname = \"a\"", `read kmod.toml:3:3: unknown key "modules" (nearest: "module")`},
		{head + "[build]\npatches = [{ file = \"a\" }, { fil = \"b\" }]", `read kmod.toml:4:30: unknown key "fil" (nearest: "file")`},
		{head + "name.x = 1", `read kmod.toml:3:6: unknown key "x"`},
		// wrong types
		{"name = 3", "read kmod.toml:1:8: name must be a string"},
		{head + "[files]\nudev = [\"a.txt\"]", "read kmod.toml:4:9: files.udev[0] \"a.txt\" does not end in .rules: nobody would read it"},
		{head + "[files]\nfirmware = [\"../x\"]", "read kmod.toml:4:13: files.firmware[0] \"../x\" holds .. and may lead out of the source"},
		{head + "[files]\nmodprobe = [\"a/x.conf\", \"b/x.conf\"]", "read kmod.toml:4:25: files.modprobe[1] \"x.conf\" is there twice"},
		{head + "[[module]]\nname = \"a\"\nparams = [\"n=1\", \"=2\"]", "read kmod.toml:5:18: module[0].params[1] \"=2\" is not of the form name=value"},
		{head + "[[module]]\nname = \"a\"\nparams = [\"n=a\\nb\"]", "read kmod.toml:5:11: module[0].params[0] \"n=a\\nb\": the value may hold no quote, backslash or line break"},
		{head + "required = \"yes\"", "read kmod.toml:3:12: required must be true or false"},
		{head + "module = \"a\"", "read kmod.toml:3:10: module must be a list of tables, each under [[module]]"},
		{head + "[module]\nname = \"a\"", "read kmod.toml:3:2: module must be a list of tables, each under [[module]]"},
		{head + "[[kernel]]", "read kmod.toml:3:3: kernel must be a table, [kernel]"},
		{head + "kernel = 3", "read kmod.toml:3:10: kernel must be a table, [kernel]"},
		{head + "[kernel]\nrelease = 6.1", "read kmod.toml:4:11: kernel.release must be a string"},
		{head + "[kernel]\nconfig = \"NET\"", "read kmod.toml:4:10: kernel.config must be a list of strings"},
		{head + "[kernel]\nconfig = [\n\"NET\",\n1]", "read kmod.toml:6:1: kernel.config[1] must be a string"},
		{head + "[build]\nprepare = [\"./configure\"]", "read kmod.toml:4:12: build.prepare[0] must be a list of strings"},
		{head + "[build]\npatches = [\"a\"]", `read kmod.toml:4:12: build.patches[0] must be a table, { file = "..." }`},
		// names
		{"version = \"1\"", `read kmod.toml:1:1: name is missing, for instance name = "hello"`},
		{"name = \"hello\"", `read kmod.toml:1:1: version is missing, for instance version = "1.0.0"`},
		{"name = \"\"\nversion = \"1\"", "read kmod.toml:1:8: name is empty"},
		{"name = \"a/b\"\nversion = \"1\"", `read kmod.toml:1:8: name "a/b" holds a slash`},
		{"name = \"..\"\nversion = \"1\"", `read kmod.toml:1:8: name ".." must start with a letter or digit and hold only these and . _ + ~ -`},
		{"name = \"a\"\nversion = \"1@2\"", `read kmod.toml:2:11: version "1@2" must start with a letter or digit and hold only these and . _ + ~ -`},
		{"name = \"" + strings.Repeat("a", 65) + "\"\nversion = \"1\"", "read kmod.toml:1:8: name is longer than 64 characters"},
		{"name = \"a.b\"\nversion = \"1\"", `read kmod.toml:1:8: name "a.b" is not the name of a kernel module: list the modules under [[module]]`},
		// modules
		{head + "module = []", "read kmod.toml:3:1: module is empty"},
		{head + "[[module]]\ndir = \"a\"", "read kmod.toml:3:3: module[0] has no name"},
		{head + "[[module]]\nname = \"\"", "read kmod.toml:4:8: module[0].name is empty"},
		{head + "[[module]]\nname = \"a.ko\"", `read kmod.toml:4:8: module[0].name "a.ko" is a file: the name goes without .ko`},
		{head + "[[module]]\nname = \"sub/a\"", `read kmod.toml:4:8: module[0].name "sub/a" holds a slash: the folder goes into dir`},
		{head + "[[module]]\nname = \"a b\"", `read kmod.toml:4:8: module[0].name "a b" may hold only letters, digits, _ and -`},
		{head + "[[module]]\nname = \"a-b\"\n[[module]]\nname = \"a_b\"", `read kmod.toml:6:8: module[1].name "a_b" is listed twice`},
		{head + "[[module]]\nname = \"a\"\ndir = \"../b\"", `read kmod.toml:5:7: module[0].dir "../b" holds .. and may lead out of the source`},
		{head + "[[module]]\nname = \"a\"\ndir = \"/usr\"", `read kmod.toml:5:7: module[0].dir "/usr" is an absolute path: paths are relative to the source`},
		{head + "[[module]]\nname = \"a\"\ndir = \"\"", "read kmod.toml:5:7: module[0].dir is empty"},
		{head + "[[module]]\nname = \"a\"\ndir = \"b//c\"", `read kmod.toml:5:7: module[0].dir "b//c" is not a plain path`},
		// kernels
		{head + "[kernel]\nconfig = [\"NET\", \"CONFIG_PCI\"]", `read kmod.toml:4:18: kernel.config[1] "CONFIG_PCI" goes without CONFIG_`},
		{head + "[kernel]\nconfig = [\"NET=y\"]", `read kmod.toml:4:11: kernel.config[0] "NET=y" is neither "OPTION" nor "!OPTION"`},
		{head + "[kernel]\narch = [\"amd64\"]", `read kmod.toml:4:9: kernel.arch[0] "amd64" is "x86_64" in uname -m`},
		{head + "[kernel]\narch = [\"\"]", `read kmod.toml:4:9: kernel.arch[0] "" is not a name of uname -m`},
		// build
		{head + "[build]\ntargets = []", "read kmod.toml:4:1: build.targets is empty"},
		{head + "[build]\ntargets = [\"-f\"]", `read kmod.toml:4:12: build.targets[0] "-f" is not a target of make`},
		{head + "[build]\ntargets = [\"CC=sh\"]", `read kmod.toml:4:12: build.targets[0] "CC=sh" is not a target of make`},
		{head + "[build]\nprepare = [[]]", "read kmod.toml:4:1: build.prepare[0] names no program"},
		{head + "[build]\nprepare = [[\"sh\", \"{tree}\"]]", `read kmod.toml:4:19: build.prepare[0][1] holds the unknown placeholder {tree}: known are {build_tree} {source} {release} {arch} {cc} {jobs}`},
		{head + "[build]\nneeds = [\"../x\"]", `read kmod.toml:4:10: build.needs[0] "../x" holds a slash`},
		{head + "[build]\nneeds = [\"b\", \"b\"]", `read kmod.toml:4:15: build.needs[1] "b" was named before`},
		{head + "[build]\nprepare = [[\"sh\", \"a\\u0000b\"]]", "read kmod.toml:4:19: build.prepare[0][1] holds a NUL byte"},
		{head + "[build]\npatches = [{ file = \"/etc/passwd\" }]", `read kmod.toml:4:21: build.patches[0].file "/etc/passwd" is an absolute path: paths are relative to the source`},
		{head + "[build]\npatches = [{ file = \"a/../../b\" }]", `read kmod.toml:4:21: build.patches[0].file "a/../../b" holds .. and may lead out of the source`},
		{head + "[build]\npatches = [{ release = \"6\" }]", "read kmod.toml:4:12: build.patches[0].file is empty"},
	} {
		_, err := ParseManifest("kmod.toml", []byte(c.manifest))
		var bad *ManifestError
		if !errors.As(err, &bad) {
			t.Errorf("%q: %v is no *ManifestError", c.manifest, err)
		} else if bad.Error() != c.want {
			t.Errorf("%q:\n got %s\nwant %s", c.manifest, bad, c.want)
		}
	}
}

// The words about a constraint are kernel's; the place is ours.
func TestManifestConstraintErrors(t *testing.T) {
	for _, c := range []struct{ manifest, key, at string }{
		{"name = \"a\"\nversion = \"1\"\n[kernel]\nrelease = \"newest\"", "kernel.release", "read kmod.toml:4:11: "},
		{"name = \"a\"\nversion = \"1\"\nbuild.patches = [{ file = \"p\", release = \"=>6\" }]", "build.patches[0].release", "read kmod.toml:3:42: "},
	} {
		_, err := ParseManifest("kmod.toml", []byte(c.manifest))
		var bad *ManifestError
		if !errors.As(err, &bad) || bad.Key != c.key || !strings.HasPrefix(bad.Error(), c.at) {
			t.Errorf("%q: %v", c.manifest, err)
		}
	}
}

func TestApplies(t *testing.T) {
	config, err := kernel.ParseConfig(strings.NewReader("CONFIG_NET=y\nCONFIG_USB=m\n# CONFIG_PREEMPT_RT is not set\n"))
	if err != nil {
		t.Fatal(err)
	}
	k := kernel.Release{Name: "6.1.0-56-amd64", Arch: "x86_64", Tree: &kernel.Tree{Config: config}}
	bare := kernel.Release{Name: "6.1.0-56-amd64", Missing: []kernel.Missing{{What: "headers for 6.1.0-56-amd64 are not installed"}}}
	for _, c := range []struct {
		kernels Kernels
		k       kernel.Release
		why     string
	}{
		{Kernels{}, k, ""},
		{Kernels{Release: ">=5.10, <6.13", Config: []string{"NET", "USB", "!PREEMPT_RT"}, Arch: []string{"aarch64", "x86_64"}}, k, ""},
		{Kernels{Release: ">=6.5"}, k, "release 6.1.0-56-amd64 is not >=6.5"},
		{Kernels{Release: ">=6.5"}, bare, "release 6.1.0-56-amd64 is not >=6.5"}, // headers would not help
		{Kernels{Arch: []string{"aarch64", "riscv64"}}, k, "arch x86_64 is not aarch64 or riscv64"},
		{Kernels{Config: []string{"NET", "PCI"}}, k, "config PCI is not set"},
		{Kernels{Config: []string{"!USB"}}, k, "config USB is set"},
		{Kernels{Config: []string{"NET"}}, bare, "headers for 6.1.0-56-amd64 are not installed"},
	} {
		m := &Manifest{Kernel: c.kernels}
		if ok, why, err := m.Applies(c.k); ok != (c.why == "") || why != c.why || err != nil {
			t.Errorf("%+v: %v %q %v, want %q", c.kernels, ok, why, err, c.why)
		}
	}
}

// docs/manifest.md is what people write manifests from: it names every key, and
// every example in it is a manifest.
func TestManifestDocument(t *testing.T) {
	doc, err := os.ReadFile("../docs/manifest.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range allKeys(manifestType, "") {
		if !strings.Contains(string(doc), "`"+key+"`") {
			t.Errorf("docs/manifest.md does not explain %s", key)
		}
	}
	for _, p := range placeholders {
		if !strings.Contains(string(doc), "`"+p+"`") {
			t.Errorf("docs/manifest.md does not explain %s", p)
		}
	}
	blocks := strings.Split(string(doc), "```toml\n")[1:]
	if len(blocks) == 0 {
		t.Fatal("docs/manifest.md has no example")
	}
	for _, b := range blocks {
		b, _, _ = strings.Cut(b, "```")
		if _, err := ParseManifest("docs/manifest.md", []byte(b)); err != nil {
			t.Errorf("%v in\n%s", err, b)
		}
	}
}

func allKeys(t reflect.Type, path string) (keys []string) {
	for t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return []string{path}
	}
	for f := range t.Fields() {
		if key := f.Tag.Get("toml"); key != "-" {
			keys = append(keys, allKeys(f.Type, join(path, key))...)
		}
	}
	return keys
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte("name = 'a'\nversion = '1'\n[[module]]\nname='x'\n[module.y]\n"))
	f.Add([]byte("build = { patches = [ { file = 'a' } ], prepare = [ [ 'a' ] ] }"))
	f.Add([]byte("a.b.c = [[[1979-05-27]]]\n\"\" = ''\n[[module]]\n[[module]]\nmodule.x.y = {}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseManifest("kmod.toml", data)
		if err != nil {
			var bad *ManifestError
			if !errors.As(err, &bad) || bad.Line < 1 || bad.Column < 1 || bad.Reason == "" {
				t.Fatalf("%#v", err)
			}
			return
		}
		if work := filepath.Join(workRoot, m.Name+"-"+m.Version); filepath.Dir(work) != workRoot {
			t.Fatalf("the copy would be built at %s", work)
		}
		for _, mod := range m.Modules {
			if p := filepath.Join(mod.Dir, mod.Name+".ko"); !filepath.IsLocal(p) || mod.Name == "" {
				t.Fatalf("module at %q", p)
			}
		}
		for _, p := range m.Build.Patches {
			if !filepath.IsLocal(p.File) {
				t.Fatalf("patch at %q", p.File)
			}
		}
		if len(m.Modules) == 0 || len(m.Build.Targets) == 0 {
			t.Fatal("defaults are missing")
		}
	})
}
