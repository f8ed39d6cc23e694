package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"
)

// Lines that real builds have failed with: Debian's *-dkms packages on kernels that are newer
// than they are, and tools that are not installed here.
func TestClassify(t *testing.T) {
	text, err := os.ReadFile("testdata/telling.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		want, line, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		found := &telling{}
		found.read(line)
		if got, _ := classify(line); string(got) != want || found.line+found.likely != line {
			t.Errorf("%q, want %q; telling %q, likely %q of %s", got, want, found.line, found.likely, line)
		}
	}
}

// The same words come from the compiler, make, modpost and pahole of today: one real failure
// of each class.
func TestRunClassifies(t *testing.T) {
	k := series(t, "6.12.")
	hello := func(lines string) map[string]string {
		return map[string]string{ManifestFile: helloManifest, "Kbuild": "obj-m := hello.o\n", "hello.c": "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\n" + lines}
	}
	with := func(files map[string]string, name, text string) map[string]string { files[name] += text; return files }
	prepared := func(script string) map[string]string {
		return with(with(hello(""), ManifestFile, "[build]\nprepare = [[\"sh\", \"prepare.sh\"]]\n"), "prepare.sh", script)
	}
	const uses = "#include <linux/wait.h>\n#include <linux/dma-buf.h>\nvoid f(void) { %s; }\nEXPORT_SYMBOL(f);\n"
	proprietary := hello(fmt.Sprintf(uses, "__wake_up_locked(0, 0, 0)"))
	proprietary["hello.c"] = strings.Replace(proprietary["hello.c"], "GPL", "Proprietary", 1)
	for name, c := range map[string]struct {
		files map[string]string
		class Class
		told  string // of the error
	}{
		"function gone": {hello("int f(void) { return nosuch(); }\n"), ClassAPI, "implicit declaration"},
		"member gone":   {hello("int f(void) { return THIS_MODULE->nosuch; }\n"), ClassAPI, "has no member named"},
		"macro's":       {hello("#include <linux/semaphore.h>\nDEFINE_SEMAPHORE(s);\n"), ClassAPI, "requires 2 arguments"},
		"callback":      {hello("#include <linux/platform_device.h>\nstatic int f(struct platform_device *d) { return 0; }\nstruct platform_driver d = { .shutdown = f };\n"), ClassAPI, "incompatible pointer type"},
		"kernel header": {hello("#include <asm/nosuch.h>\n"), ClassAPI, "No such file"},
		"too old":       {hello("#include <linux/version.h>\n#if LINUX_VERSION_CODE > KERNEL_VERSION(6,0,0)\n#error this kernel is too new\n#endif\n"), ClassAPI, "too new"},
		"header":        {hello("#include <libelf.h>\n"), ClassHeader, "libelf.h"},
		"own header":    {hello("#include \"own.h\"\n"), ClassSource, "own.h"},
		"own source":    {with(hello(""), "Kbuild", "obj-m += other.o\n"), ClassSource, "other.c"},
		"option":        {with(hello(""), "Kbuild", "ccflags-y += -fnosuch\n"), ClassCompiler, "unrecognized"},
		"plugin":        {with(with(hello(""), "Kbuild", "ccflags-y += -fplugin=$(src)/p.so\n"), "p.so", "no plugin"), ClassCompiler, "cannot load plugin"},
		"config":        {hello("#ifndef CONFIG_NOSUCH\n#error \"this driver needs CONFIG_NOSUCH\"\n#endif\n"), ClassConfig, "#error"},
		"symbol":        {hello("void nosuch(void);\n" + fmt.Sprintf(uses, "nosuch()")), ClassSymbol, "undefined!"},
		"license":       {proprietary, ClassLicense, "GPL-only"},
		"namespace":     {hello(fmt.Sprintf(uses, "dma_buf_put(0)")), ClassNamespace, "DMA_BUF"},
		"werror":        {with(hello("static int x;\n"), "Kbuild", "ccflags-y += -Werror\n"), ClassWerror, "defined but not used"},
		"memory":        {prepared("seq -s, 2000000 | sed 's/.*/int a[] = {&};/' > big.c\nulimit -v 100000\ngcc -c big.c\n"), ClassMemory, "memory"},
		// cc1 waits for what the pipe never brings, so it is there to be killed.
		"killed":     {prepared("mkfifo pipe.c\nexec 3<>pipe.c\ngcc -c pipe.c 3>&- &\nuntil kill -KILL $(grep -lx cc1 /proc/[0-9]*/comm | cut -d/ -f3) 2>/dev/null; do :; done\nwait $!\n"), ClassMemory, "Killed"},
		"disk":       {prepared("cat kmod.toml >/dev/full\n"), ClassDisk, "No space left"},
		"time":       {prepared("echo hello.c:1:1: error: x\nsleep 600\n"), ClassTime, "not done after"},
		"network":    {prepared("exec bash -c 'exec 3<>/dev/tcp/192.0.2.1/80'\n"), ClassNetwork, "no network"},
		"program":    {prepared("set -e\nnosuch-program\n"), ClassProgram, "not found"},
		"no program": {with(hello(""), ManifestFile, "[build]\nprepare = [[\"./configure\"]]\n"), ClassProgram, "./configure"},
		"patch":      {with(with(hello(""), ManifestFile, "[build]\npatches = [{ file = \"p\" }]\n"), "p", "--- a/Kbuild\n+++ b/Kbuild\n@@ -1 +1 @@\n-other\n+another\n"), ClassPatch, "does not apply"},
		"its own":    {hello("int f(void) { return 0 }\n"), "", "expected"},
	} {
		t.Run(name, func(t *testing.T) {
			if name != "killed" { // which kills every compiler that it sees
				t.Parallel()
			}
			j, log := job(t, k, tree(t, c.files))
			if c.class == ClassTime {
				j.TimeLimit = time.Second
			}
			_, _, err := Run(t.Context(), j)
			var failed *Error
			if !errors.As(err, &failed) || failed.Class != c.class || !strings.Contains(failed.Error(), c.told) || (failed.Header != "") != (c.class == ClassHeader) {
				t.Errorf("%#v\n%v\n%s", failed, err, log)
			}
			if ClassOf(err) != c.class || (c.class.Words() == "") != (c.class == "") {
				t.Errorf("%q, in words %q", ClassOf(err), c.class.Words())
			}
		})
	}
}

// pahole reads the kernel's own types from the vmlinux of the build tree.
func TestRunWithoutBTF(t *testing.T) {
	k := series(t, "6.12.")
	real, err := filepath.EvalSymlinks(k.Tree.Host)
	if err != nil {
		t.Fatal(err)
	}
	fake := *k.Tree
	fake.Host = filepath.Join(t.TempDir(), "tree")
	if err := os.Mkdir(fake.Host, 0o755); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(real)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.Symlink(filepath.Join(real, e.Name()), filepath.Join(fake.Host, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	vmlinux := filepath.Join(fake.Host, "vmlinux")
	if err := os.Remove(vmlinux); err != nil {
		t.Fatalf("these headers have no vmlinux: %v", err)
	}
	if err := os.WriteFile(vmlinux, []byte("no ELF file"), 0o644); err != nil {
		t.Fatal(err)
	}
	fake.Path, k.Tree = fake.Host, &fake
	j, log := job(t, k, tree(t, helloTree(t)))
	_, _, err = Run(t.Context(), j)
	if ClassOf(err) != ClassBTF {
		t.Errorf("%q of %v\n%s", ClassOf(err), err, log)
	}
}

func TestClassOf(t *testing.T) {
	for want, err := range map[Class]error{
		ClassTime:     &Error{Err: fmt.Errorf("make: %w", &TimeLimitError{})},
		ClassDisk:     fmt.Errorf("write log: %w", syscall.ENOSPC),
		ClassAPI:      fmt.Errorf("x: %w", &Error{Class: ClassAPI}),
		ClassCompiler: fmt.Errorf("find a compiler: %w", &exec.Error{Name: "gcc"}),
		ClassProgram:  &exec.Error{Name: "patch"},
		"":            context.Canceled,
	} {
		if got := ClassOf(err); got != want {
			t.Errorf("%q, want %q of %v", got, want, err)
		}
	}
}

func FuzzClassify(f *testing.F) {
	text, err := os.ReadFile("testdata/telling.txt")
	if err != nil {
		f.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		class, header := classify(line)
		if class != "" && class.Words() == "" || (class == ClassHeader) != (header != "") {
			t.Fatalf("%q %q", class, header)
		}
		if utf8.ValidString(line) && !utf8.ValidString(header) {
			t.Fatalf("%q", header)
		}
	})
}
