package loader

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/xrash/smetrics"

	"kmodctl/internal/ko"
)

// Index is what depmod(8) and kbuild wrote down about the modules of one kernel
// release: modules.dep(5) and modules.builtin in /lib/modules/<release>, the
// text forms. Names are compared with - and _ taken as equal.
type Index struct {
	Dir   string   // the folder that was read, as this process opens it
	Notes []string // what is absent or was passed over, in words for people

	modules map[string]indexEntry
	builtin map[string]bool
}

// indexEntry is one line of modules.dep; deps is kept as written, since a
// command looks at a handful of the 4,000 lines.
type indexEntry struct{ path, deps string }

// OpenIndex reads the index in dir, a /lib/modules/<release>. A file that does
// not exist leaves its part of the index empty and says so in Notes, because a
// machine without in-tree modules (a container) can still load its own.
func OpenIndex(dir string) (*Index, error) {
	x := &Index{Dir: dir}
	for _, part := range []struct {
		file  string
		parse func(io.Reader) error
	}{
		{"modules.dep", x.readDep},
		{"modules.builtin", x.readBuiltin},
	} {
		f, err := os.Open(filepath.Join(dir, part.file))
		if errors.Is(err, fs.ErrNotExist) {
			x.Notes = append(x.Notes, fmt.Sprintf("%s/%s does not exist", dir, part.file))
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read module index: %w", err)
		}
		err = part.parse(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("read module index %s: %w", f.Name(), err)
		}
	}
	return x, nil
}

// readDep parses modules.dep: "path: dependency dependency", everything that
// the module needs, directly or not. A line that is not of this form is noted
// and passed over, as one bad line must not hide 4,000 good ones.
func (x *Index) readDep(r io.Reader) error {
	x.modules = make(map[string]indexEntry)
	return eachLine(r, func(n int, line string) {
		path, deps, ok := strings.Cut(line, ":")
		if !ok || !modulePath(path) || strings.Contains(deps, "../") {
			x.Notes = append(x.Notes, fmt.Sprintf("%s/modules.dep line %d is not \"path: dependencies\"", x.Dir, n))
			return
		}
		name := ko.NameOfFile(path)
		if _, twice := x.modules[name]; !twice {
			x.modules[name] = indexEntry{path, deps}
		}
	})
}

// readBuiltin parses modules.builtin: one path a line, of a file that exists
// only in the kernel image.
func (x *Index) readBuiltin(r io.Reader) error {
	x.builtin = make(map[string]bool)
	return eachLine(r, func(_ int, line string) {
		if modulePath(line) {
			x.builtin[ko.NameOfFile(line)] = true
		}
	})
}

// modulePath reports whether p names a file below the folder of the index or,
// by depmod.d's `external`, an absolute one.
func modulePath(p string) bool {
	return strings.Contains(filepath.Base(p), ".ko") && (filepath.IsAbs(p) || filepath.IsLocal(p))
}

func eachLine(r io.Reader, do func(n int, line string)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20) // the longest line of Debian's kernels has 3 KB
	for n := 1; lines.Scan(); n++ {
		if line := strings.TrimSpace(lines.Text()); line != "" {
			do(n, line)
		}
	}
	return lines.Err()
}

// Find returns the file of a module and the files of all modules that it needs,
// in the order in which they must be inserted.
func (x *Index) Find(name string) (path string, deps []string, ok bool) {
	if x == nil {
		return "", nil, false
	}
	e, ok := x.modules[ko.NormalizeName(name)]
	if !ok {
		return "", nil, false
	}
	// depmod writes the nearest dependency first: right to left is the load order.
	for _, dep := range slices.Backward(strings.Fields(e.deps)) {
		deps = append(deps, x.abs(dep))
	}
	return x.abs(e.path), deps, true
}

func (x *Index) abs(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(x.Dir, path)
}

// Builtin reports whether the module is part of the kernel image.
func (x *Index) Builtin(name string) bool {
	return x != nil && x.builtin[ko.NormalizeName(name)]
}

// Names returns the modules of the index that have a file, sorted.
func (x *Index) Names() []string { return slices.Sorted(maps.Keys(x.modules)) }

// Near returns at most five names of the index that a user may have meant,
// the likeliest first.
func (x *Index) Near(name string) []string {
	if x == nil {
		return nil
	}
	type near struct {
		name  string
		edits int
	}
	name = ko.NormalizeName(name)
	var all []near
	for m := range x.modules {
		if n := smetrics.WagnerFischer(name, m, 1, 1, 1); n <= 1+len(name)/3 {
			all = append(all, near{m, n})
		}
	}
	slices.SortFunc(all, func(a, b near) int {
		return cmp.Or(cmp.Compare(a.edits, b.edits), cmp.Compare(a.name, b.name))
	})
	var names []string
	for _, n := range all[:min(len(all), 5)] {
		names = append(names, n.name)
	}
	return names
}
