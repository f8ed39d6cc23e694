package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"kmodctl/internal/kernel"
	"kmodctl/loader"
	"kmodctl/registry"
)

// TestLoadPinned: of what is not installed, load takes what install would: the version
// or the one build that is pinned for the kernel, or for every kernel, else the newest.
func TestLoadPinned(t *testing.T) {
	reg, err := registry.OpenWriter(t.Context(), t.TempDir(), kernel.Root(t.TempDir()), registry.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	const here, other = "6.1.0-1-amd64", "6.12.0-1-amd64"
	added := map[string]bool{}
	build := func(pkg, version, release, text string) registry.Artifact {
		t.Helper()
		dir := t.TempDir()
		if !added[pkg+"@"+version] {
			added[pkg+"@"+version] = true
			manifest := write(t, dir, "kmod.toml", pkg+version)
			if _, _, err := reg.AddSource(t.Context(), dir, pkg, version, manifest); err != nil {
				t.Fatal(err)
			}
		}
		write(t, dir, "x.ko", text)
		art, err := reg.PutArtifact(t.Context(), registry.Artifact{Package: pkg, Version: version, Release: release,
			Modules: []registry.Module{{Name: pkg, File: pkg + ".ko"}}}, map[string]string{pkg: filepath.Join(dir, "x.ko")})
		if err != nil {
			t.Fatal(err)
		}
		return art
	}
	first := build("stack", "1.0", here, "stack 1.0, first build")
	build("stack", "1.0", here, "stack 1.0")
	build("stack", "1.1", here, "stack 1.1")
	build("stack", "1.1", other, "stack 1.1 there")
	build("stack", "1.2", other, "stack 1.2 there")
	build("user", "1", here, "user 1")
	build("user", "2", here, "user 2")
	for _, c := range []struct {
		pin         registry.Pin
		stack, user string // what is loaded here, "" when nothing is
		there       string // the stack of the other kernel
	}{
		{registry.Pin{}, "stack 1.1", "user 2", "stack 1.2 there"}, // 1.2 is not built here
		{registry.Pin{Package: "stack", Version: "1.0"}, "stack 1.0", "user 2", ""},
		{registry.Pin{Package: "stack", Version: "1.1", Release: other}, "stack 1.0", "user 2", "stack 1.1 there"},
		{registry.Pin{Package: "stack", Version: "1.0", Release: here, Artifact: first.Digest}, "stack 1.0, first build", "user 2", "stack 1.1 there"},
		{registry.Pin{Package: "user", Version: "1"}, "stack 1.0, first build", "user 1", "stack 1.1 there"},
		{registry.Pin{Package: "stack", Version: "1.2", Release: here}, "", "user 1", "stack 1.1 there"},
	} {
		if c.pin.Version != "" {
			if err := reg.SetPin(c.pin); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range []struct{ module, release, text string }{{"stack", here, c.stack}, {"user", here, c.user}, {"stack", other, c.there}} {
			k, err := (&env{root: "/"}).modulesOf(reg, want.release)
			if err != nil {
				t.Fatal(err)
			}
			text := ""
			if path, ok := k.find(want.module); ok {
				read, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				text = string(read)
			}
			if text != want.text {
				t.Errorf("after the pin %+v: of %s for %s %q is loaded, want %q", c.pin, want.module, want.release, text, want.text)
			}
		}
	}
}

// TestLoadOpensLittle: the plan for a module of the kernel's own takes two files of the
// index, no database, no module and nothing of the machine that the root stands on.
func TestLoadOpensLittle(t *testing.T) {
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	for _, release := range releases(t) {
		root := t.TempDir()
		for _, dir := range []string{"/lib/modules/" + release, "/etc/modprobe.d", "/var/lib"} {
			if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		files, err := filepath.Glob("/lib/modules/" + release + "/modules.*")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			write(t, root, file, string(text))
		}
		write(t, root, "/etc/modprobe.d/a.conf", "options stp a=1\n")
		reg, err := registry.OpenWriter(t.Context(), filepath.Join(root, system), kernel.Root(root), registry.WriterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer reg.Close()

		opened := func(code int, args ...string) (names []string, out string) {
			trace := filepath.Join(t.TempDir(), "trace")
			cmd := exec.Command("strace", append([]string{"-f", "-y", "-o", trace, "-e", "trace=open,openat,openat2", path, "--root", root}, args...)...)
			text, _ := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != code {
				t.Fatalf("%s: %s\n%s", cmd, cmd.ProcessState, text)
			}
			log, err := os.ReadFile(trace)
			if err != nil {
				t.Fatal(err)
			}
			for _, call := range regexp.MustCompile(`open(?:at2?)?\((?:AT_FDCWD<[^>]*>|AT_FDCWD|(\d+)<([^>]*)>), "([^"]*)"`).FindAllStringSubmatch(string(log), -1) {
				names = append(names, call[2]+call[3])
			}
			return names, string(text)
		}
		names, out := opened(0, "load", "garp", "-k", release, "--dry-run")
		for _, want := range []string{"garp.ko", "stp.ko", "llc.ko", " a=1 "} {
			if !strings.Contains(out, want) {
				t.Errorf("the plan has no %q: %s", want, out)
			}
		}
		var index []string
		for _, name := range names {
			inside, within := strings.CutPrefix(name, root)
			switch {
			case strings.Contains(inside, system), strings.HasSuffix(inside, ".ko"), strings.HasSuffix(inside, ".ko.xz"):
				t.Errorf("%s: it opened %s", release, name)
			case within && strings.HasPrefix(inside, "/lib/modules/"):
				index = append(index, filepath.Base(inside))
			case !within && !slices.ContainsFunc([]string{"/proc/self/", "/sys/kernel/mm/", "/sys/fs/cgroup/"}, func(p string) bool { return strings.HasPrefix(name, p) }):
				t.Errorf("%s: it opened %s of the host", release, name)
			}
		}
		slices.Sort(index)
		if got := strings.Join(slices.Compact(index), " "); !strings.HasPrefix(got, release+" modules.dep.bin modules.softdep") || strings.Count(got, " ") > 3 {
			t.Errorf("%s: of the index it opened %s", release, got)
		}

		names, _ = opened(exitNotFound, "load", "no_module", "-k", release, "--dry-run")
		if !slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, "registry.db") }) {
			t.Errorf("%s: the registry was not asked for a name that nobody has: %q", release, names)
		}
	}
}

// TestDepsOfTree: both directions, as text and as a graph, of real modules.
func TestDepsOfTree(t *testing.T) {
	for _, release := range releases(t) {
		r := must(t, "deps", "8021q", "-k", release)
		for _, want := range []string{"8021q\n", "─ mrp\n", "─ garp\n", "└─ stp\n", "   └─ llc\n"} {
			if !strings.Contains(r.out, want) || strings.Count(r.out, "\n") != 5 {
				t.Errorf("%s: no %q in\n%s", release, want, r.out)
			}
		}
		if r := must(t, "deps", "btrfs", "-k", release); !strings.Contains(r.out, "xxhash_generic (softdep pre of btrfs at /lib/modules/"+release+"/modules.softdep:") {
			t.Errorf("%s: no soft dependency in\n%s", release, r.out)
		}
		if r := must(t, "deps", "stp", "--reverse", "-k", release); !strings.HasPrefix(r.out, "stp\n├─ garp\n│  └─ 8021q\n") || !strings.Contains(r.out, "└─ bridge\n   ├─ ") {
			t.Errorf("%s: what needs stp is\n%s", release, r.out)
		}
		if r := must(t, "deps", "8021q", "--dot", "-k", release); !strings.HasPrefix(r.out, "digraph ") || !strings.Contains(r.out, "\t\"8021q\" -> \"garp\";\n") || strings.Contains(r.out, "\"8021q\" -> \"llc\"") {
			t.Errorf("%s: the graph is\n%s", release, r.out)
		}
		var doc struct {
			Roots   []string
			Modules []loader.TreeModule
		}
		if err := json.Unmarshal([]byte(must(t, "deps", "stp", "--json", "-k", release).out), &doc); err != nil || len(doc.Modules) != 2 || doc.Modules[1].Needs[0] != "llc" || doc.Roots[0] != "stp" {
			t.Errorf("%s: %v, %+v", release, err, doc)
		}
	}
	if r := kmodctl(t, "deps", "no_such_module", "-k", releases(t)[0]); r.code != exitNotFound {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
}

// TestLoadAll: of several modules one that does not exist holds up no other, as with modprobe -a.
func TestLoadAll(t *testing.T) {
	release := releases(t)[0]
	r := kmodctl(t, "load", "--all", "mrp", "no_such_module", "stp", "--dry-run", "-k", release)
	if r.code != exitPartly || !strings.Contains(r.out, "mrp.ko (asked)") || !strings.Contains(r.out, "stp.ko (asked)") || !strings.Contains(r.stderr, "1 of 3 failed") {
		t.Errorf("exit %d: %s%s", r.code, r.out, r.stderr)
	}
	if r := kmodctl(t, "load", "-a", "no_such_module", "--dry-run", "-k", release); r.code != exitNotFound {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
}

// TestLoadOwn: what the kernel has too is the kernel's, as modprobe would load it, but for
// the other modules of a package that a module was taken from; and the registry is not
// opened for it.
func TestLoadOwn(t *testing.T) {
	const release = "6.1.0-1-amd64"
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "var/lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	reg, err := registry.OpenWriter(t.Context(), filepath.Join(root, system), kernel.Root(root), registry.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range []struct {
		name    string
		modules []string
	}{{"stack", []string{"stack", "mrp"}}, {"other", []string{"llc"}}} {
		dir := t.TempDir()
		if _, _, err := reg.AddSource(t.Context(), dir, pkg.name, "1", write(t, dir, "kmod.toml", pkg.name)); err != nil {
			t.Fatal(err)
		}
		art := registry.Artifact{Package: pkg.name, Version: "1", Release: release}
		files := map[string]string{}
		for _, m := range pkg.modules {
			write(t, dir, m+".ko", "registry's "+m)
			files[m] = filepath.Join(dir, m+".ko")
			art.Modules = append(art.Modules, registry.Module{Name: m, File: m + ".ko"})
		}
		if _, err := reg.PutArtifact(t.Context(), art, files); err != nil {
			t.Fatal(err)
		}
	}
	if err := reg.Close(); err != nil {
		t.Fatal(err)
	}

	modules := filepath.Join(root, "lib/modules", release)
	o := &own{env: &env{root: kernel.Root(root)}, ctx: t.Context(), release: release, modules: modules}
	defer o.close()
	in := func(place string) string { return filepath.Join(modules, place) }
	for _, c := range []struct {
		module, indexed string
		ours, opened    bool
	}{
		{"mrp", in("kernel/net/802/mrp.ko"), false, false},
		{"garp", in("kernel/net/802/garp.ko"), false, false},
		{"hello", in("updates/dkms/hello.ko"), false, true}, // perhaps ours, but it is not
		{"mrp", in("kernel/net/802/mrp.ko"), false, true},
		{"stack", "", true, true},
		{"mrp", in("kernel/net/802/mrp.ko"), true, true}, // of the same package
		{"llc", in("kernel/net/llc/llc.ko"), false, true},
		{"llc", "", true, true},
	} {
		if path, ok := o.find(c.module, c.indexed); ok != c.ours || (o.reg != nil) != c.opened {
			t.Errorf("%s, indexed as %q: %q, %v; the registry is open: %v", c.module, c.indexed, path, ok, o.reg != nil)
		}
	}
	if o.err != nil {
		t.Error(o.err)
	}
}
