package kernel

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// plant builds a root in a temporary folder. A name that ends in a slash is a
// folder, content that begins with "-> " is a link.
func plant(t *testing.T, files map[string]string) Root {
	t.Helper()
	root := realTempDir(t)
	plantIn(t, root, files)
	return Root(root)
}

// realTempDir is a temporary folder whose name holds no link.
func realTempDir(t *testing.T) string {
	t.Helper()
	folder, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return folder
}

func plantIn(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(root, name)
		folder := filepath.Dir(path)
		if strings.HasSuffix(name, "/") {
			folder = path
		}
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, path)
		} else if folder != path {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestRootKeepsLinksInside(t *testing.T) {
	outside := realTempDir(t)
	plantIn(t, outside, map[string]string{"secret": "of the host"})
	files := map[string]string{
		"data/file":      "inside",
		"data/absolute":  "-> /data/file",
		"data/relative":  "-> file",
		"data/above":     "-> ../../../../../../../../data/file",
		"data/folder":    "-> /data",
		"data/outside":   "-> " + outside + "/secret",
		"data/dotted":    "-> ../../../../../../../../../.." + outside + "/secret",
		"data/loop":      "-> loop",
		"data/magic":     "-> /proc/self/cwd",
		"proc/self/cwd/": "",
	}
	root := plant(t, files)
	t.Chdir(filepath.Dir(string(root)))
	for _, r := range []Root{root, root + "/", Root(filepath.Base(string(root))), Root("./" + filepath.Base(string(root)) + "//")} {
		for _, name := range []string{"/data/file", "data/file", "/data/absolute", "/data/relative", "/data/above", "/data/folder/file", "/../data/file", "/data/folder/folder/absolute"} {
			path, err := r.Path(name)
			if err != nil {
				t.Errorf("root %s: %v", r, err)
				continue
			}
			if want := filepath.Join(string(root), "data/file"); path != want {
				t.Errorf("root %s: Path(%s) = %s, want %s", r, name, path, want)
			}
			if got := r.Inside(path); got != "/data/file" {
				t.Errorf("root %s: Inside(%s) = %s", r, path, got)
			}
			if data, err := r.ReadFile(name); string(data) != "inside" {
				t.Errorf("root %s: ReadFile(%s) = %q, %v", r, name, data, err)
			}
		}
		for _, name := range []string{"/data/outside", "/data/dotted", "/absent"} {
			if path, err := r.Path(name); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("root %s: Path(%s) = %q, %v", r, name, path, err)
			}
			if data, err := r.ReadFile(name); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("root %s: ReadFile(%s) = %q, %v", r, name, data, err)
			}
		}
		if path, err := r.Path("/data/loop"); err == nil {
			t.Errorf("root %s: a loop leads to %s", r, path)
		}
		if path, err := r.Path("/data/magic"); path != filepath.Join(string(root), "proc/self/cwd") {
			t.Errorf("root %s: /data/magic leads to %q, %v", r, path, err)
		}
		if path, err := r.Path("/"); path != string(root) || r.Inside(path) != "/" {
			t.Errorf("root %s: Path(/) = %q, %v", r, path, err)
		}
		entries, err := r.ReadDir("/data/folder")
		if err != nil || len(entries) != len(files)-1 || entries[0].Name() != "above" {
			t.Errorf("root %s: ReadDir = %v, %v", r, entries, err)
		}
		if r.IsHost() {
			t.Errorf("root %s is taken for the host", r)
		}
	}
	if got := root.Inside(outside); got != outside {
		t.Errorf("Inside(%s) = %s, which is not below the root", outside, got)
	}
}

func TestRootOfHost(t *testing.T) {
	file := filepath.Join(realTempDir(t), "file")
	plantIn(t, filepath.Dir(file), map[string]string{"file": "x", "link": "-> file"})
	for _, r := range []Root{"", "/", "//", "/."} {
		if !r.IsHost() {
			t.Errorf("root %q is not the host", r)
		}
		path, err := r.Path(filepath.Dir(file) + "/link")
		if err != nil || path != file || r.Inside(path) != file {
			t.Errorf("root %q: Path = %q, %v", r, path, err)
		}
		if data, err := r.ReadFile(path); string(data) != "x" {
			t.Errorf("root %q: ReadFile = %q, %v", r, data, err)
		}
	}
}
