package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kmodctl/internal/ko"
)

// awkward puts into its bytes whatever the compiler tells of where, when and by whom it is called.
var awkward = map[string]string{
	ManifestFile: "name = \"awkward\"\nversion = \"1.0\"\nmodule = [{ name = \"awkward\", dir = \"sub\" }]\n",
	"Kbuild":     "obj-m := sub/\n",
	"sub/Kbuild": "obj-m := awkward.o\nawkward-y := main.o code.o\nccflags-y := -I$(src)/../include -Wno-error=date-time -Wno-date-time\n",
	"sub/main.c": `#include <linux/module.h>
#include <where.h>
asmlinkage int awkward_code(void);
static int __init awkward_init(void)
{
	WARN_ON(awkward_code());
	pr_info("%s %s %s %s %s\n", __FILE__, __BASE_FILE__, where(), __DATE__, __TIME__);
	return 0;
}
static void __exit awkward_exit(void) { }
module_init(awkward_init);
module_exit(awkward_exit);
MODULE_LICENSE("GPL");
`,
	"include/where.h": "static inline const char *where(void) { BUG_ON(!THIS_MODULE); return __FILE__; }\n",
	"sub/code.S": `#include <linux/linkage.h>
SYM_FUNC_START(awkward_code)
	xorl %eax, %eax
	RET
SYM_FUNC_END(awkward_code)
	.section .rodata
	.asciz __FILE__
`,
}

// Two people who build the same source get the same bytes: in other folders, as other
// users, with another -j, one of them where there is no namespace to hide that in.
func TestRunIsReproducible(t *testing.T) {
	sources := map[string]string{"awkward": tree(t, awkward)}
	examples, err := filepath.Glob("../examples/*/" + ManifestFile)
	if err != nil || len(examples) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, file := range examples {
		dir := filepath.Dir(file)
		sources[filepath.Base(dir)] = dir
	}
	for _, prefix := range []string{"6.1.", "6.12."} {
		k := series(t, prefix)
		for name, source := range sources {
			t.Run(name+" "+prefix, func(t *testing.T) {
				t.Parallel()
				here, there := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "somewhere/else/b")
				for _, dir := range []string{here, there} {
					if err := os.CopyFS(dir, os.DirFS(source)); err != nil {
						t.Fatal(err)
					}
				}
				j, log := job(t, k, here)
				j.Jobserver = jobserver(t, 4) // the other has none
				built, _, err := Run(t.Context(), j)
				if err != nil {
					t.Fatalf("%v\n%s", err, log)
				}
				open(t, there)
				cmd := helperCommand(t.Context(), there, k.Name)
				cmd.Env = append(cmd.Env, helperLevel+"="+LevelLandlock)
				asUser(t, cmd, there)
				if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "isolation: landlock: no namespaces (refused: ") {
					t.Fatalf("%v\n%s", err, out)
				}
				for _, b := range built {
					rel, err := filepath.Rel(here, b.File)
					if err != nil {
						t.Fatal(err)
					}
					same(t, b.File, filepath.Join(there, rel))
				}
			})
		}
	}
}

// same compares two stripped modules and names the sections that differ.
func same(t *testing.T, a, b string) {
	t.Helper()
	var data [2][]byte
	for i, file := range []string{a, b} {
		var err error
		if data[i], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	differences, err := ko.Differ(data[0], data[1])
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range differences {
		t.Errorf("%s: %s differs: %s", filepath.Base(a), d.Section, d.How)
	}
}
