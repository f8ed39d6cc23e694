package loader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"kmodctl/internal/kernel"
)

func TestSettings(t *testing.T) {
	options := func(module string, params []string, unset ...string) func([]byte) ([]byte, error) {
		return func(text []byte) ([]byte, error) { return SetOptions(text, module, params, unset) }
	}
	deny := func(module, reason string) func([]byte) ([]byte, error) {
		return func(text []byte) ([]byte, error) { return SetDeny(text, module, reason) }
	}
	allow := func(text []byte) ([]byte, error) { return UnsetDeny(text, "snd-x"), nil }
	load := func(on bool) func([]byte) ([]byte, error) {
		return func(text []byte) ([]byte, error) { return SetLoad(text, "snd-x", on), nil }
	}
	const head = settingsHead
	const rule = "# kmodctl deny: snd_x: hums\ninstall snd_x /bin/false\nblacklist snd_x\n"
	for _, c := range []struct {
		name, old string
		edit      func([]byte) ([]byte, error)
		want      string
	}{
		{"the first option", "", options("snd-x", []string{"a=1", "b"}), head + "options snd_x a=1 b\n"},
		{"an option in its place", "options snd-x a=1 b=2\n", options("snd_x", []string{"a=3", "c=x y"}), "options snd_x a=3 b=2 c=\"x y\"\n"},
		{"lines become one, others stay", "# mine\noptions snd-x a=1\noptions snd_xy a=1\noptions snd_x a-b=1 \\\n a=2\nalias q snd_x\n", options("snd-x", []string{"a_b=5"}),
			"# mine\noptions snd_x a=1 a_b=5 a=2\noptions snd_xy a=1\nalias q snd_x\n"},
		{"a quoted value is one", "options snd_x a=\"1 b=2\" c=3\n", options("snd_x", nil, "c"), "options snd_x a=\"1 b=2\"\n"},
		{"the last option", head + "options snd_x a=1\n", options("snd-x", nil, "a"), ""},
		{"nothing to unset", "options snd_x a=1\n", options("snd-x", nil, "b"), "options snd_x a=1\n"},
		{"a backslash in a value", "", options("snd-x", []string{`a=\x`}), head + `options snd_x a=\\x` + "\n"},
		{"behind a line without an end", "# mine", options("x", []string{"a=1"}), "# mine\noptions x a=1\n"},
		{"behind a backslash", "# mine \\", options("x", []string{"a=1"}), "# mine \\\\\noptions x a=1\n"},
		{"behind a joined end", "# mine \\\n", options("x", []string{"a=1"}), "# mine \\\n\noptions x a=1\n"},
		{"an escaped backslash is no join", "# mine \\\\\noptions x a=2\n", options("x", []string{"a=1"}), "# mine \\\\\noptions x a=1\n"},
		{"deny", "", deny("snd-x", "hums"), head + rule},
		{"deny again", head + rule + "# mine\n", deny("snd-x", "hums"), head + rule + "# mine\n"},
		{"another reason", "a\n" + rule + "b\n", deny("snd-x", `it's C:\`), "a\n# kmodctl deny: snd_x: it's C:\\\\\ninstall snd_x /bin/false\nblacklist snd_x\nb\n"},
		{"allow", head + rule, allow, ""},
		{"allow what a person wrote", "install snd-x /bin/true\nblacklist snd-x\nblacklist snd_xy\ninstall snd_x /sbin/modprobe y\n", allow, "blacklist snd_xy\ninstall snd_x /sbin/modprobe y\n"},
		{"allow what is not denied", "# mine\n", allow, "# mine\n"},
		{"load", "", load(true), head + "snd_x\n"},
		{"load what is", "snd-x", load(true), "snd-x"},
		{"load behind a line without an end", "y", load(true), "y\nsnd_x\n"},
		{"load no more", "# snd-x\nsnd-x\n y\n snd_x \n", load(false), "# snd-x\n y\n"},
		{"load no more, the last", head + "snd_x\n", load(false), ""},
	} {
		got, err := c.edit([]byte(c.old))
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %q becomes %q, want %q (%v)", c.name, c.old, got, c.want, err)
		}
		if again, err := c.edit(got); err != nil || !bytes.Equal(again, got) {
			t.Errorf("%s: a second time %q becomes %q, %v", c.name, got, again, err)
		}
	}
	for _, edit := range []func([]byte) ([]byte, error){deny("x", "a\ninstall y /bin/sh"), options("x", []string{"a=1\noptions"}), options("x", []string{`a=x"y`})} {
		if got, err := edit(nil); err == nil {
			t.Errorf("taken: %q", got)
		}
	}
	for name, ok := range map[string]bool{"snd-hda_intel": true, "8250": true, "": false, "a b": false, "a*": false, "x\n": false, "-f": false, "../x": false, "ä": false} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("name %q: %v", name, err)
		}
	}
}

// FuzzSettings: an edit changes what modprobe reads of its module, and nothing else.
func FuzzSettings(f *testing.F) {
	f.Add("# mine\\\noptions x a=1\n", "a=2", "no")
	f.Add("install x /bin/false\nblacklist x\\", "b", "no \\")
	f.Add("options x \"a=1\noptions y b", "a", "")
	f.Add("# mine\n", "", "no")
	f.Fuzz(func(t *testing.T, old, param, reason string) {
		others := func(text []byte) (all []string) {
			for _, line := range joinedLines(text) {
				command, rest := word(line)
				name, _ := word(rest)
				about := name == "x" && slices.Contains([]string{"options", "install", "blacklist"}, command)
				if strings.Trim(line, "\t ") != "" && !about && !strings.HasPrefix(line, DenyComment+"x:") && line+"\n" != settingsHead {
					all = append(all, line)
				}
			}
			return all
		}
		text, err := SetOptions([]byte(old), "x", []string{param}, nil)
		if err != nil {
			return
		}
		if text, err = SetDeny(text, "x", reason); err != nil {
			return
		}
		if diff := cmp.Diff(others([]byte(old)), others(text)); diff != "" {
			t.Errorf("%q became %q: %s", old, text, diff)
		}
		var c Config
		c.parse("f", text)
		denied := slices.ContainsFunc(c.Install, func(d Directive) bool { return d.Name == "x" && d.Value == "/bin/false" })
		blacklisted := slices.ContainsFunc(c.Blacklist, func(d Directive) bool { return d.Name == "x" })
		if !denied || !blacklisted || len(find(c.Options, "x")) == 0 {
			t.Errorf("%q is read as %+v", text, c)
		}
		c = Config{}
		c.parse("f", UnsetDeny(text, "x"))
		if slices.ContainsFunc(c.Install, func(d Directive) bool { return d.Name == "x" && isRefusal(d.Value) }) {
			t.Errorf("allowed: %+v", c)
		}
	})
}

func TestRewrite(t *testing.T) {
	const name = "/etc/modprobe.d/kmodctl.conf"
	newRoot := func() (kernel.Root, string) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		return kernel.Root(dir), filepath.Join(dir, name)
	}
	add := func(text string) func([]byte) ([]byte, error) {
		return func(old []byte) ([]byte, error) { return append(old, text...), nil }
	}
	t.Run("comes and goes", func(t *testing.T) {
		root, path := newRoot()
		if r, err := Rewrite(t.Context(), root, name, true, add("x\n")); err != nil || string(r.New) != "x\n" || !r.Changed() {
			t.Errorf("a dry run: %+v, %v", r, err)
		}
		if _, err := os.Stat(filepath.Dir(path)); err == nil {
			t.Error("a dry run made the folder")
		}
		for _, want := range []string{"x\n", "x\nx\n"} {
			if _, err := Rewrite(t.Context(), root, name, false, add("x\n")); err != nil {
				t.Fatal(err)
			}
			wantFiles(t, filepath.Dir(path), map[string]string{"kmodctl.conf": want})
		}
		if err := os.Chmod(path, 0o640); err != nil {
			t.Fatal(err)
		}
		if _, err := Rewrite(t.Context(), root, name, false, add("x\n")); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o640 {
			t.Errorf("the mode became %v, %v", info.Mode(), err)
		}
		r, err := Rewrite(t.Context(), root, name, false, func(old []byte) ([]byte, error) { return old, nil })
		if err != nil || r.Changed() {
			t.Errorf("no change: %+v, %v", r, err)
		}
		if _, err := Rewrite(t.Context(), root, name, false, func([]byte) ([]byte, error) { return nil, nil }); err != nil {
			t.Fatal(err)
		}
		wantFiles(t, filepath.Dir(path), map[string]string{})
	})
	t.Run("what a killed writer left", func(t *testing.T) {
		root, path := newRoot()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(filepath.Dir(path), tempPrefix+"kmodctl.conf"), bytes.Repeat([]byte("half\n"), 100), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Rewrite(t.Context(), root, name, false, add("x\n")); err != nil {
			t.Fatal(err)
		}
		wantFiles(t, filepath.Dir(path), map[string]string{"kmodctl.conf": "x\n"})
	})
	t.Run("links", func(t *testing.T) {
		outside := t.TempDir()
		root, path := newRoot()
		if err := os.Symlink(outside, filepath.Dir(path)); err != nil {
			t.Fatal(err)
		}
		if _, err := Rewrite(t.Context(), root, name, false, add("x\n")); err == nil {
			t.Error("a folder outside the root was written")
		}
		wantFiles(t, outside, map[string]string{})
		os.Remove(filepath.Dir(path))
		if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(outside, "x"), path); err != nil {
			t.Fatal(err)
		}
		if _, err := Rewrite(t.Context(), root, name, false, add("x\n")); err == nil {
			t.Error("a link was written")
		}
		wantFiles(t, outside, map[string]string{})
	})
	t.Run("side by side", func(t *testing.T) {
		root, path := newRoot()
		const writers = 16
		var g errgroup.Group
		for i := range writers {
			g.Go(func() error {
				_, err := Rewrite(t.Context(), root, name, false, add(fmt.Sprintf("%d\n", i)))
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if lines := strings.Fields(string(text)); err != nil || len(lines) != writers {
			t.Errorf("of %d lines %d are there: %q, %v", writers, len(lines), text, err)
		}
		wantFiles(t, filepath.Dir(path), map[string]string{"kmodctl.conf": string(text)})
	})
	t.Run("interrupted while it waits", func(t *testing.T) {
		root, _ := newRoot()
		ctx, cancel := context.WithCancel(t.Context())
		_, err := Rewrite(t.Context(), root, name, false, func(old []byte) ([]byte, error) {
			cancel()
			_, err := Rewrite(ctx, root, name, false, add("x\n"))
			return nil, err
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

// wantFiles checks all that is in a folder.
func wantFiles(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got[e.Name()] = string(text)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: %s", dir, diff)
	}
}
