package loader_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"kmodctl/internal/vm"
	"kmodctl/loader"
)

// TestOnRealKernels runs testdata/guest on both series: see there.
func TestOnRealKernels(t *testing.T) {
	releases := installed(t)
	guest := filepath.Join(t.TempDir(), "guest")
	build := exec.Command("go", "build", "-o", guest, "./testdata/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build testdata/guest: %v\n%s", err, out)
	}
	built := make(map[string]string)
	for _, release := range releases {
		built[release] = kbuild(t, release, "testdata/answers", "../examples/stack")
	}
	for i, release := range releases {
		t.Run(release, func(t *testing.T) {
			foreign := built[releases[1-i]]
			var out bytes.Buffer
			exit, err := vm.Run(t.Context(), vm.Config{
				Image:  "/boot/vmlinuz-" + release,
				Init:   guest,
				Output: &out,
				Files: append(inTree(t, release, "8021q"),
					vm.File{Guest: "/mod/stack.ko", Host: built[release] + "/stack/stack.ko"},
					vm.File{Guest: "/mod/stack_user.ko", Host: built[release] + "/stack/stack_user.ko"},
					vm.File{Guest: "/mod/answers.ko", Host: built[release] + "/answers/answers.ko"},
					vm.File{Guest: "/copy/answers.ko", Host: built[release] + "/answers/answers.ko"},
					vm.File{Guest: "/mod/crash.ko", Host: built[release] + "/answers/crash.ko"},
					vm.File{Guest: "/mod/exitless.ko", Host: built[release] + "/answers/exitless.ko"},
					vm.File{Guest: "/foreign/stack.ko", Host: foreign + "/stack/stack.ko"},
				),
			})
			if err != nil || exit != 0 {
				t.Errorf("exit code %d, %v\n%s", exit, err, out.String())
			}
		})
	}
}

// kbuild builds copies of source folders for a release, below the returned folder.
func kbuild(t *testing.T, release string, sources ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, src := range sources {
		dst := filepath.Join(dir, filepath.Base(src))
		if err := os.CopyFS(dst, os.DirFS(src)); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("make", "-C", "/lib/modules/"+release+"/build", "M="+dst, "modules").CombinedOutput()
		if err != nil {
			t.Fatalf("build %s for %s (needs its linux-headers package): %v\n%s", src, release, err, out)
		}
	}
	return dir
}

// inTree returns the files of an in-tree module, of what it needs, and the index.
func inTree(t *testing.T, release, module string) (files []vm.File) {
	t.Helper()
	dir := "/lib/modules/" + release
	index := loader.OpenIndex("/", dir)
	path, deps, ok := index.Find(module)
	if !ok {
		t.Fatalf("%s has no module %s", release, module)
	}
	for _, name := range append(deps, path, dir+"/modules.dep", dir+"/modules.builtin") {
		files = append(files, vm.File{Guest: name, Host: name})
	}
	return files
}
