package registry

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"kmodctl/internal/kernel"
)

const release = "9.9.9"

// helpers are what this test binary does when it is started as a child.
var helpers = map[string]func(args []string) error{}

func TestMain(m *testing.M) {
	if name := os.Getenv("REGISTRY_TEST_HELPER"); name != "" {
		if err := helpers[name](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helper prepares a child that dies with the test.
func helper(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "REGISTRY_TEST_HELPER="+name)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// newRoot makes a root that has one kernel release without modules.
func newRoot(t *testing.T) kernel.Root {
	t.Helper()
	root := t.TempDir()
	fillModules(t, filepath.Join(root, modulesPath(release)))
	return kernel.Root(root)
}

func fillModules(t *testing.T, dir string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(dir, "kernel"), 0o755))
	for _, name := range []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"} {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
	}
}

// writer opens dir for writing; Close is called at the end.
func writer(t *testing.T, dir string, root kernel.Root) *Registry {
	t.Helper()
	r, err := OpenWriter(t.Context(), dir, root, WriterOptions{Command: "kmodctl test", Version: "0.0-test"})
	must(t, err)
	t.Cleanup(func() { r.Close() })
	return r
}

func reader(t *testing.T, dir string) *Registry {
	t.Helper()
	r, err := Open(t.Context(), dir)
	must(t, err)
	t.Cleanup(func() { r.Close() })
	return r
}

// object returns a small real kernel module, made different by mark and padded.
func object(mark string, pad int) ([]byte, error) {
	found, err := filepath.Glob("/lib/modules/6.1.*/kernel/lib/crypto/libarc4.ko")
	if err != nil || len(found) == 0 {
		return nil, fmt.Errorf("no libarc4.ko below /lib/modules/6.1.*: install linux-image-6.1 (%v)", err)
	}
	text, err := os.ReadFile(found[0])
	return slices.Concat(text, []byte(mark), make([]byte, pad)), err
}

// put stores an artifact of pkg whose modules are given as name=mark.
func put(ctx context.Context, r *Registry, dir, pkg, version string, pad int, mods ...string) (Artifact, error) {
	a := Artifact{Package: pkg, Version: version, Release: release, InputHash: pkg + version, Built: time.Now()}
	files := map[string]string{}
	for _, m := range mods {
		name, mark, _ := strings.Cut(m, "=")
		text, err := object(mark, pad)
		if err != nil {
			return a, err
		}
		file := strings.ReplaceAll(name, "_", "-") + ".ko"
		files[name] = filepath.Join(dir, file)
		if err := os.WriteFile(files[name], text, 0o600); err != nil {
			return a, err
		}
		a.Modules = append(a.Modules, Module{Name: name, File: file})
	}
	return r.PutArtifact(ctx, a, files)
}

func mustPut(t *testing.T, r *Registry, pkg, version string, mods ...string) Artifact {
	t.Helper()
	a, err := put(t.Context(), r, t.TempDir(), pkg, version, 0, mods...)
	must(t, err)
	return a
}

// installed lists what rows say, as module=version, after it has made sure that
// files, index and rows say the same and that nothing temporary is left.
func installed(t *testing.T, r *Registry, root kernel.Root) []string {
	t.Helper()
	rows, err := r.Installs()
	must(t, err)
	drifts, err := r.Look(root)
	must(t, err)
	if len(drifts) > 0 {
		t.Fatalf("files and rows differ: %+v", drifts)
	}
	dir := filepath.Join(string(root), modulesPath(release))
	var list, want, got []string
	for _, i := range rows {
		list = append(list, i.Module+"="+i.Version)
		want = append(want, filepath.Base(i.Path))
	}
	if f, err := os.Open(filepath.Join(dir, "modules.dep")); err == nil {
		index, err := readIndex(f)
		must(t, err)
		f.Close()
		for _, file := range index {
			if path.Dir(file) == ourDir {
				got = append(got, path.Base(file))
			}
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Fatalf("modules.dep names %q of our folder, rows %q", got, want)
	}
	must(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if strings.HasPrefix(d.Name(), tempName) || depmodTemp().MatchString(d.Name()) {
			t.Errorf("left behind: %s", p)
		}
		return err
	}))
	if _, err := os.Lstat(filepath.Join(dir, "updates")); len(rows) == 0 && err == nil {
		t.Error("our folders are left though nothing is installed")
	}
	return list
}

// snapshot is everything below dir, names, modes and contents.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b bytes.Buffer
	must(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var text []byte
		if d.Type().IsRegular() {
			if text, err = os.ReadFile(p); err != nil {
				return err
			}
		}
		fmt.Fprintf(&b, "%s %v %x\n", p, info.Mode(), text)
		return nil
	}))
	return b.String()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s: %q, want %q", what, got, want)
	}
}
