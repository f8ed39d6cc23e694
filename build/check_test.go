package build

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const suspect = `#include <linux/module.h>
#include <linux/spinlock.h>
#include "suspect.h"
static DEFINE_SPINLOCK(lock);
long suspect(void __user *p) { int *q = p; return *q; }
int unlocks(int x) { spin_lock(&lock); if (x) return helper(x); spin_unlock(&lock); return 0; }
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("suspect");
`

func suspectTree() map[string]string {
	return map[string]string{
		ManifestFile: helloManifest + "[build]\nprepare = [[\"sh\", \"-c\", \"echo hello.c:1:1: warning: of a step before\"]]\n",
		"Kbuild":     "obj-m := hello.o\nhello-y := a.o b.o\n", "a.c": suspect, "b.c": "#include <linux/module.h>\n#include \"suspect.h\"\n",
		"suspect.h": "static inline int helper(int x) { int unused; return x; }\n", "hello.c": "",
	}
}

// What the real compilers and sparse say of a source, on both series, and of nothing but the source.
func TestLook(t *testing.T) {
	const (
		unused = "suspect.h:1:39: warning: unused variable 'unused' [-Wunused-variable]"
		space  = "a.c:5:41: warning: incorrect type in initializer (different address spaces); expected int *q; got void [noderef] __user *p"
		locks  = "a.c:6:5: warning: context imbalance in 'unlocks' - wrong count at exit"
		proto  = "a.c:5:6: warning: no previous prototype for 'suspect' [-Wmissing-prototypes]"
	)
	for _, prefix := range []string{"6.1.", "6.12."} {
		k := series(t, prefix)
		for _, c := range []struct {
			check Check
			want  []string
			not   string
		}{
			{Check{Tool: CheckSparse}, []string{unused, space, locks, "a.c:5:6: warning: symbol 'suspect' was not declared. Should it be static?"}, ""},
			{Check{Warnings: "1"}, []string{unused, proto}, space},
			{Check{Tool: CheckSparse, Warnings: "12"}, []string{unused, space, proto}, ""},
		} {
			t.Run(fmt.Sprint(k.Name, c.check), func(t *testing.T) {
				t.Parallel()
				j, log := job(t, k, tree(t, suspectTree()))
				found, err := Look(t.Context(), j, c.check)
				if err != nil {
					t.Fatalf("%v\n%s", err, log)
				}
				var lines []string
				for _, f := range found {
					lines = append(lines, f.String())
					if !slices.Contains([]string{"a.c", "b.c", "suspect.h"}, f.File) {
						t.Errorf("not the author's: %s", f)
					}
				}
				for _, want := range c.want {
					if !slices.Contains(lines, want) {
						t.Errorf("not found: %s", want)
					}
				}
				if len(slices.Compact(slices.Clone(lines))) != len(lines) || slices.Contains(lines, c.not) {
					t.Errorf("found too much")
				}
				if t.Failed() {
					t.Logf("%s\n%s", strings.Join(lines, "\n"), log)
				}
			})
		}
	}
}

func TestLookAtAFlawlessSource(t *testing.T) {
	files := helloTree(t)
	files["hello.c"] = "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\nMODULE_DESCRIPTION(\"hello\");\n"
	j, log := job(t, series(t, "6.12."), tree(t, files))
	if found, err := Look(t.Context(), j, Check{CheckSparse, "1"}); err != nil || len(found) > 0 {
		t.Errorf("%v, %v\n%s", found, err, log)
	}
}

// The symbols of another package are not there for a look, and it does without.
func TestLookAtOneThatNeedsAnother(t *testing.T) {
	files := helloTree(t)
	files[ManifestFile] += "[build]\nneeds = [\"other\"]\n"
	files["hello.c"] = "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\nMODULE_DESCRIPTION(\"hello\");\n" +
		"void others(void);\nstatic int __init hello_init(void) { others(); return 0; }\nmodule_init(hello_init);\n"
	j, log := job(t, series(t, "6.12."), tree(t, files))
	if found, err := Look(t.Context(), j, Check{Tool: CheckSparse}); err != nil || len(found) > 0 {
		t.Errorf("%v, %v\n%s", found, err, log)
	}
}

// What cannot be looked at says so.
func TestLookFails(t *testing.T) {
	k := series(t, "6.12.")
	var refused *CheckError
	for _, tool := range []string{CheckClang, CheckCheckpatch} { // gcc built it, and Debian ships none
		j, _ := job(t, k, tree(t, suspectTree()))
		if _, err := Look(t.Context(), j, Check{Tool: tool}); !errors.As(err, &refused) || refused.Tool != tool || refused.Release != k.Name {
			t.Errorf("%s: %v", tool, err)
		}
	}

	files := suspectTree()
	files["b.c"] = "int broken(void) { return nothing; }\n"
	j, log := job(t, k, tree(t, files))
	_, err := Look(t.Context(), j, Check{Tool: CheckSparse})
	var failed *Error
	if !errors.As(err, &failed) || failed.Class != ClassAPI || !strings.HasPrefix(failed.Line, "b.c:1:27: error: 'nothing' undeclared") {
		t.Errorf("%v\n%s", err, log)
	}

	j, _ = job(t, k, tree(t, helloTree(t)))
	programs(t, "make")
	var program *exec.Error
	if _, err = Look(t.Context(), j, Check{Tool: CheckSparse}); !errors.As(err, &program) || program.Name != "sparse" {
		t.Errorf("without sparse: %v", err)
	}
}

// A build tree that ships checkpatch.pl, as Fedora's kernel-devel does. The script is a stand-in that
// speaks as the real one does with these options: no package of Debian has the real one alone.
func TestLookWithCheckpatch(t *testing.T) {
	k := series(t, "6.12.")
	dir := filepath.Join(t.TempDir(), "tree")
	if err := os.MkdirAll(filepath.Join(dir, "scripts"), 0o755); err != nil {
		t.Fatal(err)
	}
	script := `die "@ARGV" unless @ARGV == 5 && "@ARGV[0..3]" eq "--no-tree --terse --no-summary --file";
my $file = $ARGV[4];
open(my $in, "<", $file) or die $!;
while (<$in>) { if (/__user \*p/) { print "$file:$.: WARNING: stand-in\n"; $bad = 1 } }
exit($bad);
`
	if err := os.WriteFile(filepath.Join(dir, "scripts/checkpatch.pl"), []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
	fake := *k.Tree
	fake.Host, fake.Path, k.Tree = dir, dir, &fake
	for content, want := range map[string]string{suspect: "[sub/a.c:5: warning: stand-in]", "int fine;\n": "[]"} {
		files := helloTree(t)
		files["sub/a.c"], files["$(touch here).c"] = content, suspect
		m, err := CheckSource(tree(t, files))
		if err != nil {
			t.Fatal(err)
		}
		j, log := job(t, series(t, "6.12."), tree(t, files))
		j.Manifest, j.Kernel = m, k
		if found, err := Look(t.Context(), j, Check{Tool: CheckCheckpatch}); err != nil || fmt.Sprint(found) != want {
			t.Errorf("%v, %v, want %s\n%s", found, err, want, log)
		}
	}
}

// Where clang built the kernel, it is clang that looks.
func TestClangChecks(t *testing.T) {
	k := series(t, "6.1.")
	j, _ := job(t, k, tree(t, helloTree(t)))
	j.Toolchain = &Toolchain{CC: "clang-14", Path: "/usr/bin/clang-14"}
	r := &run{Job: j, check: &Check{Tool: CheckClang}}
	vars, err := r.checkVariables()
	command := append(r.kbuild(), vars...)
	for _, want := range []string{"CC=/usr/bin/clang-14", "LLVM=-14", "C=1", "CHECK=/usr/bin/clang-14 --analyze --analyzer-output text"} {
		if err != nil || !slices.Contains(command, want) {
			t.Errorf("%q lacks %s, %v", command, want, err)
		}
	}
	const said = "b.c:5:80: warning: Dereference of null pointer (loaded from variable 'z') [core.NullDereference]" // by clang 14
	if f, ok := r.finding(said); !ok || f.String() != said {
		t.Errorf("%v of %s", f, said)
	}
}

func FuzzFinding(f *testing.F) {
	for _, seed := range []string{
		"/w/a.c:5:41: warning: incorrect type\n/w/a.c:5:41:    expected int",
		"a.c:3: WARNING: long line",
		"a.c:99999999999999999999:1: error: x",
		"a.c:1:99999999999999999999: fatal error: x",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, log string) {
		r := &run{wall: wall{Work: "/w"}}
		for line := range strings.Lines(log) {
			if found, ok := r.finding(strings.TrimSuffix(line, "\n")); ok {
				if found.File == "" || found.Text == "" || found.Line < 0 || found.Column < 0 || !slices.Contains([]string{"error", "warning", "check"}, found.Severity) {
					t.Fatalf("%#v", found)
				}
				r.findings = append(r.findings, found)
			}
		}
	})
}
