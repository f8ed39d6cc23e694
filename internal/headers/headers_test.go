package headers

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tree lists what is below a folder: of a file its rights and content, of a link where it leads.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			files[name] = info.Mode().String()
		case d.Type() == fs.ModeSymlink:
			to, err := os.Readlink(path)
			files[name] = "-> " + to
			return err
		default:
			text, err := os.ReadFile(path)
			files[name] = fmt.Sprintf("%v %q", info.Mode(), text)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func unpack(t testing.TB, files ...string) (map[string]string, error) {
	t.Helper()
	set, err := Open(files)
	if err != nil {
		return nil, err
	}
	dir := t.TempDir()
	if err := set.Unpack(t.Context(), dir); err != nil {
		return nil, err
	}
	return tree(t, dir), nil
}

// What a package brings is what its distribution's own program takes out of it, but for the
// folders that are not headers, for set-user-ID bits and for the place of /lib.
func TestDeb(t *testing.T) {
	source := t.TempDir()
	for name, text := range map[string]string{
		"DEBIAN/control":  "Package: linux-headers-6.1.0-test\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: test\n",
		"DEBIAN/postinst": "#!/bin/sh\ntouch /tmp/a-script-was-run\n",
		"usr/src/linux-headers-6.1.0-test/Makefile":                                          "include /usr/src/linux-headers-6.1.0-common/Makefile\n",
		"usr/src/linux-headers-6.1.0-test/include/" + strings.Repeat("long/", 60) + "name.h": "1\n",
		"usr/lib/linux-kbuild-6.1/scripts/basic/fixdep":                                      "#!/bin/sh\n",
		"usr/share/doc/linux-headers-6.1.0-test/changelog":                                   "old news\n",
		"lib/modules/6.1.0-test/kernel/drivers/net/dummy.ko":                                 "a module\n",
	} {
		path := filepath.Join(source, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	tool := "usr/lib/linux-kbuild-6.1/scripts/basic/fixdep"
	if err := errors.Join(
		os.Chmod(filepath.Join(source, tool), 0o755|fs.ModeSetuid),
		os.Chmod(filepath.Join(source, "usr/src/linux-headers-6.1.0-test/Makefile"), 0o600),
		os.Symlink("/usr/src/linux-headers-6.1.0-test", filepath.Join(source, "lib/modules/6.1.0-test/build")),
		os.Symlink("../../lib/linux-kbuild-6.1/scripts", filepath.Join(source, "usr/src/linux-headers-6.1.0-test/scripts")),
		os.Link(filepath.Join(source, tool), filepath.Join(source, tool+"-too")),
	); err != nil {
		t.Fatal(err)
	}
	for _, compression := range []string{"gzip", "xz", "zstd", "none"} {
		deb := filepath.Join(t.TempDir(), "x.deb")
		for _, argv := range [][]string{{"-Z" + compression, "--root-owner-group", "-b", source, deb}, {"-x", deb, deb + ".out"}} {
			if out, err := exec.Command("dpkg-deb", argv...).CombinedOutput(); err != nil {
				t.Fatalf("dpkg-deb %v: %v: %s", argv, err, out)
			}
		}
		want := map[string]string{"lib": "-> usr/lib", "usr": "drwxr-xr-x", "usr/lib": "drwxr-xr-x", "usr/lib/modules": "drwxr-xr-x", "usr/lib/modules/6.1.0-test": "drwxr-xr-x"}
		for name, what := range tree(t, deb+".out") {
			if strings.HasPrefix(name, "lib/modules/6.1.0-test/build") {
				name = "usr/" + name
			} else if name != "usr/src" && !isHeaders(name) {
				continue
			}
			want[name] = strings.NewReplacer("-rws", "-rwx", "urwx", "-rwx", "-rw-------", "-rw-r--r--").Replace(what)
		}
		got, err := unpack(t, deb)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-dpkg-deb +ours):\n%s", compression, err, diff)
		}
	}
}

// The packages were made by testdata/make.sh.
func TestRPM(t *testing.T) {
	const kernel = "usr/src/kernels/6.8.10-300.fc40.x86_64"
	file := func(text string) string { return fmt.Sprintf("-rw-r--r-- %q", text) }
	want := map[string]string{
		"lib":                      "-> usr/lib",
		kernel + "/.config":        file("CONFIG_X86_64=y\n"),
		kernel + "/Makefile":       file("# the top Makefile\n"),
		kernel + "/Module.symvers": file("0x92997ed8\t_printk\tvmlinux\tEXPORT_SYMBOL\t\n"),
		kernel + "/include/generated/utsrelease.h": file("#define UTS_RELEASE \"6.8.10-300.fc40.x86_64\"\n"),
		kernel + "/include/generated/one.h":        "-> ../one.h",
		kernel + "/include/one.h":                  file("one file of two names\n"),
		kernel + "/include/two.h":                  file("one file of two names\n"),
		kernel + "/include/empty.h":                file(""),
		kernel + "/include/void.h":                 file(""),
		kernel + "/scripts/basic/fixdep":           "-rwxr-xr-x \"#!/bin/sh\\n\"",
	}
	for name := range want {
		for dir := filepath.Dir(name); dir != "."; dir = filepath.Dir(dir) {
			want[dir] = "drwxr-xr-x"
		}
	}
	for _, compression := range []string{"gzip", "xz", "zstd"} {
		got, err := unpack(t, "testdata/kernel-devel."+compression+".rpm")
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", compression, err, diff)
		}
	}
}

// deb packs entries as a .deb; the content of a file is its Linkname.
func deb(entries ...tar.Header) []byte {
	var data, out bytes.Buffer
	z := gzip.NewWriter(&data)
	w := tar.NewWriter(z)
	for _, h := range entries {
		text := ""
		if h.Typeflag == tar.TypeReg {
			text, h.Linkname = h.Linkname, ""
			h.Size = int64(len(text))
		}
		h.Mode = 0o755
		if err := w.WriteHeader(&h); err != nil {
			panic(err)
		}
		w.Write([]byte(text))
	}
	w.Close()
	z.Close()
	out.WriteString(arMagic)
	for _, m := range []struct{ name, text string }{{"debian-binary", "2.0\n"}, {"data.tar.gz", data.String()}} {
		fmt.Fprintf(&out, "%-16s%-12d%-6d%-6d%-8s%-10d`\n%s", m.name, 0, 0, 0, "100644", len(m.text), m.text)
		if len(m.text)%2 == 1 {
			out.WriteByte('\n')
		}
	}
	return out.Bytes()
}

// Whatever a package tries, what it says is refused and nothing is written outside of the folder.
func TestHostile(t *testing.T) {
	const x = "./usr/src/x"
	file := tar.Header{Typeflag: tar.TypeReg, Name: x + "/Makefile", Linkname: "all:"}
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	named := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
	for name, tt := range map[string]struct {
		entries []tar.Header
		want    string // part of the error
	}{
		"out by ..":              {[]tar.Header{file, named("./usr/src/../../../evil")}, "not a plain path"},
		"out by .. at the start": {[]tar.Header{file, named("../evil")}, "not a plain path"},
		"a relative link out":    {[]tar.Header{file, link(x+"/l", "../../../../evil")}, "leads out"},
		"a hard link out":        {[]tar.Header{file, {Typeflag: tar.TypeLink, Name: x + "/l", Linkname: "../../etc/passwd"}}, "not a plain path"},
		"a hard link to a file that is not of the package": {[]tar.Header{file, {Typeflag: tar.TypeLink, Name: x + "/l", Linkname: "etc/passwd"}}, "no such file"},
		"through a link":         {[]tar.Header{link(x+"/l", "/etc"), named(x + "/l/evil")}, "comes twice"},
		"over a link":            {[]tar.Header{link(x+"/l", "/etc/evil"), named(x + "/l")}, "comes twice"},
		"through the root's own": {[]tar.Header{file, link("./usr/lib/linux-kbuild-1", "."), named("./usr/lib/linux-kbuild-1/y")}, "comes twice"},
		"twice":                  {[]tar.Header{file, file}, "comes twice"},
		"a folder below a file":  {[]tar.Header{file, named(x + "/Makefile/y")}, "comes twice"},
		"a device":               {[]tar.Header{file, {Typeflag: tar.TypeBlock, Name: x + "/sda"}}, "neither a file"},
		"a pipe":                 {[]tar.Header{file, {Typeflag: tar.TypeFifo, Name: x + "/pipe"}}, "neither a file"},
		"too big":                {[]tar.Header{file, {Typeflag: tar.TypeReg, Name: x + "/y", Linkname: "grow"}}, "too big"},
		"no headers":             {[]tar.Header{named("./etc/passwd"), {Typeflag: tar.TypeDir, Name: "./usr/src/"}}, "no kernel headers"},
		"nothing":                {nil, "no kernel headers"},
	} {
		t.Run(name, func(t *testing.T) {
			data := deb(tt.entries...)
			if tt.want == "too big" {
				data = bomb()
			}
			home := t.TempDir()
			path := filepath.Join(home, "x.deb")
			if err := errors.Join(os.WriteFile(path, data, 0o644), os.MkdirAll(filepath.Join(home, "a/b/c"), 0o755)); err != nil {
				t.Fatal(err)
			}
			set, err := Open([]string{path})
			if err != nil {
				t.Fatal(err)
			}
			if err := set.Unpack(t.Context(), filepath.Join(home, "a/b/c")); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("unpack: %v, want %s", err, tt.want)
			}
			for name := range tree(t, home) {
				if !strings.HasPrefix("a/b/c/", name+"/") && !strings.HasPrefix(name, "a/b/c/") && name != "x.deb" {
					t.Errorf("%s was written", name)
				}
			}
		})
	}
}

// bomb is a .deb whose only file claims to be larger than all that may be unpacked.
func bomb() []byte {
	var data, out bytes.Buffer
	z := gzip.NewWriter(&data)
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "usr/src/x", Size: maxUnpacked + 1, Mode: 0o644}); err != nil {
		panic(err)
	}
	z.Close()
	out.WriteString(arMagic)
	fmt.Fprintf(&out, "%-16s%-12d%-6d%-6d%-8s%-10d`\n%s", "data.tar.gz", 0, 0, 0, "100644", data.Len(), data.String())
	return out.Bytes()
}

// A stream ends at its limit, whatever the archive makes of it.
func TestBounded(t *testing.T) {
	b := &bounded{t.Context(), strings.NewReader("12345"), 4}
	if _, err := b.Read(make([]byte, 10)); err != errTooBig {
		t.Errorf("5 bytes of 4: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b = &bounded{ctx, strings.NewReader("1"), 4}
	if _, err := b.Read(make([]byte, 10)); err != context.Canceled {
		t.Errorf("cancelled: %v", err)
	}
}

// Cut short anywhere, a package is an error; so is one that changed since it was looked at.
func TestDamaged(t *testing.T) {
	packages := map[string][]byte{"deb": bytes.TrimSuffix(deb(tar.Header{Typeflag: tar.TypeReg, Name: "usr/src/x/Makefile", Linkname: "all:"}), []byte("\n"))}
	for _, compression := range []string{"gzip", "xz", "zstd"} {
		data, err := os.ReadFile("testdata/kernel-devel." + compression + ".rpm")
		if err != nil {
			t.Fatal(err)
		}
		packages[compression] = data
	}
	for name, whole := range packages {
		path := filepath.Join(t.TempDir(), name)
		for size := 0; size < len(whole); size += 7 {
			if err := os.WriteFile(path, whole[:size], 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := unpack(t, path); err == nil {
				t.Fatalf("%s: %d bytes of %d were taken for the whole", name, size, len(whole))
			}
		}
		if err := os.WriteFile(path, whole, 0o644); err != nil {
			t.Fatal(err)
		}
		set, err := Open([]string{path})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(whole, 0), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := set.Unpack(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "has changed") {
			t.Errorf("%s: changed: %v", name, err)
		}
	}
}

func TestSet(t *testing.T) {
	dir := t.TempDir()
	write := func(name, source string) string {
		path := filepath.Join(dir, name)
		h := tar.Header{Typeflag: tar.TypeReg, Name: "usr/src/" + source, Linkname: name}
		if err := os.WriteFile(path, deb(h), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	a, b, other := write("a", "x"), write("b", "y"), write("c", "x")
	digest := func(files ...string) string {
		t.Helper()
		set, err := Open(files)
		if err != nil {
			t.Fatal(err)
		}
		return set.Digest()
	}
	if digest(a, b) != digest(b, a, b) || digest(a, b) == digest(a) || digest(a) == digest(other) {
		t.Error("a digest does not stand for the content of a set")
	}
	if got, err := unpack(t, a, b, a); err != nil || got["usr/src/x"] == "" || got["usr/src/y"] == "" {
		t.Errorf("two packages: %v, %v", got, err)
	}
	if _, err := unpack(t, a, other); err == nil || !strings.Contains(err.Error(), `"usr/src/x": comes twice, or is in two of the packages`) {
		t.Errorf("two packages with the same file: %v", err)
	}
	for _, file := range []string{"testdata/make.sh", "/dev/null", "testdata"} {
		if _, err := Open([]string{file}); !errors.Is(err, errNoPackage) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(deb(tar.Header{Typeflag: tar.TypeReg, Name: "./usr/src/x/Makefile", Linkname: "all:"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "./lib/modules/1/build", Linkname: "/usr/src/x"},
		tar.Header{Typeflag: tar.TypeLink, Name: "./usr/src/x/y", Linkname: "./usr/src/x/Makefile"}))
	for _, compression := range []string{"gzip", "xz", "zstd"} {
		data, err := os.ReadFile("testdata/kernel-devel." + compression + ".rpm")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		home := t.TempDir()
		path := filepath.Join(home, "package")
		to := filepath.Join(home, "to")
		if err := errors.Join(os.WriteFile(path, data, 0o644), os.Mkdir(to, 0o755)); err != nil {
			t.Fatal(err)
		}
		set, err := Open([]string{path})
		if err != nil {
			return
		}
		set.Unpack(t.Context(), to)
		if outside, err := os.ReadDir(home); err != nil || len(outside) != 2 {
			t.Errorf("written outside of the folder: %v %v", outside, err)
		}
		for name, what := range tree(t, to) {
			if what[0] != 'd' && what != "-> usr/lib" && !isHeaders(name) || strings.HasPrefix(what, "u") {
				t.Errorf("%s: %.100s", name, what)
			}
		}
	})
}
