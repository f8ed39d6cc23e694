package loader

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
)

// TestNoFalseAlarm checks a plan of all modules that came with a kernel, by Module.symvers and by the kernel's image: none may
// be refused.
func TestNoFalseAlarm(t *testing.T) {
	for _, series := range []string{"6.1.", "6.12."} {
		release := installedSeries(t, series)
		plan, index := everyModule(t, release)
		for name, headers := range map[string]bool{"headers": true, "image": false} {
			if testing.Short() && (series != "6.1." || !headers) {
				continue
			}
			t.Run(release+" by its "+name, func(t *testing.T) {
				target := NewTarget("/", release, index, nil, nil)
				target.Thorough = true
				if !headers {
					target.kernel = func() kernel.Release {
						return kernel.Release{Name: release, Root: "/", Image: "/boot/vmlinuz-" + release}
					}
				}
				findings := Check(plan, target)
				staging := 0
				for _, f := range findings {
					if f.Cause == CauseTaint && f.Severity == Warning && strings.HasSuffix(f.Text, ": C") {
						staging++
						continue
					}
					t.Errorf("%+v", f)
				}
				t.Logf("%d modules, %d of them from the staging tree", len(plan.Steps), staging)
				if len(plan.Steps) < 1000 || staging == 0 {
					t.Errorf("%d modules, %d of the staging tree: too few to tell", len(plan.Steps), staging)
				}
			})
		}
	}
}

// Without headers it is the index that knows which module exports what nothing has brought.
func TestExporterWithoutHeaders(t *testing.T) {
	release := installedSeries(t, "6.12.")
	index := OpenIndex("/", "/lib/modules/"+release)
	path, _, ok := index.Find("stp")
	if !ok {
		t.Fatal("no module stp")
	}
	target := NewTarget("/", release, index, nil, nil)
	target.Thorough = true
	target.kernel = func() kernel.Release {
		return kernel.Release{Name: release, Root: "/", Image: "/boot/vmlinuz-" + release}
	}
	first, _ := FirstRefused(Check(&Plan{Steps: []Step{{Action: Insert, Module: "stp", Path: path}}}, target))
	if first.Cause != CauseSymbolMissing || len(first.Evidence) == 0 || !strings.HasSuffix(first.Evidence[0], "is exported by module llc, which nothing here loads before it") {
		t.Errorf("got %+v", first)
	}
}

// everyModule is a plan that inserts all that modules.dep has, dependencies first.
func everyModule(t *testing.T, release string) (*Plan, *Index) {
	t.Helper()
	dir := "/lib/modules/" + release
	index := OpenIndex("/", dir)
	dep, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		t.Fatal(err)
	}
	plan, planned := &Plan{}, map[string]bool{}
	for line := range strings.Lines(string(dep)) {
		file, _, _ := strings.Cut(line, ":")
		if !strings.HasPrefix(file, "kernel/") {
			continue // not what came with the kernel
		}
		path, deps, ok := index.Find(ko.NameOfFile(file))
		if !ok {
			t.Fatalf("%s is not in the index", file)
		}
		for _, path := range append(deps, path) {
			if name := ko.NameOfFile(path); !planned[name] {
				planned[name] = true
				plan.Steps = append(plan.Steps, Step{Action: Insert, Module: name, Path: path})
			}
		}
	}
	return plan, index
}

// installedSeries is an installed release of a series, "6.1.".
func installedSeries(t testing.TB, series string) string {
	t.Helper()
	found, _ := filepath.Glob("/lib/modules/" + series + "*/kernel")
	if len(found) == 0 {
		t.Fatalf("no kernel %sx in /lib/modules: apt install a linux-image of that series with its headers", series)
	}
	return filepath.Base(filepath.Dir(found[len(found)-1]))
}
