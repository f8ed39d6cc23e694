package loader_test

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/loader"
)

// fabricated has a root of its own with these files.
func fabricated(t testing.TB, files map[string]string) kernel.Root {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return kernel.Root(root)
}

// resolution is one name and what it leads to under some lines of modprobe.d. The
// modules are real ones: 8021q needs garp, stp, llc and mrp; garp needs stp and llc;
// stp needs llc; mrp and llc need nothing.
type resolution struct {
	name   string // of the case
	conf   string // etc/modprobe.d/a.conf
	more   string // etc/modprobe.d/b.conf
	load   string
	params []string
	ignore string // LoadRequest.IgnoreInstall

	want  []string // the steps, sorted
	err   string   // or the error, without the folder of the test
	notes string   // a part of the notes

	// kmod is what modprobe -D prints where it is not the same, sorted: why is said in
	// docs/loader.md, "Where modprobe differs".
	kmod   []string
	differ bool
}

var resolutions = []resolution{
	{name: "dependencies", load: "garp", want: []string{"insert garp", "insert llc", "insert stp"}},
	{name: "- and _ in any mix", load: "nls-iso8859_1", want: []string{"insert nls_iso8859_1"}},
	{name: "modalias", load: "pci:v00008086d00001533sv00001028sd00000000bc02sc00i00",
		want: []string{"insert dca", "insert i2c_algo_bit", "insert igb"}},
	{name: "symbol", load: "symbol:mrp_register_application", want: []string{"insert mrp"}},
	{name: "alias of a module", load: "rtnl-link-vlan", want: []string{"insert 8021q", "insert garp", "insert llc", "insert mrp", "insert stp"}},

	{name: "alias", conf: "alias my-mod mrp\n", load: "my_mod", want: []string{"insert mrp"}},
	{name: "alias with wildcards", conf: "alias my-* mrp\nalias yo?r[0-9a-] mrp\n", load: "my-own-mod", want: []string{"insert mrp"}},
	{name: "alias with a set, where - makes a range", conf: "alias y[a-c]-? mrp\n", load: "yb-2", want: []string{"insert mrp"}},
	{name: "alias before a module of that name", conf: "alias garp mrp\n", load: "garp", want: []string{"insert mrp"}},
	{name: "two aliases", conf: "alias my-mod mrp\nalias my* llc\n", load: "my_mod", want: []string{"insert llc optional", "insert mrp optional"}},
	{name: "alias to none", conf: "alias mod-simple deaddood\n", load: "mod-simple",
		err: "alias mod_simple at /etc/modprobe.d/a.conf:1: find module deaddood: no such module for kernel RELEASE", differ: true},
	{name: "alias to alias", conf: "alias one two\nalias two mrp\n", load: "one", want: []string{"insert mrp"}, differ: true},
	{name: "alias in circles", conf: "alias one two\nalias two one\n", load: "one",
		err: "alias one at /etc/modprobe.d/a.conf:1: alias two at /etc/modprobe.d/a.conf:2: find module one: its aliases lead in circles: one -> two -> one", differ: true},
	{name: "alias off", conf: "alias mrp off\n", load: "mrp", err: "load mrp: refused by policy: alias mrp off at /etc/modprobe.d/a.conf:1", differ: true},

	{name: "options of dependencies", conf: "options stp a=1\n", load: "garp", params: []string{"n=2"},
		want: []string{"insert garp n=2", "insert llc", "insert stp a=1"}},
	{name: "options of alias and module", conf: "alias al mrp\noptions al x=1\noptions mrp y=2 z=\"a b\"\noptions mrp x=3\n", load: "al", params: []string{"x=4"},
		want: []string{`insert mrp x=1 y=2 z="a b" x=3 x=4`}},
	{name: "options of an alias, by the module's name", conf: "alias al mrp\noptions al x=1\n", load: "mrp", want: []string{"insert mrp"}},

	{name: "blacklist, by name", conf: "blacklist mrp\n", load: "mrp", want: []string{"insert mrp"},
		notes: "mrp is blacklisted at /etc/modprobe.d/a.conf:1, which takes its aliases away and no more"},
	{name: "blacklist, a dependency", conf: "blacklist stp\n", load: "garp", want: []string{"insert garp", "insert llc", "insert stp"}},
	{name: "blacklist, an alias of the module", conf: "blacklist 8021q\n", load: "rtnl-link-vlan",
		err: "load 8021q: refused by policy: blacklist 8021q at /etc/modprobe.d/a.conf:1 (alias rtnl_link_vlan at /lib/modules/RELEASE/modules.alias)", differ: true},
	{name: "blacklist, an alias of modprobe.d", conf: "alias my-mod mrp\nblacklist mrp\n", load: "my-mod",
		err: "load mrp: refused by policy: blacklist mrp at /etc/modprobe.d/a.conf:2 (alias my_mod at /etc/modprobe.d/a.conf:1)", differ: true},
	{name: "blacklist, one of several", conf: "alias my-mod mrp\nalias my-mod llc\nblacklist mrp\n", load: "my-mod", want: []string{"insert llc"},
		notes: "mrp is left out: refused by policy: blacklist mrp at /etc/modprobe.d/a.conf:3"},
	{name: "blacklist, a soft dependency", conf: "softdep mrp pre: llc\nblacklist llc\n", load: "mrp", want: []string{"insert llc optional", "insert mrp"}},

	{name: "softdep", conf: "softdep mrp pre: stp post: garp\n", load: "mrp",
		want: []string{"insert garp optional", "insert llc optional", "insert mrp", "insert stp optional"}},
	{name: "softdep lines are added up", conf: "softdep mrp pre: llc\nsoftdep mrp post: stp\n", more: "softdep m* pre: crc-itu-t\nsoftdep mrp pre: llc\n", load: "mrp",
		want: []string{"insert crc_itu_t optional", "insert llc optional", "insert mrp", "insert stp optional"},
		kmod: []string{"insert llc", "insert mrp"}, differ: true},
	{name: "softdep without pre: and post:", conf: "softdep mrp llc\n", load: "mrp", want: []string{"insert mrp"}},
	{name: "softdep that does not exist", conf: "softdep mrp pre: nosuch llc\n", load: "mrp", want: []string{"insert llc optional", "insert mrp"},
		notes: "softdep pre of mrp at /etc/modprobe.d/a.conf:1: find module nosuch: no such module for kernel RELEASE"},
	{name: "softdep loop", conf: "softdep stp post: garp\n", load: "garp", want: []string{"insert garp", "insert llc", "insert stp"}},
	{name: "softdep loop, before", conf: "softdep llc pre: garp\n", load: "garp", want: []string{"insert garp", "insert llc", "insert stp"}},
	{name: "softdep loop of two", conf: "softdep mrp pre: llc\nsoftdep llc pre: mrp\n", load: "mrp", want: []string{"insert llc optional", "insert mrp"}},
	{name: "softdep of itself", conf: "softdep mrp pre: mrp post: mrp\n", load: "mrp", want: []string{"insert mrp"}},
	{name: "softdep of a soft dependency", conf: "softdep mrp post: llc\nsoftdep llc post: crc-itu-t\n", load: "mrp",
		want: []string{"insert crc_itu_t optional", "insert llc optional", "insert mrp"}},
	{name: "weakdep", conf: "weakdep mrp llc stp\nweakdep llc mrp\n", load: "mrp", want: []string{"insert mrp"},
		notes: "mrp may ask for llc, stp when it runs (weakdep at /etc/modprobe.d/a.conf:1)"},

	{name: "install line", conf: "install stp modprobe --ignore-install stp && { modprobe llc; }\n", load: "garp",
		want: []string{"command stp: modprobe --ignore-install stp && { modprobe llc; }", "insert garp", "insert llc"}},
	{name: "install line with options", conf: "install mrp modprobe -i mrp $CMDLINE_OPTS\noptions mrp a=1\n", load: "mrp", params: []string{"b=2"},
		want: []string{"command mrp a=1 b=2: modprobe -i mrp a=1 b=2"}, kmod: []string{"command: modprobe -i mrp $CMDLINE_OPTS a=1 b=2"}, differ: true},
	{name: "install line of no module", conf: "install my-stack modprobe llc\n", load: "my-stack", want: []string{"command my_stack: modprobe llc"}},
	{name: "install line, the first of two", conf: "install mrp modprobe llc\ninstall m* modprobe stp\n", load: "mrp", want: []string{"command mrp: modprobe llc"}},
	{name: "install line and softdep", conf: "softdep mrp pre: llc\ninstall mrp modprobe -i mrp\n", load: "mrp",
		want: []string{"command mrp: modprobe -i mrp", "insert llc optional"}, kmod: []string{"insert llc", "insert mrp"}, differ: true},
	{name: "install line, ignored", conf: "install mrp modprobe llc\n", load: "mrp", ignore: "mrp", want: []string{"insert mrp"}, kmod: []string{"command: modprobe llc"}, differ: true},

	{name: "refusal", conf: "install mrp /bin/false\n", load: "mrp", err: "load mrp: refused by policy: install mrp /bin/false at /etc/modprobe.d/a.conf:1",
		kmod: []string{"command: /bin/false"}, differ: true},
	{name: "refusal of a dependency", conf: "install st? /usr/bin/true # not here\n", load: "garp",
		err:  "load stp, needed by garp: refused by policy: install st? /usr/bin/true # not here at /etc/modprobe.d/a.conf:1",
		kmod: []string{"command: /usr/bin/true # not here", "insert garp", "insert llc"}, differ: true},
	{name: "refusal with its reason", conf: "# kmodctl deny: ll-c: other module\ninstall mrp modprobe -i mrp\n# kmodctl deny: garp: CVE-2026-1: wait for 6.1.200\ninstall garp /bin/false\n", load: "8021q",
		err:  "load garp, needed by 8021q: refused by policy: install garp /bin/false at /etc/modprobe.d/a.conf:4 (CVE-2026-1: wait for 6.1.200)",
		kmod: []string{"command: /bin/false", "command: modprobe -i mrp", "insert 8021q", "insert llc", "insert stp"}, differ: true},
	{name: "refusal and softdep", conf: "softdep mrp pre: llc\ninstall mrp /bin/false\n", load: "mrp",
		err: "load mrp: refused by policy: install mrp /bin/false at /etc/modprobe.d/a.conf:2", kmod: []string{"insert llc", "insert mrp"}, differ: true},
	{name: "refusal of a soft dependency", conf: "softdep mrp pre: llc post: garp\ninstall llc /bin/false\n", load: "mrp",
		want: []string{"insert mrp", "none garp optional (needs llc, refused by policy: install llc /bin/false at /etc/modprobe.d/a.conf:2; softdep post of mrp at /etc/modprobe.d/a.conf:1)",
			"none llc optional (refused by policy: install llc /bin/false at /etc/modprobe.d/a.conf:2; softdep pre of mrp at /etc/modprobe.d/a.conf:1)"},
		kmod: []string{"command: /bin/false", "command: /bin/false", "insert garp", "insert mrp", "insert stp"}, differ: true},
	{name: "refusal behind another install line", conf: "install mrp modprobe llc\ninstall m* /bin/false\n", load: "mrp",
		err: "load mrp: refused by policy: install m* /bin/false at /etc/modprobe.d/a.conf:2", kmod: []string{"command: modprobe llc"}, differ: true},
	{name: "refusal, ignored", conf: "install mrp /bin/false\n", load: "mrp", ignore: "mrp", want: []string{"insert mrp"}, kmod: []string{"command: /bin/false"}, differ: true},

	{name: "lines that go on", conf: "options mrp \\\n   a=1 \\\n b=C:\\\\x\n", load: "mrp", want: []string{`insert mrp a=1 b=C:\x`}},
	{name: "lines that are none", conf: "\n  # no comment\nbogus line\noptions\ninclude other\nalias one\noptions mrp a=1\ninstall mrp\nsoftdep mrp\n", load: "mrp", want: []string{"insert mrp a=1"},
		notes: `/etc/modprobe.d/a.conf:2: "#" begins no line of modprobe.d
/etc/modprobe.d/a.conf:3: "bogus" begins no line of modprobe.d
/etc/modprobe.d/a.conf:4: options names no module
/etc/modprobe.d/a.conf:5: include is of the past and not followed
/etc/modprobe.d/a.conf:6: alias one says nothing of it
/etc/modprobe.d/a.conf:8: install mrp says nothing of it
/etc/modprobe.d/a.conf:9: softdep mrp says nothing of it`},
}

// TestResolutions holds what names lead to, each asked of modprobe too.
func TestResolutions(t *testing.T) {
	modprobe, err := exec.LookPath("modprobe")
	if err != nil {
		t.Fatal("no modprobe: install the package kmod")
	}
	eachRelease(t, func(t *testing.T, release string, index *loader.Index) {
		for _, c := range resolutions {
			t.Run(c.name, func(t *testing.T) {
				root := fabricated(t, map[string]string{"etc/modprobe.d/a.conf": c.conf, "etc/modprobe.d/b.conf": c.more})
				p, err := loader.PlanLoad(loader.LoadRequest{Name: c.load, Params: c.params, IgnoreInstall: []string{c.ignore},
					Index: index, Config: loader.ReadConfig(root, true), Release: release})
				if text := strings.ReplaceAll(errText(err), release, "RELEASE"); text != c.err {
					t.Fatalf("got the error %q\nwant          %q", text, c.err)
				}
				var ours []string
				if err == nil {
					for _, s := range p.Steps {
						ours = append(ours, stepText(s))
					}
					slices.Sort(ours)
					if diff := cmp.Diff(c.want, ours); diff != "" {
						t.Error(diff)
					}
					if notes := strings.ReplaceAll(strings.Join(p.Notes, "\n"), release, "RELEASE"); !strings.Contains(notes, c.notes) {
						t.Errorf("notes: %s\nwant: %s", notes, c.notes)
					}
				}

				args := append([]string{"-S", release, "-C", filepath.Join(string(root), "etc/modprobe.d"), "-D", c.load}, c.params...)
				out, _ := exec.Command(modprobe, args...).Output()
				var theirs []string
				for line := range strings.Lines(string(out)) {
					theirs = append(theirs, kmodText(strings.TrimSpace(line)))
				}
				slices.Sort(theirs)
				if !c.differ {
					for i, line := range ours { // modprobe does not tell soft dependencies, and what a command is for
						ours[i] = strings.TrimSuffix(line, " optional")
						if what, command, ok := strings.Cut(line, ": "); ok && strings.HasPrefix(what, "command ") {
							ours[i] = "command: " + command
						}
					}
					slices.Sort(ours)
					c.kmod, theirs = ours, slices.Compact(theirs)
				}
				if diff := cmp.Diff(c.kmod, theirs); diff != "" {
					t.Errorf("modprobe %q (- expected, + modprobe): %s", args, diff)
				}
			})
		}
	})
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// stepText is a step without its path, and of a step with nothing to do the reason.
func stepText(s loader.Step) string {
	text := strings.Join(strings.Fields(s.Action+" "+s.Module+" "+s.Params), " ")
	if s.Command != "" {
		text += ": " + s.Command
	}
	if s.Optional {
		text += " optional"
	}
	if s.Action == loader.None {
		text += " (" + s.Reason + ")"
	}
	return text
}

// kmodText is a line of modprobe -D in our words.
func kmodText(line string) string {
	word, rest, _ := strings.Cut(line, " ")
	if word == "install" {
		return "command: " + rest
	}
	path, params, _ := strings.Cut(rest, " ")
	return strings.Join(strings.Fields("insert "+ko.NameOfFile(path)+" "+params), " ")
}

// TestConfigFolders: a file hides those of its name in the folders behind its own,
// and all are read by name. It is how an administrator replaces the distribution's.
func TestConfigFolders(t *testing.T) {
	index := writeIndex(t, "kernel/m.ko:\n", "")
	files := map[string]string{
		"lib/modprobe.d/a.conf":           "options m lib_a\n",
		"lib/modprobe.d/e.conf":           "options m lib_e\n",
		"usr/lib/modprobe.d/d.conf":       "options m usr_d\n",
		"usr/lib/modprobe.d/e.conf":       "options m usr_e\n",
		"usr/local/lib/modprobe.d/d.conf": "options m local_d\n",
		"run/modprobe.d/c.conf":           "options m run_c\n",
		"run/modprobe.d/b.conf":           "options m run_b\n",
		"etc/modprobe.d/b.conf":           "options m etc_b\n",
		"etc/modprobe.d/README":           "options m readme\n",
		"etc/modprobe.d/.hidden.conf":     "options m hidden\n",
		"etc/modprobe.d/f.conf":           "",
		"lib/modprobe.d/f.conf":           "options m masked\n",
		"proc/cmdline":                    "m.cmdline=1\n", // nobody's: the root is not this machine
	}
	root := fabricated(t, files)
	c := loader.ReadConfig(root, true)
	p, err := loader.PlanLoad(loader.LoadRequest{Name: "m", Index: index, Config: c})
	if err != nil {
		t.Fatal(err)
	}
	if want := "lib_a etc_b run_c local_d usr_e"; p.Steps[0].Params != want {
		t.Errorf("got %s, want %s", p.Steps[0].Params, want)
	}

	// A link stays inside the root, and what cannot be read is noted.
	for name, target := range map[string]string{"g.conf": "/lib/modprobe.d/a.conf", "h.conf": "/etc/hostname", "null.conf": "/dev/null"} {
		if err := os.Symlink(target, filepath.Join(string(root), "etc/modprobe.d", name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(string(root), "etc/modprobe.d/folder.conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	c = loader.ReadConfig(root, true)
	if p, err = loader.PlanLoad(loader.LoadRequest{Name: "m", Index: index, Config: c}); err != nil {
		t.Fatal(err)
	}
	if want := "lib_a etc_b run_c local_d usr_e lib_a"; p.Steps[0].Params != want {
		t.Errorf("got %s, want %s", p.Steps[0].Params, want)
	}
	if len(c.Notes) != 1 || !strings.Contains(c.Notes[0], "folder.conf: is a directory") {
		t.Errorf("notes %q", c.Notes)
	}
}

// TestExternal: depmod.d's external gives absolute paths, which below a root are its own.
func TestExternal(t *testing.T) {
	root := fabricated(t, map[string]string{
		"lib/modules/6.1/modules.dep":     "/opt/x/ext.ko: kernel/d.ko /opt/y/other.ko\nkernel/d.ko:\n/opt/y/other.ko:\n",
		"lib/modules/6.1/modules.builtin": "",
		"srv/x/ext.ko":                    "", "opt/y/other.ko": "",
	})
	if err := os.Symlink("/srv/x", filepath.Join(string(root), "opt/x")); err != nil {
		t.Fatal(err)
	}
	p, err := loader.PlanLoad(loader.LoadRequest{Name: "ext", Index: loader.OpenIndex(root, "/lib/modules/6.1")})
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, s := range p.Steps {
		paths = append(paths, strings.TrimPrefix(s.Path, string(root)))
	}
	if diff := cmp.Diff([]string{"/opt/y/other.ko", "/lib/modules/6.1/kernel/d.ko", "/srv/x/ext.ko"}, paths); diff != "" {
		t.Error(diff)
	}
}

// TestWithoutModulesDep: a tree that depmod never saw. The files say what they need.
func TestWithoutModulesDep(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string, index *loader.Index) {
		files := make(map[string]string)
		for _, name := range []string{"garp", "stp", "llc"} {
			path, _, _ := index.Find(name)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			files["lib/modules/6/kernel/some/"+filepath.Base(path)] = string(text)
			if name == "stp" {
				files["lib/modules/6/updates/"+filepath.Base(path)] = string(text)
			}
		}
		root := fabricated(t, files)
		bare := loader.OpenIndex(root, "/lib/modules/6")
		p, err := loader.PlanLoad(loader.LoadRequest{Name: "garp", Index: bare, Release: release})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range p.Steps {
			got = append(got, strings.TrimPrefix(s.Path, bare.Dir+"/")+" ("+symbolTail.ReplaceAllString(s.Reason, "$1*)")+")")
		}
		suffix := strings.TrimPrefix(filepath.Base(slices.Sorted(maps.Keys(files))[0]), "garp.ko")
		want := []string{"kernel/some/llc.ko" + suffix, "updates/stp.ko" + suffix, "kernel/some/garp.ko" + suffix}
		for i := range got {
			if path, _, _ := strings.Cut(got[i], " "); path != want[i] {
				t.Errorf("step %d is %s, want %s", i+1, got[i], want[i])
			}
		}
		if !strings.Contains(got[0], "needed by stp: symbol llc_") {
			t.Errorf("reason: %s", got[0])
		}
		if !slices.Contains(p.Notes, bare.Dir+"/modules.dep does not exist") {
			t.Errorf("notes %q", p.Notes)
		}
		var notFound *loader.NotFoundError
		if _, err := loader.PlanLoad(loader.LoadRequest{Name: "gapr", Index: bare, Release: release}); !errors.As(err, &notFound) || !slices.Contains(notFound.Near, "garp") {
			t.Errorf("misspelt: %v", err)
		}
	})
}
