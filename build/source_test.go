package build

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// tree writes files into a new folder: name to content, "-> x" for a link.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, link := strings.CutPrefix(content, "-> "); link {
			err = os.Symlink(to, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const helloManifest = "name = \"hello\"\nversion = \"1.0\"\n"

func TestCheckSource(t *testing.T) {
	patched := helloManifest + "[build]\npatches = [{ file = \"p/a.patch\" }]\n"
	configured := helloManifest + "[build]\nprepare = [[\"./configure\"]]\n"
	for name, files := range map[string]map[string]string{
		"Kbuild":            {ManifestFile: helloManifest, "Kbuild": ""},
		"Makefile":          {ManifestFile: helloManifest, "Makefile": ""},
		"patch":             {ManifestFile: patched, "Kbuild": "", "p/a.patch": ""},
		"Makefile to come":  {ManifestFile: configured, "configure": ""},
		"links inside":      {ManifestFile: helloManifest, "Kbuild": "", "src/a.h": "-> ../a.h", "a.h": "", "later.h": "-> gen/later.h"},
		"version control":   {ManifestFile: helloManifest, "Kbuild": "", ".git/hooks": "-> /usr/share/git"},
		"manifest's link":   {ManifestFile: "-> m/kmod.toml", "m/kmod.toml": helloManifest, "Kbuild": ""},
		"name with a space": {ManifestFile: helloManifest, "Kbuild": "", "read me": ""},
	} {
		if _, err := CheckSource(tree(t, files)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, c := range map[string]struct {
		files map[string]string
		want  string // DIR stands for the folder
	}{
		"no manifest":       {map[string]string{"Kbuild": ""}, "read DIR/kmod.toml: no such file or directory"},
		"no Makefile":       {map[string]string{ManifestFile: helloManifest}, "check source DIR: neither a Makefile nor a Kbuild file, and kbuild needs one"},
		"bad manifest":      {map[string]string{ManifestFile: "nmae = 'x'", "Kbuild": ""}, `read DIR/kmod.toml:1:1: unknown key "nmae" (nearest: "name")`},
		"no patch":          {map[string]string{ManifestFile: patched, "Kbuild": ""}, "check source DIR: the patch p/a.patch of kmod.toml is not a file"},
		"link out":          {map[string]string{ManifestFile: helloManifest, "Kbuild": "", "src/x": "-> ../../x"}, "check source DIR/src/x: the link to ../../x leads out of the source"},
		"absolute link":     {map[string]string{ManifestFile: helloManifest, "Kbuild": "", "x": "-> /etc/passwd"}, "check source DIR/x: the link to /etc/passwd leads out of the source"},
		"link to itself":    {map[string]string{ManifestFile: helloManifest, "Kbuild": "", "x": "-> x"}, "check source DIR/x: the link to x leads out of the source"},
		"link to a link":    {map[string]string{ManifestFile: helloManifest, "Kbuild": "", "a": "-> b", "b": "-> .."}, "check source DIR/a: the link to b leads out of the source"},
		"manifest is a dir": {map[string]string{ManifestFile + "/x": "", "Kbuild": ""}, "read DIR/kmod.toml: not a regular file"},
		"manifest outside":  {map[string]string{ManifestFile: "-> /etc/hostname", "Kbuild": ""}, "read DIR/kmod.toml: path escapes from parent"},
	} {
		dir := tree(t, c.files)
		_, err := CheckSource(dir)
		if want := strings.ReplaceAll(c.want, "DIR", dir); err == nil || err.Error() != want {
			t.Errorf("%s:\n got %v\nwant %s", name, err, want)
		}
	}
}

func TestCheckSourceSpecialFile(t *testing.T) {
	dir := tree(t, map[string]string{ManifestFile: helloManifest, "Kbuild": ""})
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := CheckSource(dir)
	if want := "check source " + dir + "/pipe: neither a file, a folder nor a link"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestCheckSourceNoFolder(t *testing.T) {
	_, err := CheckSource(filepath.Join(t.TempDir(), "gone"))
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "gone: no such file or directory") {
		t.Errorf("%v", err)
	}
}
