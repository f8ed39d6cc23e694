package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kmodctl/internal/ko"
	"kmodctl/registry"
)

// bareRoot is a machine that runs these kernels and cannot build for them.
func bareRoot(t testing.TB, releases ...string) string {
	t.Helper()
	root := newRoot(t, releases...)
	for _, dir := range append([]string{"usr/src"}, buildLinks(releases)...) {
		if err := os.RemoveAll(filepath.Join(root, dir)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func buildLinks(releases []string) (links []string) {
	for _, r := range releases {
		links = append(links, "lib/modules/"+r+"/build")
	}
	return links
}

// TestExportImport carries what one machine built to one that cannot build.
func TestExportImport(t *testing.T) {
	rels := releases(t)
	from, to := newRoot(t, rels...), bareRoot(t, rels...)
	dir, _ := examplePaths(t)
	must(t, "--root", from, "build", "--no-install", filepath.Join(dir, "hello"))
	file := filepath.Join(t.TempDir(), "hello.tar")
	if out := must(t, "--root", from, "export", "hello", "-o", file, "--dry-run").out; !strings.Contains(out, "for 2 kernels to "+file) {
		t.Errorf("dry run: %s", out)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("a dry run wrote the archive")
	}
	checkDocumented(t, must(t, "--root", from, "export", "hello", "-o", file, "--json").out)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	check := exec.Command("sh", "-c", `tar xf hello.tar && cd hello-* && sha256sum --strict -c SHA256SUMS`)
	check.Dir = filepath.Dir(file)
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}

	if r := must(t, "--root", to, "import", file, "--dry-run"); strings.Count(r.out, "import ") != 3 {
		t.Errorf("dry run: %s", r.out)
	}
	if _, err := os.Stat(filepath.Join(to, "var/lib/kmodctl")); err == nil {
		t.Error("a dry run made a registry")
	}
	checkDocumented(t, must(t, "--root", to, "import", file, "--json").out)
	if r := must(t, "--root", to, "import", file); !strings.Contains(r.stderr, "nothing to do: hello 1.0.0 is here") {
		t.Errorf("imported again: %s", r.stderr)
	}
	for _, k := range statusOf(t, "--root", to).Packages[0].Kernels {
		if k.State != stateBuilt {
			t.Errorf("%s: %s (%s), want built", k.Release, k.State, k.Why)
		}
	}
	must(t, "--root", to, "install", "hello")
	checkInstalled(t, to, rels, map[string][]string{"hello": {"hello"}})
	again := filepath.Join(t.TempDir(), "again.tar")
	must(t, "--root", to, "export", "hello", "-o", again)
	if other, err := os.ReadFile(again); err != nil || !bytes.Equal(other, text) {
		t.Errorf("the archive is another one after import and export (%v)", err)
	}

	t.Run("pipe", func(t *testing.T) {
		path, err := binary()
		if err != nil {
			t.Fatal(err)
		}
		third := bareRoot(t, rels[0])
		pipe := `"$0" --root "$1" export hello -k "$3" -o - | "$0" --root "$2" import -`
		r := command(t, exec.Command("bash", "-o", "pipefail", "-c", pipe, path, from, third, rels[0]))
		if r.code != 0 || !strings.Contains(r.stderr, "imported hello 1.0.0 for "+rels[0]) || strings.Contains(r.stderr, "imported hello 1.0.0 for "+rels[1]) {
			t.Errorf("exit %d: %s", r.code, r.stderr)
		}
	})
	t.Run("refused", func(t *testing.T) { exportImportRefuse(t, from, to, file, rels[0]) })
}

func exportImportRefuse(t *testing.T, from, to, file, release string) {
	link := filepath.Join(t.TempDir(), "link.tar")
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(t.TempDir(), "cut.tar")
	if err := os.WriteFile(cut, text[:len(text)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	other, _ := examplePaths(t)
	changeByte(t, filepath.Join(other, "hello", "hello.c"))
	stranger := bareRoot(t, release)
	must(t, "--root", stranger, "add", filepath.Join(other, "hello"))
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--root", from, "export", "hello", "-k", "9.9.9", "-o", link + ".new"}, exitNotFound, `find kernel release "9.9.9": no such kernel`},
		{[]string{"--root", from, "export", "hello", "-o", link}, exitFailed, "not a regular file"},
		{[]string{"--root", from, "export", "helo", "-o", link}, exitNotFound, "hello (the nearest name)"},
		{[]string{"--root", from, "--json", "export", "hello", "-o", "-"}, exitUsage, "both want standard output"},
		{[]string{"--root", to, "import", cut}, exitFailed, "import " + cut + ": hello-1.0.0/blobs/sha256/"},
		{[]string{"--root", to, "import", filepath.Dir(cut)}, exitFailed, "is a directory"},
		{[]string{"--root", to, "import", cut + ".absent"}, exitFailed, "no such file"},
		{[]string{"--root", stranger, "import", file}, exitFailed, "kmodctl remove hello@1.0.0"},
	} {
		if r := kmodctl(t, c.args...); r.code != c.code || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%q: exit %d, want %d: %s, want %q", c.args, r.code, c.code, r.stderr, c.want)
		}
	}
	// A damaged blob is named, and no file is left, the old one least of all changed.
	blobs, _ := filepath.Glob(from + "/var/lib/kmodctl/blobs/sha256/*")
	for _, b := range blobs {
		os.Chmod(b, 0o644)
		if err := os.WriteFile(b, []byte("damage"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if r := kmodctl(t, "--root", from, "export", "hello", "-o", cut); r.code != exitFailed || !strings.Contains(r.stderr, "is damaged: its sha256") {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	if now, err := os.ReadFile(cut); err != nil || !bytes.Equal(now, text[:len(text)/2]) {
		t.Error("a failed export changed the file")
	}
	if names, _ := os.ReadDir(filepath.Dir(cut)); len(names) != 1 {
		t.Errorf("a failed export left %v", names)
	}
}

// TestArchiveJudge holds a real module against records that lie about it.
func TestArchiveJudge(t *testing.T) {
	found, _ := filepath.Glob("/lib/modules/" + releases(t)[0] + "/kernel/fs/fat/vfat.ko")
	if len(found) != 1 {
		t.Fatal("no vfat.ko")
	}
	info, err := ko.Open(found[0])
	if err != nil {
		t.Fatal(err)
	}
	a, right := registry.Artifact{Release: info.Release()}, moduleFacts(info)
	if err := judgeModule(a, right, found[0]); err != nil {
		t.Error(err)
	}
	for want, lie := range map[string]func(*registry.Artifact, *registry.Module){
		"is for kernel":    func(a *registry.Artifact, _ *registry.Module) { a.Release += "x" },
		"has name":         func(_ *registry.Artifact, m *registry.Module) { m.Name = "ext4" },
		"has vermagic":     func(_ *registry.Artifact, m *registry.Module) { m.Vermagic = "x" },
		"has build-id":     func(_ *registry.Artifact, m *registry.Module) { m.BuildID = "x" },
		"has srcversion":   func(_ *registry.Artifact, m *registry.Module) { m.SrcVersion = "x" },
		"has version":      func(_ *registry.Artifact, m *registry.Module) { m.Version = "x" },
		`depends on ["fat`: func(_ *registry.Artifact, m *registry.Module) { m.Depends = nil },
	} {
		a, m := a, right
		lie(&a, &m)
		if err := judgeModule(a, m, found[0]); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	for manifest, want := range map[string]string{
		"name = 'net'\nversion = '2'": "its kmod.toml is of net@2", "name = 'disk'\nversion = '1'": "its kmod.toml is of disk@1", "name": "kmod.toml",
	} {
		if err := judgeSource("net", "1", "kmod.toml", manifest); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}
