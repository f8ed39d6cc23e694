package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRepair damages a registry and what is installed, one thing after the other: verify
// names it, repair mends it, and the module in place is the one that was built.
func TestRepair(t *testing.T) {
	rel := releases(t)[0]
	root := newRoot(t, rel)
	dir, _ := examplePaths(t)
	hello := filepath.Join(dir, "hello")
	km := func(code int, args ...string) result {
		t.Helper()
		r := kmodctl(t, append([]string{"--root", root}, args...)...)
		if r.code != code {
			t.Errorf("kmodctl %s: exit %d, want %d\n%s%s", strings.Join(args, " "), r.code, code, r.out, r.stderr)
		}
		return r
	}
	km(0, "build", hello, "-k", rel)
	says(t, km(0, "verify").stderr, "everything is as it should be")
	store := filepath.Join(root, "var/lib/kmodctl")
	installed := filepath.Join(root, "lib/modules", rel, "updates/kmodctl/hello.ko")
	good, err := os.ReadFile(installed)
	if err != nil {
		t.Fatal(err)
	}
	blob := func(begins string) string {
		t.Helper()
		all, _ := filepath.Glob(filepath.Join(store, "blobs/sha256/*"))
		for _, path := range all {
			if text, _ := os.ReadFile(path); strings.HasPrefix(string(text), begins) {
				return path
			}
		}
		t.Fatalf("no blob begins with %q", begins)
		return ""
	}
	const elf, record = "\x7fELF", `{"schema":1`
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []struct {
		what  string
		do    func()
		named string
	}{
		{"a module blob", func() { must(overwrite(blob(elf))) }, "modified: blob"},
		{"a lost module blob", func() { must(os.Remove(blob(elf))) }, "missing: blob"},
		{"a record", func() { must(overwrite(blob(record))) }, "modified: blob"},
		{"an installed module", func() { must(overwrite(installed)) }, "modified: installed"},
		{"no installed module", func() { must(os.Remove(installed)) }, "missing: installed"},
		{"no index", func() { must(os.Remove(filepath.Join(root, "lib/modules", rel, "modules.dep"))) }, "unindexed"},
		{"module and blob", func() { must(overwrite(installed)); must(os.Remove(blob(elf))) }, "missing: blob"},
		{"half a database", func() { must(os.Truncate(filepath.Join(store, "registry.db"), 9000)) }, "database"},
		{"no database", func() { must(os.Remove(filepath.Join(store, "registry.db"))) }, "database"},
		{"an empty database", func() { must(os.Truncate(filepath.Join(store, "registry.db"), 0)) }, "database"},
		{"a changed tree", func() {
			config := filepath.Join(root, "usr/src/linux-headers-"+rel, ".config")
			text, err := os.ReadFile(config)
			must(err)
			must(os.Remove(config)) // it is a link to the host's
			must(os.WriteFile(config, append(text, "# another\n"...), 0o644))
		}, "stale: artifact (hello 1.0.0"},
	} {
		d.do()
		r := km(1, "verify", "--json")
		checkDocumented(t, r.out)
		says(t, km(1, "verify").out, d.named)
		says(t, km(0, "repair", "--dry-run").out, d.named)
		checkDocumented(t, km(0, "repair", "--dry-run", "--json").out)
		says(t, km(0, "repair").stderr, d.named)
		if r := km(0, "verify"); t.Failed() {
			t.Fatalf("%s: not mended:\n%s%s", d.what, r.out, r.stderr)
		}
		if now, err := os.ReadFile(installed); err != nil || string(now) != string(good) {
			t.Fatalf("%s: another module is installed: %v", d.what, err)
		}
	}
	if doc := statusOf(t, "--root", root); len(doc.Packages) != 1 || doc.Packages[0].Name != "hello" {
		t.Errorf("status after all: %+v", doc)
	}
	says(t, km(0, "repair").stderr, "nothing to do")

	// What is not ours is told of, and left alone.
	foreign := filepath.Join(filepath.Dir(installed), "mine.ko")
	must(os.WriteFile(foreign, []byte("mine"), 0o644))
	says(t, km(1, "verify").out, "foreign: installed", "mine.ko")
	says(t, km(0, "repair").stderr, "left alone", "mine.ko")
	if text, err := os.ReadFile(foreign); err != nil || string(text) != "mine" {
		t.Errorf("a foreign file was touched: %v", err)
	}
	must(os.Remove(foreign))
}
