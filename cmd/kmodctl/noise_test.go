package main

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// verified runs verify: the drifts as "KIND OBJECT", and its exit code.
func verified(t *testing.T, root string) (list []string, code int) {
	t.Helper()
	r := kmodctl(t, "--root", root, "--json", "verify")
	if r.out == "" {
		t.Fatalf("verify: exit %d: %s", r.code, r.stderr)
	}
	checkDocumented(t, r.out)
	var doc struct {
		Drifts []struct{ Kind, Object, Path string }
	}
	if err := json.Unmarshal([]byte(r.out), &doc); err != nil {
		t.Fatalf("%v: %s%s", err, r.out, r.stderr)
	}
	for _, d := range doc.Drifts {
		list = append(list, d.Kind+" "+d.Object)
	}
	if (r.code == 0) != (len(list) == 0) {
		t.Errorf("verify exits with %d: %s%s", r.code, r.out, r.stderr)
	}
	return list, r.code
}

// store keeps and puts back what kmodctl has below a root.
func store(t *testing.T, root, release string) (restore func()) {
	t.Helper()
	kept := t.TempDir()
	places := []string{"var/lib/kmodctl", "usr/lib/modules/" + release + "/updates"}
	cp := func(from, to string) {
		if out, err := exec.Command("rm", "-rf", to).CombinedOutput(); err != nil {
			t.Fatalf("rm: %s", out)
		}
		if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
			t.Fatalf("cp: %s", out)
		}
	}
	for i, p := range places {
		cp(filepath.Join(root, p), filepath.Join(kept, string(rune('a'+i))))
	}
	return func() {
		for i, p := range places {
			cp(filepath.Join(kept, string(rune('a'+i))), filepath.Join(root, p))
		}
	}
}

// kinds leads from what a blob is to its file: source, record, module, log.
func kinds(t *testing.T, state string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(state, "blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case strings.HasPrefix(string(text), "{"):
			out["record"] = f
		case strings.HasPrefix(string(text), "\x7fELF"):
			out["module"] = f
		case strings.HasPrefix(string(text), "hello "):
			out["log"] = f
		default:
			out["source"] = f
		}
	}
	return out
}

// Noise over any file of the registry: verify names it, no command panics or installs anything
// but what was built, and repair mends it.
func TestNoise(t *testing.T) {
	release := releases(t)[0]
	root := newRoot(t, release)
	dir, _ := examplePaths(t)
	hello := filepath.Join(dir, "hello")
	must(t, "--root", root, "build", hello, "-k", release)
	state := filepath.Join(root, "var/lib/kmodctl")
	installed := filepath.Join(root, "usr/lib/modules", release, "updates/kmodctl/hello.ko")
	good, err := os.ReadFile(installed)
	if err != nil {
		t.Fatal(err)
	}
	restore, blob := store(t, root, release), kinds(t, state)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	noise := make([]byte, 64<<10)
	places := map[string]int64{"registry.db@0": 0, "registry.db@4096": 4096, "registry.db@8192": 8192, "registry.db@40960": 40960, "registry.db@81920": 81920}
	for _, name := range []string{"registry.db-wal", "registry.db-shm", "lock", "writer", "README", "source", "record", "module", "log"} {
		places[name] = 0
	}
	for name, offset := range places {
		t.Run("noise over "+name, func(t *testing.T) {
			defer restore()
			file, _, _ := strings.Cut(name, "@")
			path := blob[file]
			if path == "" {
				path = filepath.Join(state, file)
			}
			for i := range noise {
				noise[i] = byte(dice.Uint32())
			}
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(noise, offset); err != nil {
				t.Fatal(err)
			}
			f.Close()
			found, _ := verified(t, root)
			harmless := slices.Contains([]string{"registry.db-shm", "lock", "writer"}, file) // they are made again
			if len(found) == 0 != harmless {
				t.Errorf("verify: %q", found)
			}
			for _, args := range [][]string{{"status"}, {"log", "hello"}, {"install", "hello"}, {"build", "-k", release}, {"pin", "hello@1.0.0"}, {"uninstall", "hello"}, {"install", "hello"}, {"add", hello}} {
				r := kmodctl(t, append([]string{"--root", root, "--lock-timeout", "5s"}, args...)...)
				if strings.Contains(r.stderr, "panic") || r.code > exitRefused {
					t.Errorf("%q: exit %d: %s", args, r.code, r.stderr)
				}
				if text, err := os.ReadFile(installed); err == nil && string(text) != string(good) {
					t.Fatalf("%q installed another module", args)
				}
			}
			r := must(t, "--root", root, "repair")
			if found, _ := verified(t, root); len(found) > 0 {
				t.Errorf("left after repair: %q\n%s", found, r.stderr)
			}
			must(t, "--root", root, "install", "hello")
			if text, err := os.ReadFile(installed); err != nil || string(text) != string(good) {
				t.Errorf("installed: %v", err)
			}
		})
	}
}

// A lost module of an artifact that is not the installed one never takes the place of the one that is.
func TestRepairOfWhatIsNotInstalled(t *testing.T) {
	release := releases(t)[0]
	root := newRoot(t, release)
	dir, _ := examplePaths(t)
	hello := filepath.Join(dir, "hello")
	must(t, "--root", root, "build", hello, "-k", release)
	old := kinds(t, filepath.Join(root, "var/lib/kmodctl"))["module"]
	manifest, err := os.ReadFile(filepath.Join(hello, "kmod.toml"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, hello, "kmod.toml", strings.Replace(string(manifest), `"1.0.0"`, `"1.1.0"`, 1))
	source, err := os.ReadFile(filepath.Join(hello, "hello.c"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, hello, "hello.c", strings.Replace(string(source), `MODULE_VERSION("1.0.0")`, `MODULE_VERSION("1.1.0")`, 1))
	must(t, "--root", root, "build", hello, "-k", release)
	installed := filepath.Join(root, "usr/lib/modules", release, "updates/kmodctl/hello.ko")
	good, err := os.ReadFile(installed)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(old); err != nil {
		t.Fatal(err)
	}
	if found, _ := verified(t, root); !slices.Equal(found, []string{"missing blob"}) {
		t.Fatalf("drifts: %q", found)
	}
	must(t, "--root", root, "repair")
	if found, _ := verified(t, root); len(found) > 0 {
		t.Errorf("left: %q", found)
	}
	if now, err := os.ReadFile(installed); err != nil || string(now) != string(good) {
		t.Errorf("repair put another version in place: %v", err)
	}
	if status := must(t, "--root", root, "status", "hello@1.1.0").out; !strings.Contains(status, "installed") {
		t.Errorf("status: %s", status)
	}
}
