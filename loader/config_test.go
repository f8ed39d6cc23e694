package loader

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestCommandLine holds what modprobe -c makes of /proc/cmdline (kmod 30, asked
// with a file mounted over it). Where ours is better, the comment says so.
func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		line    string
		options []string // module and parameter
		listed  []string // modprobe.blacklist=
		barred  []string // module_blacklist=
	}{
		{line: "root=UUID=6.1-a ro quiet BOOT_IMAGE=/boot/vmlinuz-6.1"},
		{line: "foo.bar", options: []string{"foo bar"}},
		{line: "foo.bar=1.5G a.b\n", options: []string{"foo bar=1.5G", "a b"}},
		{line: `foo.bar="x y" next.z=1`, options: []string{`foo bar="x y"`, "next z=1"}},
		{line: `"parport.dyndbg=file drivers/parport/ieee1284_ops.c +mpf" a.b=1`,
			options: []string{`parport dyndbg="file drivers/parport/ieee1284_ops.c +mpf"`, "a b=1"}},
		{line: "psmouse.foo psmouse.bar=1 psmouse.zinga=test psmouse.[foo]=1",
			options: []string{"psmouse foo", "psmouse bar=1", "psmouse zinga=test", "psmouse [foo]=1"}},
		{line: "pci=noats,[14:00.5] a.b=c [x.y]", options: []string{"a b=c"}},
		{line: "modprobe.blacklist=a,c modprobe.blacklist=d", listed: []string{"a", "c", "d"}},
		{line: "modprobe.blacklist=a-b", listed: []string{"a_b"}}, // kmod keeps the -, and the line says nothing
		{line: "module_blacklist=x-y,z", barred: []string{"x_y", "z"}},
		{line: `a.b.c=1 =x.y "a.b" a"."b=1 "q.r"=1 "q r.s=1" u.v=a.b.c`, options: []string{"u v=a.b.c"}},
		{line: `a.b==2 a.b="1"2 a.b=x"y z"w "a.b=c"d "g.h=i" "a.b="c`,
			options: []string{"a b==2", `a b="1"2`, `a b=x"y z"w`, `a b="c"d`, `g h="i"`, `a b=""c`}},
		{line: "\"a.b=x\"\t\"c.d=y\"", options: []string{`a b="x"`, `c d="y"`}},
		{line: `a.b="unclosed c.d=1`},
		{line: `"a.b=unclosed c.d=1`},
		{line: `module_blacklist=x a.b=1,"2 3"`, options: []string{`a b=1,"2 3"`}, barred: []string{"x"}},
		{line: "a-b.c-d=1", options: []string{"a_b c-d=1"}},
		{line: ".x=1 x.=1"}, // to kmod the first names a module "", the second a parameter ""
		{line: "a.b=1 -- e.f=1", options: []string{"a b=1"}}, // behind -- all is init's, which kmod does not know
	} {
		var conf Config
		conf.addCommandLine(c.line)
		pairs := func(list []Directive, value bool) (texts []string) {
			for _, d := range list {
				text := d.Name
				if value {
					text += " " + d.Value
				}
				texts = append(texts, text)
			}
			return texts
		}
		for what, diff := range map[string]string{
			"options":             cmp.Diff(c.options, pairs(conf.Boot, true)),
			"modprobe.blacklist=": cmp.Diff(c.listed, pairs(conf.Blacklist, false)),
			"module_blacklist=":   cmp.Diff(c.barred, pairs(conf.Barred, false)),
		} {
			if diff != "" {
				t.Errorf("%s: %s: %s", c.line, what, diff)
			}
		}
	}
}

func FuzzCommandLine(f *testing.F) {
	f.Add(`foo.bar="x y" "parport.dyndbg=file x +p" modprobe.blacklist=a,b module_blacklist=c -- d.e=1`)
	f.Add("\"\"\".=\" .=. \"a.b=")
	f.Add("\"a.b\rc=d e\" f")
	f.Fuzz(func(t *testing.T, line string) {
		var c Config
		c.addCommandLine(line)
		for _, d := range c.Boot {
			// It becomes a part of what the kernel parses for the module, which must stay one.
			if d.Name == "" || d.Value == "" || len(splitParams(d.Value)) != 1 {
				t.Errorf("%q gave %q for %q", line, d.Value, d.Name)
			}
		}
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte("alias a-* b\noptions b \\\n x=1\n# kmodctl deny: b: because\ninstall b /bin/false\nsoftdep b pre: c post: d\n"))
	f.Add([]byte("blacklist\nsoftdep x :\nremove [ x\n\\"))
	f.Add([]byte("alias [!]-a] \\\\x\nalias \x00 y\ninstall * :"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var c Config
		c.parse("f", text)
		lines := len(c.Aliases) + len(c.Blacklist) + len(c.Options) + len(c.Install) + len(c.Remove) + len(c.Softdeps) + len(c.Weakdeps) + len(c.Notes)
		if most := bytes.Count(text, []byte("\n")) + 1; lines > most {
			t.Errorf("%d lines became %d", most, lines)
		}
		for _, list := range [][]Directive{c.Aliases, c.Options, c.Install, c.Remove} {
			for _, d := range list {
				if d.Name == "" || d.Value == "" || strings.ContainsAny(d.Name+d.Value, "\n\x00") {
					t.Errorf("%q gave %+v", text, d)
				}
			}
		}
		for _, name := range []string{"a", "a_b", "x", ""} {
			PlanLoad(LoadRequest{Name: name, Config: &c}) // aliases and wishes in circles must end
		}
	})
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern string
		fits    []string
		not     []string
	}{
		{"abc", []string{"abc"}, []string{"", "ab", "abcd", "ABC"}},
		{"a*c", []string{"ac", "abc", "a/.c", "accc"}, []string{"a", "acd", "bac"}},
		{"*", []string{"", "x"}, nil},
		{"**a**", []string{"a", "bab"}, []string{"", "b"}},
		{"a?c", []string{"abc", "a?c"}, []string{"ac", "abbc"}},
		{"[a-c]x", []string{"ax", "cx"}, []string{"dx", "-x", "x"}},
		{"[!a-c]x", []string{"dx", "-x"}, []string{"ax", "x"}},
		{"[^a]", []string{"b"}, []string{"a"}},
		{"[]a]", []string{"]", "a"}, []string{"b"}},
		{"[a-]", []string{"a", "-"}, []string{"b"}},
		{"[a", []string{"[a"}, []string{"a"}},
		{`\*`, []string{"*"}, []string{"a"}},
		{`a\`, []string{`a\`}, []string{"a"}},
		{"pci:v*d*sv*bc0[13]*", []string{"pci:v1d2sv3bc01", "pci:vdsvbc03sc"}, []string{"pci:v1d2sv3bc02"}},
	} {
		for _, s := range c.fits {
			if !globMatch(c.pattern, s) {
				t.Errorf("%q does not fit %q", c.pattern, s)
			}
		}
		for _, s := range c.not {
			if globMatch(c.pattern, s) {
				t.Errorf("%q fits %q", c.pattern, s)
			}
		}
	}
}

// TestDamagedIndex: a binary file that is cut short or overwritten gives way to its text.
func TestDamagedIndex(t *testing.T) {
	found, _ := filepath.Glob("/lib/modules/6.1.*/modules.dep.bin")
	if len(found) == 0 {
		t.Fatal("no modules of a 6.1 kernel in /lib/modules: install the linux-image package of that series")
	}
	good, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(strings.TrimSuffix(found[0], ".bin"))
	if err != nil {
		t.Fatal(err)
	}
	for name, bin := range map[string][]byte{
		"empty":         nil,
		"other file":    []byte("modules for people"),
		"other version": append(append([]byte{}, good[:4]...), append([]byte{0, 3, 0, 0}, good[8:]...)...),
		"cut short":     good[:len(good)/2],
		"root outside":  append(append([]byte{}, good[:8]...), append([]byte{0xe7, 0xff, 0xff, 0xff}, good[12:]...)...),
		"of zeros":      make([]byte, len(good)),
	} {
		dir := t.TempDir()
		for file, content := range map[string][]byte{"modules.dep": text, "modules.dep.bin": bin} {
			if err := os.WriteFile(filepath.Join(dir, file), content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		x := OpenIndex("/", dir)
		if path, deps, ok := x.Find("garp"); !ok || filepath.Base(path) != "garp.ko" || len(deps) != 2 {
			t.Errorf("%s: garp is %q and needs %q", name, path, deps)
		}
		if len(x.Names()) < 4000 || len(x.Notes) != 1 || !strings.HasPrefix(x.Notes[0], dir+"/modules.dep.bin: ") {
			t.Errorf("%s: %d modules, notes %q", name, len(x.Names()), x.Notes)
		}
	}
}

// FuzzTrie: whatever the file holds, a look-up ends and does not panic.
func FuzzTrie(f *testing.F) {
	head := []byte{0xb0, 0x07, 0xf4, 0x57, 0, 2, 0, 1}
	// The key "ab*", by a prefix, with the value "m"; then nodes that lead to themselves.
	f.Add(append(append([]byte{}, head...), 0xc0, 0, 0, 12, 'a', 'b', '*', 0, 0, 0, 0, 1, 0, 0, 0, 0, 'm', 0), "abc")
	f.Add(append(append([]byte{}, head...), 0x20, 0, 0, 12, '*', '*', 0x20, 0, 0, 12), "*")
	f.Add(append(append([]byte{}, head...), 0x60, 0, 0, 12, 'a', 'b', 0x20, 0, 0, 12, 0x40, 0, 0, 12, 0, 0, 0, 1), "ab")
	f.Fuzz(func(t *testing.T, data []byte, key string) {
		trie, err := openTrie(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		trie.nodes = trieNodes - 10000 // circles shall end soon
		values, ok, err := trie.get(key)
		if err == nil && ok && key != "" {
			// What is found is found by a walk over everything too.
			n := 0
			for e, err := range trie.all() {
				if err != nil {
					return
				}
				if e.key == key {
					n++
				}
			}
			if n != len(values) {
				t.Errorf("%q has %d values, and %d in the list of all", key, len(values), n)
			}
		}
		trie.match(key)
	})
}
