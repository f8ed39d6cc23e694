package loader_test

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kmodctl/internal/ko"
	"kmodctl/loader"
)

// installed returns the releases whose modules are installed, one 6.1 and one
// 6.12: the first has plain modules, the second compressed ones.
func installed(t testing.TB) []string {
	t.Helper()
	var releases []string
	for _, series := range []string{"6.1.*", "6.12.*"} {
		found, _ := filepath.Glob("/lib/modules/" + series + "/modules.dep")
		if len(found) == 0 {
			t.Fatalf("no modules of a %s kernel in /lib/modules: install the linux-image package of that series", series)
		}
		releases = append(releases, filepath.Base(filepath.Dir(found[0])))
	}
	return releases
}

func eachRelease(t *testing.T, test func(t *testing.T, release string, index *loader.Index)) {
	for _, release := range installed(t) {
		t.Run(release, func(t *testing.T) {
			index := loader.OpenIndex("/", "/lib/modules/"+release)
			test(t, release, index)
		})
	}
}

// short writes a plan as "action module (reason)" lines.
func short(p *loader.Plan) (lines []string) {
	for _, s := range p.Steps {
		lines = append(lines, strings.TrimSpace(s.Action+" "+s.Module+" "+s.Params)+" ("+s.Reason+")")
	}
	return lines
}

// symbolTail is the part of a symbol's name that may change between kernels.
var symbolTail = regexp.MustCompile(`(symbol [a-z]+_)\w*\)`)

func TestPlanLoad(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string, index *loader.Index) {
		file := func(module string) string {
			path, _, ok := index.Find(module)
			if !ok {
				t.Fatalf("%s has no module %s", release, module)
			}
			return path
		}
		ours := func(module, _ string) (string, bool) {
			if !slices.Contains([]string{"8021q", "garp", "mrp", "stp"}, module) {
				return "", false
			}
			return file(module), true
		}
		live := &loader.State{
			Modules: []loader.Live{{Name: "llc", State: "live"}, {Name: "mrp", State: "live", BuildID: "beef"}, {Name: "stp", State: "coming"}},
			Builtin: []string{"printk"},
		}
		for _, c := range []struct {
			name string
			req  loader.LoadRequest
			want []string
		}{
			{"in-tree, parameters for the module asked for alone",
				loader.LoadRequest{Name: "8021q", Params: []string{"a=1,2"}},
				[]string{"insert llc (needed by stp)", "insert mrp (needed by 8021q)", "insert stp (needed by garp)", "insert garp (needed by 8021q)", "insert 8021q a=1,2 (asked)"}},
			{"registry's own files: order and reasons come from the files",
				loader.LoadRequest{Name: "8021q", Lookup: ours},
				[]string{"insert llc (needed by stp)", "insert stp (needed by garp: symbol stp_*)", "insert garp (needed by 8021q: symbol garp_*)",
					"insert mrp (needed by 8021q: symbol mrp_*)", "insert 8021q (asked)"}},
			{"a path, what is live stays, what is coming is not live",
				loader.LoadRequest{File: file("8021q"), State: live},
				[]string{"none llc (already live)", "insert stp (needed by garp)", "insert garp (needed by 8021q)", "none mrp (already live)", "insert 8021q (asked)"}},
			{"live", loader.LoadRequest{Name: "mrp", State: live, Lookup: ours}, []string{"none mrp (already live)"}},
			{"built in, by modules.builtin", loader.LoadRequest{Name: "zbud"}, []string{"none zbud (built into the kernel)"}},
			{"built in, by /sys/module", loader.LoadRequest{Name: "printk", State: live}, []string{"none printk (built into the kernel)"}},
			{"a file that is not named as its module", loader.LoadRequest{Name: "renamed", Lookup: func(string, string) (string, bool) { return file("mrp"), true }},
				[]string{"insert mrp (asked)"}},
			{"- and _ mixed", loader.LoadRequest{Name: "nls-iso8859_1"}, []string{"insert nls_iso8859_1 (asked)"}},
		} {
			t.Run(c.name, func(t *testing.T) {
				c.req.Index, c.req.Release = index, release
				p, err := loader.PlanLoad(c.req)
				if err != nil {
					t.Fatal(err)
				}
				// Independent modules may change places between kernels; the order
				// is held by TestPlansEqualModprobe and by the fake kernel.
				got := short(p)
				for i := range got {
					got[i] = symbolTail.ReplaceAllString(got[i], "$1*)")
				}
				slices.Sort(got)
				slices.Sort(c.want)
				if diff := cmp.Diff(c.want, got); diff != "" {
					t.Error(diff)
				}
			})
		}

		t.Run("notes", func(t *testing.T) {
			for _, req := range []loader.LoadRequest{{File: file("mrp")}, {Name: "mrp", Lookup: ours}} {
				req.Params, req.State, req.Release = []string{"x=1"}, live, release
				p, err := loader.PlanLoad(req)
				if err != nil {
					t.Fatal(err)
				}
				want := []string{"the live mrp is another build than " + file("mrp"), "mrp is already live: its parameters stay as they are"}
				if diff := cmp.Diff(want, p.Notes); diff != "" {
					t.Error(diff)
				}
			}
			p, err := loader.PlanLoad(loader.LoadRequest{File: file("mrp"), Release: "5.10.0"})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{file("mrp") + " was built for " + release}, p.Notes); diff != "" {
				t.Error(diff)
			}
		})
	})
}

func TestPlanLoadErrors(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string, index *loader.Index) {
		_, err := loader.PlanLoad(loader.LoadRequest{Name: "8012q", Index: index, Release: release})
		var notFound *loader.NotFoundError
		if !errors.As(err, &notFound) || !slices.Contains(notFound.Near, "8021q") || notFound.Release != release {
			t.Errorf("misspelt name: %v, near %v", err, notFound)
		}

		path, _, _ := index.Find("garp")
		_, err = loader.PlanLoad(loader.LoadRequest{File: path, Release: release})
		if !errors.As(err, &notFound) || notFound.Name != "stp" || notFound.NeededBy != "garp" {
			t.Errorf("dependency that nobody has: %v", err)
		}
		if want := "find module stp, needed by garp: no such module for kernel " + release; err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	})

	text := filepath.Join(t.TempDir(), "text.ko")
	if err := os.WriteFile(text, []byte("not a module"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := loader.PlanLoad(loader.LoadRequest{File: text}); !errors.Is(err, ko.ErrNotELF) || !strings.Contains(err.Error(), text) {
		t.Errorf("text file: %v", err)
	}
}

func TestCycle(t *testing.T) {
	index := writeIndex(t, "a.ko: b.ko\nb.ko: c.ko\nc.ko: b.ko\n", "")
	_, err := loader.PlanLoad(loader.LoadRequest{Name: "a", Index: index})
	var cycle *loader.CycleError
	if !errors.As(err, &cycle) {
		t.Fatalf("got %v, want a *CycleError", err)
	}
	if diff := cmp.Diff([]string{"b", "c", "b"}, cycle.Modules); diff != "" {
		t.Error(diff)
	}
}

func TestParams(t *testing.T) {
	index := writeIndex(t, "m.ko:\n", "")
	for _, c := range []struct {
		params []string
		want   string // "" for an error
	}{
		{[]string{"ports=1,2", "debug"}, "ports=1,2 debug"},
		{[]string{"name=a b"}, `name="a b"`},
		{[]string{"name=a\tb", "n=1"}, "name=\"a\tb\" n=1"},
		{[]string{`name="a b"`}, `name="a b"`},
		{[]string{"name=à"}, `name="à"`}, // its second byte is 0xa0, a blank to the kernel
		{[]string{"name=é"}, "name=é"},
		{[]string{"dyndbg=+p", "x==1"}, "dyndbg=+p x==1"},
		{[]string{`name=a"b`}, ""}, // would swallow what follows
		{[]string{`name=a "b" c`}, ""},
		{[]string{"a b"}, ""},
		{[]string{"=1"}, ""},
		{[]string{""}, ""},
		{[]string{"n=1\x00"}, ""},
	} {
		p, err := loader.PlanLoad(loader.LoadRequest{Name: "m", Params: c.params, Index: index})
		switch {
		case c.want == "" && err == nil:
			t.Errorf("%q gave %q, want an error", c.params, p.Steps[0].Params)
		case c.want != "" && err != nil:
			t.Errorf("%q: %v", c.params, err)
		case c.want != "" && p.Steps[0].Params != c.want:
			t.Errorf("%q gave %q, want %q", c.params, p.Steps[0].Params, c.want)
		}
	}
}

func writeIndex(t testing.TB, dep, builtin string) *loader.Index {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"modules.dep": dep, "modules.builtin": builtin} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	index := loader.OpenIndex("/", dir)
	return index
}

func TestIndexOfOddFiles(t *testing.T) {
	index := writeIndex(t, "\nkernel/a-b_c.ko.xz: /opt/x/ext.ko  kernel/d.ko \nno colon\n../out.ko:\n/opt/x/ext.ko:\nkernel/d.ko:\n", "kernel/in.ko\njunk\n")
	path, deps, ok := index.Find("a_b-c")
	if !ok || path != filepath.Join(index.Dir, "kernel/a-b_c.ko.xz") {
		t.Errorf("a_b-c is %q, %v", path, ok)
	}
	if diff := cmp.Diff([]string{filepath.Join(index.Dir, "kernel/d.ko"), "/opt/x/ext.ko"}, deps); diff != "" {
		t.Error(diff)
	}
	if _, _, ok := index.Find("out"); ok {
		t.Error("a path out of the folder was taken")
	}
	if !index.Builtin("in") || index.Builtin("junk") {
		t.Error("modules.builtin was read wrongly")
	}
	if want := []string{index.Dir + `/modules.dep line 3 is not "path: dependencies"`, index.Dir + `/modules.dep line 4 is not "path: dependencies"`}; !cmp.Equal(want, index.Notes) {
		t.Error(cmp.Diff(want, index.Notes))
	}

	empty := loader.OpenIndex("/", filepath.Join(t.TempDir(), "6.0"))
	if _, _, ok := empty.Find("a"); ok || empty.Builtin("a") || len(empty.Notes) != 2 || !strings.HasSuffix(empty.Notes[0], "/modules.dep does not exist") {
		t.Errorf("absent folder: notes %q", empty.Notes)
	}
}

func FuzzIndex(f *testing.F) {
	f.Add("kernel/a.ko: kernel/b.ko\nkernel/b.ko:\n", "kernel/c.ko\n", "alias a* b\nalias symbol:a b\nsoftdep a pre: b\n")
	f.Add("a.ko: a.ko\n:\n::\n.ko:\n", "..\n/\n", "alias [a b\nalias\nsoftdep b post: b")
	f.Add("a.ko: b.ko", "\x00.ko", "alias * \x00")
	f.Fuzz(func(t *testing.T, dep, builtin, alias string) {
		dir := t.TempDir()
		os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(dep), 0o644)
		os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte(builtin), 0o644)
		for _, file := range []string{"modules.alias", "modules.symbols", "modules.softdep", "modules.builtin.alias"} {
			os.WriteFile(filepath.Join(dir, file), []byte(alias), 0o644)
		}
		index := loader.OpenIndex("/", dir)
		for _, a := range append(index.Aliases("ab"), index.Exporters("a")...) {
			if a.Module == "" || a.Pattern == "" {
				t.Errorf("%q gave %+v", alias, a)
			}
		}
		for _, name := range append(index.Near("a"), "a", "b", "") {
			path, deps, ok := index.Find(name)
			for _, p := range append(deps, path) {
				if ok && !filepath.IsAbs(p) {
					t.Errorf("%q leads to %q", name, p)
				}
			}
			loader.PlanLoad(loader.LoadRequest{Name: name, Index: index}) // a cycle must end
		}
	})
}
