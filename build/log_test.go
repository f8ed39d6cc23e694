package build

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Each log is what the program printed, shortened to what matters.
func TestTellingLine(t *testing.T) {
	source := tree(t, map[string]string{"hello.c": "a\nb\n\treturn x;\n", "sub/deep.c": "one\r\n"})
	for _, c := range []struct{ name, log, line, code string }{
		{"gcc", `make: Entering directory '/usr/src/linux-headers-6.1.0-56-amd64'
  CC [M]  /tmp/kmodctl/hello-1.0/hello.o
/tmp/kmodctl/hello-1.0/hello.c: In function 'hello_init':
/tmp/kmodctl/hello-1.0/hello.c:2:5: warning: unused variable 'y' [-Wunused-variable]
/tmp/kmodctl/hello-1.0/hello.c:3:16: error: 'x' undeclared (first use in this function)
    3 |         return x;
      |                ^
/tmp/kmodctl/hello-1.0/sub/deep.c:1:1: error: second
make[1]: *** [/usr/src/linux-headers-6.1.0-56-common/scripts/Makefile.build:255: /tmp/kmodctl/hello-1.0/hello.o] Error 1
make: *** [/usr/src/linux-headers-6.1.0-56-common/Makefile:2034: /tmp/kmodctl/hello-1.0] Error 2`,
			"hello.c:3:16: error: 'x' undeclared (first use in this function)", "3 | \treturn x;"},
		{"clang, and a path that is relative since 6.13", "sub/deep.c:1:8: fatal error: 'linux/nothing.h' file not found\n",
			"sub/deep.c:1:8: fatal error: 'linux/nothing.h' file not found", "1 | one"},
		{"error in the kernel's header", "/usr/src/linux/include/linux/a.h:3:1: error: static assertion failed: \"x\"\n",
			"/usr/src/linux/include/linux/a.h:3:1: error: static assertion failed: \"x\"", ""},
		{"line beyond the file", "hello.c:99:1: error: x\n", "hello.c:99:1: error: x", ""},
		{"file outside", "../../../etc/passwd:1:1: error: x\n", "../../../etc/passwd:1:1: error: x", ""},
		{"driver", "x86_64-linux-gnu-gcc-12: error: unrecognized command-line option '-mfoo'\n",
			"x86_64-linux-gnu-gcc-12: error: unrecognized command-line option '-mfoo'", ""},
		{"cc1", "cc1: error: bad value 'x' for '-mtune=' switch\n", "cc1: error: bad value 'x' for '-mtune=' switch", ""},
		{"as", "/tmp/kmodctl/hello-1.0/entry.S: Assembler messages:\n/tmp/kmodctl/hello-1.0/entry.S:4: Error: no such instruction: `frob'\n",
			"entry.S:4: Error: no such instruction: `frob'", ""},
		{"modpost", `  MODPOST /tmp/kmodctl/hello-1.0/Module.symvers
ERROR: modpost: "nothing_here" [/tmp/kmodctl/hello-1.0/hello.ko] undefined!
make[1]: *** [/usr/src/linux-headers-6.1.0-56-common/scripts/Makefile.modpost:126: /tmp/kmodctl/hello-1.0/Module.symvers] Error 1`,
			`ERROR: modpost: "nothing_here" [hello.ko] undefined!`, ""},
		{"modpost before 5.8", "ERROR: \"nothing_here\" [/tmp/kmodctl/hello-1.0/hello.ko] undefined!\n", `ERROR: "nothing_here" [hello.ko] undefined!`, ""},
		{"ld", "ld: hello.o: in function `f':\nhello.c:(.text+0x5): undefined reference to `g'\n", "hello.c:(.text+0x5): undefined reference to `g'", ""},
		{"lld", "ld.lld: error: undefined symbol: g\n>>> referenced by hello.c\n", "ld.lld: error: undefined symbol: g", ""},
		{"ld, no file", "x86_64-linux-gnu-ld: cannot find a.o: No such file or directory\n", "x86_64-linux-gnu-ld: cannot find a.o: No such file or directory", ""},
		{"make, no rule", "make[1]: *** No rule to make target '/tmp/kmodctl/hello-1.0/hello.o', needed by '/tmp/kmodctl/hello-1.0/hello.mod'.  Stop.\nmake: *** [Makefile:2034: x] Error 2\n",
			"make[1]: *** No rule to make target 'hello.o', needed by 'hello.mod'.  Stop.", ""},
		{"make, no source", "make[3]: *** No rule to make target '/tmp/kmodctl/hello-1.0/sub/frist.o', needed by '/tmp/kmodctl/hello-1.0/sub/frist.mod'.  Stop.\n",
			"sub/Kbuild names sub/frist.o, but there is no sub/frist.c (or .S, .rs)", ""},
		{"make, a path that is relative since 6.13", "make[3]: *** No rule to make target 'frist.o', needed by 'frist.mod'.  Stop.\n",
			"Kbuild names frist.o, but there is no frist.c (or .S, .rs)", ""},
		{"make, no rule for the kernel's own", "make[3]: *** No rule to make target '/usr/src/linux/x.o', needed by 'a'.  Stop.\n",
			"make[3]: *** No rule to make target '/usr/src/linux/x.o', needed by 'a'.  Stop.", ""},
		{"full disk", "hello.c:1:1: fatal error: x\n/tmp/ccx.s: Fatal error: can't close hello.o: No space left on device\nmake[2]: *** [Makefile:1: hello.o] Error 1\n",
			"/tmp/ccx.s: Fatal error: can't close hello.o: No space left on device", ""},
		{"fixdep, which does not say why", "fixdep: not all data was written to the output\nmake[1]: *** [scripts/Makefile.build:255: /tmp/kmodctl/hello-1.0/hello.o] Error 1\n",
			"fixdep: not all data was written to the output", ""},
		{"dash, which does not say why", "/bin/sh: 1: printf: printf: I/O error\nmake[1]: *** [scripts/Makefile.modfinal:60: /tmp/kmodctl/hello-1.0/hello.ko] Error 1\n",
			"/bin/sh: 1: printf: printf: I/O error", ""},
		{"make, syntax", "hello.c:3: *** missing separator.  Stop.\n", "hello.c:3: *** missing separator.  Stop.", "3 | \treturn x;"},
		{"shell", "/bin/sh: 1: flex: not found\nmake: *** [Makefile:1: x] Error 127\n", "/bin/sh: 1: flex: not found", ""},
		{"shell, but that was not it", "/bin/sh: 1: dpkg: not found\nhello.c:1:1: error: x\n", "hello.c:1:1: error: x", "1 | a"},
		{"make alone", "make[2]: *** [Makefile:7: thing] Error 3\nmake: *** [Makefile:2: all] Error 2\n", "make[2]: *** [Makefile:7: thing] Error 3", ""},
		{"patch", "patching file hello.c\nHunk #1 FAILED at 3.\n1 out of 1 hunk FAILED -- saving rejects to file hello.c.rej\n", "Hunk #1 FAILED at 3.", ""},
		{"patch, garbage", "patch: **** Only garbage was found in the patch input.\n", "patch: **** Only garbage was found in the patch input.", ""},
		{"configure", "checking for gcc... yes\nconfigure: error: no kernel source\n", "configure: error: no kernel source", ""},
		{"nothing", "  CC [M]  hello.o\n", "", ""},
		{"no end of line", "hello.c:1:1: error: cut", "hello.c:1:1: error: cut", "1 | a"},
	} {
		var kept strings.Builder
		found := &telling{}
		l := &lines{to: &kept, each: found.read}
		for _, b := range []byte(c.log) { // as slowly as a pipe may be
			l.Write([]byte{b})
		}
		l.flush()
		line, code := found.explain(source, "/tmp/kmodctl/hello-1.0")
		if line != c.line || strings.Join(code, "\n") != c.code {
			t.Errorf("%s:\n got %q %q\nwant %q %q", c.name, line, code, c.line, c.code)
		}
		if kept.String() != c.log {
			t.Errorf("%s: the log was changed", c.name)
		}
	}
}

// A link that the build left in its copy must not show a file of the machine.
func TestSourceLineStaysInside(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	source := tree(t, map[string]string{"link.c": "-> " + secret, "ok.c": "fine\n"})
	if text, ok := sourceLine(source, "link.c", 1); ok {
		t.Errorf("read %q through a link", text)
	}
	if text, ok := sourceLine(source, "ok.c", 1); !ok || text != "fine" {
		t.Errorf("read %q, %v", text, ok)
	}
}

// A file of any size, line of any length, pipe of any name: none is read in whole.
func TestSourceLineIsBounded(t *testing.T) {
	source := tree(t, map[string]string{"huge.c": "one\n" + strings.Repeat("x", 100<<10) + "\nthree\n"})
	if err := os.Truncate(filepath.Join(source, "huge.c"), 4<<40); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(source, "pipe.c"), 0o600); err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]string{1: "one", 2: strings.Repeat("x", lineLen), 3: "three"} {
		if text, ok := sourceLine(source, "huge.c", n); !ok || text != want {
			t.Errorf("line %d: %q, %v", n, text, ok)
		}
	}
	for _, name := range []string{"huge.c", "pipe.c"} {
		if text, ok := sourceLine(source, name, 5); ok {
			t.Errorf("line 5 of %s: %q", name, text)
		}
	}
}

// A build that never stops talking fills no disk, and what it died of is still found.
func TestLogIsBounded(t *testing.T) {
	k := series(t, "6.1.")
	files := map[string]string{ManifestFile: helloManifest, "Kbuild": "$(shell yes | head -c 70000000 >&2; echo 'hello.c:1:1: error: boo' >&2)\n$(error no more)\n", "hello.c": "one\n"}
	j, log := job(t, k, tree(t, files))
	_, _, err := Run(t.Context(), j)
	if want := "build hello for " + k.Name + ": hello.c:1:1: error: boo"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if end := "\nlog cut at 64 MiB\n"; log.Len() != logLen+len(end) || !strings.HasSuffix(log.String(), end) {
		t.Errorf("%d bytes, the last are %q", log.Len(), log.Bytes()[max(log.Len()-80, 0):])
	}
}

// badDisk fails at its n-th write.
type badDisk struct{ n int }

func (d *badDisk) Write(p []byte) (int, error) {
	if d.n--; d.n == 0 {
		return 0, unix.EIO
	}
	return len(p), nil
}

// A build whose log could not be written, be it what make printed, is not one that went well.
func TestLogCannotBeWritten(t *testing.T) {
	k := series(t, "6.1.")
	j, _ := job(t, k, tree(t, helloTree(t)))
	disk := &badDisk{6} // isolation, make's command line and others come before
	j.Log = disk
	if built, _, err := Run(t.Context(), j); !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "write log") || built != nil {
		t.Errorf("%v, %v", built, err)
	}
	if disk.n > 0 {
		t.Errorf("it was never written to so often: %d", disk.n)
	}
}

func FuzzTellingLine(f *testing.F) {
	f.Add("hello.c:3:16: error: 'x' undeclared\n")
	f.Add("ok.c:1: *** missing separator.  Stop.\nERROR: modpost: \"a\" undefined!")
	f.Add("a:99999999999999999999:1: error: \xff" + strings.Repeat("é", lineLen))
	source := f.TempDir()
	if err := os.WriteFile(filepath.Join(source, "ok.c"), []byte("fine\n"), 0o644); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, log string) {
		found := &telling{}
		l := &lines{to: io.Discard, each: found.read}
		l.Write([]byte(log))
		l.flush()
		line, code := found.explain(source, "/w")
		if !utf8.ValidString(line) || len(line) > 3*lineLen || strings.Contains(line, "\n") || len(code) > 1 {
			t.Fatalf("%q %q", line, code)
		}
	})
}
