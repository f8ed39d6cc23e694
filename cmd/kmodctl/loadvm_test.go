package main

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kmodctl/internal/vm"
)

// raceMark begins a line with a raced.
const raceMark = "RACE "

// raced is how long loads of one module with its ten dependencies took, ours and modprobe's in turn.
type raced struct {
	What         string
	Ours, Theirs []time.Duration
}

func (r raced) medians() (ours, theirs float64) {
	slices.Sort(r.Ours)
	slices.Sort(r.Theirs)
	return milliseconds(r.Ours[len(r.Ours)/2]), milliseconds(r.Theirs[len(r.Theirs)/2])
}

// TestLoadsOnRealKernels has many load at once, and a module with ten dependencies loaded by kmodctl and by modprobe: loader/testdata/deps.
func TestLoadsOnRealKernels(t *testing.T) {
	for _, release := range releases(t) {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			files := loadFiles(t, release)
			bootGuest(t, release, guestLoads, vm.Config{Files: files})
			for _, r := range raceInGuest(t, release, 3, files) {
				ours, theirs := r.medians()
				if r.What == slowInits && ours >= theirs {
					t.Errorf("%s: modules that do not need each other were not loaded at once", r.What)
				}
				t.Logf("load of a module with 10 dependencies, %s: kmodctl %.1f ms, modprobe %.1f ms, ratio %.2f", r.What, ours, theirs, ours/theirs)
			}
		})
	}
}

// BenchmarkLoadInGuest is the load of a module with ten dependencies in a virtual machine, by kmodctl and by modprobe in turn:
// the goal is a ratio below 1. An emulated guest's milliseconds are millions of instructions.
func BenchmarkLoadInGuest(b *testing.B) {
	for _, release := range releases(b) {
		files := loadFiles(b, release)
		var all []raced
		b.Run(release, func(b *testing.B) {
			for b.Loop() {
				all = raceInGuest(b, release, 5, files)
			}
			for _, r := range all {
				ours, theirs := r.medians()
				what := strings.ReplaceAll(r.What, " ", "-")
				b.ReportMetric(ours, what+"-ours-ms")
				b.ReportMetric(theirs, what+"-peer-ms")
				b.ReportMetric(ours/theirs, what+"-ratio")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// loadFiles builds loader/testdata for a release: what a guest needs to load it, by kmodctl and by modprobe.
func loadFiles(t testing.TB, release string) []vm.File {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	extra := filepath.Join(root, "lib/modules", release, "extra")
	for _, source := range []string{"deps", "answers"} {
		kbuild(t, release, filepath.Join("../../loader/testdata", source), extra)
	}
	if out, err := exec.Command("depmod", "-b", root, release).CombinedOutput(); err != nil {
		t.Fatalf("depmod: %v\n%s", err, out)
	}
	return append(program(t, "modprobe"),
		vm.File{Guest: guestBinary, Host: path},
		vm.File{Guest: filepath.Join("/lib/modules", release), Host: filepath.Join(root, "lib/modules", release)})
}

// raceInGuest lets kmodctl and modprobe load in turn, that many times each.
func raceInGuest(t testing.TB, release string, runs int, files []vm.File) (all []raced) {
	t.Helper()
	for line := range strings.Lines(bootGuest(t, release, fmt.Sprint(guestRace, " ", runs), vm.Config{Files: files, Instructions: true})) {
		if text, ok := strings.CutPrefix(line, raceMark); ok {
			var r raced
			if err := json.Unmarshal([]byte(text), &r); err != nil || len(r.Ours) != runs || len(r.Theirs) != runs {
				t.Fatalf("%v: %s", err, line)
			}
			all = append(all, r)
		}
	}
	if len(all) != 2 {
		t.Fatalf("%d races were run, want 2", len(all))
	}
	return all
}
