package loader_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kmodctl/internal/ko"
	"kmodctl/loader"
)

// modprobe asks modprobe(8), without any modprobe.d, about many names in few
// processes, and returns the lines that it prints for each.
func modprobe(t *testing.T, release, show string, names []string) [][]string {
	t.Helper()
	program, err := exec.LookPath("modprobe")
	if err != nil {
		t.Fatal("no modprobe: install the package kmod")
	}
	// A built-in module's own line ends that of each name.
	builtin, err := os.ReadFile("/lib/modules/" + release + "/modules.builtin")
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(builtin), "\n")
	mark := ko.NameOfFile(first)
	var all [][]string
	for batch := range slices.Chunk(names, 500) {
		args := []string{"-C", "/dev/null", "-S", release, show, "-a", "--"}
		for _, name := range batch {
			args = append(args, name, mark)
		}
		// It exits with 1 when it does not know one of the names.
		out, _ := exec.Command(program, args...).Output()
		var lines []string
		for line := range strings.Lines(string(out)) {
			line = strings.TrimSpace(line)
			if strings.TrimPrefix(line, "builtin ") == mark {
				all = append(all, lines)
				lines = nil
				continue
			}
			lines = append(lines, line)
		}
	}
	if len(all) != len(names) {
		t.Fatalf("modprobe answered for %d names of %d", len(all), len(names))
	}
	return all
}

// firstSoftdeps is a copy of a release's index in which each module has but its
// first line of soft dependencies, as kmod reads them.
func firstSoftdeps(t *testing.T, release string) *loader.Index {
	t.Helper()
	from, dir := "/lib/modules/"+release, t.TempDir()
	files, err := filepath.Glob(from + "/modules.*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if filepath.Base(file) != "modules.softdep" {
			if err := os.Symlink(file, filepath.Join(dir, filepath.Base(file))); err != nil {
				t.Fatal(err)
			}
		}
	}
	text, err := os.ReadFile(from + "/modules.softdep")
	if err != nil {
		t.Fatal(err)
	}
	var first []string
	seen := make(map[string]bool)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && !seen[f[1]] {
			seen[f[1]] = true
			first = append(first, line)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.softdep"), []byte(strings.Join(first, "")), 0o644); err != nil {
		t.Fatal(err)
	}
	return loader.OpenIndex("/", dir)
}

// TestPlansEqualModprobe compares, for every in-tree module of both kernels (some
// 200 of each with -short), the files that we would insert with those that
// modprobe would. With kmod's reading of soft dependencies they are the same; with
// ours there are more of them where a module has several lines.
func TestPlansEqualModprobe(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string, index *loader.Index) {
		names := index.Names()
		if len(names) < 4000 {
			t.Fatalf("only %d modules", len(names))
		}
		if testing.Short() {
			var some []string
			for i := 0; i < len(names); i += 20 {
				some = append(some, names[i])
			}
			names = append(some, "btrfs")
		}
		asKmod := firstSoftdeps(t, release)
		more := 0
		for i, lines := range modprobe(t, release, "-D", names) {
			var theirs []string
			for _, line := range lines {
				if path, ok := strings.CutPrefix(line, "insmod /lib/modules/"+release+"/"); ok {
					theirs = append(theirs, path)
				}
			}
			slices.Sort(theirs)
			theirs = slices.Compact(theirs)
			if diff := cmp.Diff(theirs, inserted(t, asKmod, release, names[i])); diff != "" {
				t.Errorf("%s (- modprobe, + ours): %s", names[i], diff)
			}
			ours := inserted(t, index, release, names[i])
			for _, path := range theirs {
				if !slices.Contains(ours, path) {
					t.Errorf("%s: modprobe inserts %s, we do not", names[i], path)
				}
			}
			if len(ours) > len(theirs) {
				more++
			}
		}
		t.Logf("%d modules, %d of them with more soft dependencies than kmod sees", len(names), more)
		if more == 0 {
			t.Error("not even btrfs has more soft dependencies than kmod sees")
		}
	})
}

// inserted returns the files of a plan, sorted and below the index's folder. It
// fails the test where a step has no reason, or comes before one that it needs.
func inserted(t *testing.T, index *loader.Index, release, name string) (paths []string) {
	t.Helper()
	p, err := loader.PlanLoad(loader.LoadRequest{Name: name, Index: index, Release: release})
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return nil
	}
	if !slices.Contains(p.Asked, ko.NormalizeName(name)) {
		t.Errorf("%s: asked is %q", name, p.Asked)
	}
	before, done := make(map[string]bool), make(map[string]bool)
	for _, s := range p.Steps {
		_, deps, _ := index.Find(s.Module)
		for _, d := range deps {
			if !before[d] {
				t.Errorf("%s: %s comes before %s", name, s.Path, d)
			}
		}
		for _, need := range s.Needs {
			if !done[need] {
				t.Errorf("%s: %s comes before %s", name, s.Module, need)
			}
		}
		if s.Reason == "" {
			t.Errorf("%s: no reason for %s", name, s.Module)
		}
		before[s.Path], done[s.Module] = true, true
		if s.Action == loader.Insert {
			paths = append(paths, strings.TrimPrefix(s.Path, index.Dir+"/"))
		}
	}
	slices.Sort(paths)
	return paths
}

// TestModaliasesEqualModprobe makes a device's name from each of 2,000 patterns of
// modules.alias, and compares the modules that it leads to, a tenth of them with the
// text of the index too.
func TestModaliasesEqualModprobe(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string, index *loader.Index) {
		text, err := os.ReadFile("/lib/modules/" + release + "/modules.alias")
		if err != nil {
			t.Fatal(err)
		}
		var patterns []string
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "alias" {
				patterns = append(patterns, f[1])
			}
		}
		random := rand.New(rand.NewPCG(6, 1))
		random.Shuffle(len(patterns), func(i, j int) { patterns[i], patterns[j] = patterns[j], patterns[i] })
		patterns = patterns[:2000]
		var names []string
		for _, p := range patterns {
			names = append(names, concrete(random, p))
		}
		onlyText := textIndex(t, release)
		several := 0
		for i, theirs := range modprobe(t, release, "-R", names) {
			slices.Sort(theirs)
			theirs = slices.Compact(theirs)
			forms := map[string]*loader.Index{"binary": index}
			if i%10 == 0 { // it is read from end to end each time
				forms["text"] = onlyText
			}
			for form, index := range forms {
				p, err := loader.PlanLoad(loader.LoadRequest{Name: names[i], Index: index, Release: release})
				if err != nil {
					t.Errorf("%s, from %s: %v", names[i], patterns[i], err)
					continue
				}
				if diff := cmp.Diff(theirs, slices.Sorted(slices.Values(p.Asked))); diff != "" {
					t.Errorf("%s, from %s, %s (- modprobe, + ours): %s", names[i], patterns[i], form, diff)
				}
			}
			if len(theirs) > 1 {
				several++
			}
		}
		t.Logf("%d names, %d of which lead to several modules", len(names), several)
		if several < 20 {
			t.Errorf("only %d names lead to several modules", several)
		}
	})
}

// concrete makes a name that a pattern fits.
func concrete(random *rand.Rand, pattern string) string {
	const letters = "0123456789abcdefABCDEFxyz_-.,:"
	var name strings.Builder
	for i := 0; i < len(pattern); i++ {
		switch c := pattern[i]; c {
		case '*':
			for range random.IntN(4) {
				name.WriteByte(letters[random.IntN(len(letters))])
			}
		case '?':
			name.WriteByte(letters[random.IntN(len(letters))])
		case '[':
			end := i + strings.IndexByte(pattern[i:], ']')
			set := pattern[i+1 : end]
			i = end
			if len(set) > 2 && set[1] == '-' { // A-F, and what else there is
				name.WriteByte(set[0] + byte(random.IntN(int(set[2]-set[0])+1)))
			} else {
				name.WriteByte(set[random.IntN(len(set))])
			}
		default:
			name.WriteByte(c)
		}
	}
	return name.String()
}

// textIndex is a copy of a release's index without its binary files.
func textIndex(t *testing.T, release string) *loader.Index {
	t.Helper()
	files, err := filepath.Glob("/lib/modules/" + release + "/modules.*")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, file := range files {
		if !strings.HasSuffix(file, ".bin") {
			if err := os.Symlink(file, filepath.Join(dir, filepath.Base(file))); err != nil {
				t.Fatal(err)
			}
		}
	}
	return loader.OpenIndex("/", dir)
}

// TestTextEqualsBinary holds both forms of every file of the index against each other.
func TestTextEqualsBinary(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string, index *loader.Index) {
		text := textIndex(t, release)
		if diff := cmp.Diff(index.Names(), text.Names()); diff != "" {
			t.Errorf("modules (- binary, + text): %s", diff)
		}
		for _, name := range index.Names() {
			path, deps, _ := index.Find(name)
			textPath, textDeps, _ := text.Find(name)
			if strings.TrimPrefix(path, index.Dir) != strings.TrimPrefix(textPath, text.Dir) || len(deps) != len(textDeps) {
				t.Errorf("%s: %s and %d dependencies, in text %s and %d", name, path, len(deps), textPath, len(textDeps))
			}
		}
		builtin, err := os.ReadFile("/lib/modules/" + release + "/modules.builtin")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(builtin)) {
			if name := ko.NameOfFile(strings.TrimSpace(line)); !index.Builtin(name) || !text.Builtin(name) {
				t.Errorf("%s is not built in", name)
			}
		}
		for _, symbol := range []string{"drm_dev_register", "mdio_bus_init", "no_such_symbol"} {
			found := fmt.Sprint(modulesOf(index.Exporters(symbol)))
			if inText := fmt.Sprint(modulesOf(text.Exporters(symbol))); found != inText || symbol == "drm_dev_register" && found != "[drm]" {
				t.Errorf("%s is exported by %s, in text by %s", symbol, found, inText)
			}
		}
		for _, x := range []*loader.Index{index, text} {
			if len(x.Notes) > 0 {
				t.Errorf("notes of %s: %q", x.Dir, x.Notes)
			}
		}
	})
}

func modulesOf(found []loader.Alias) (modules []string) {
	for _, a := range found {
		modules = append(modules, a.Module)
	}
	return modules
}
