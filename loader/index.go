package loader

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/xrash/smetrics"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
)

// Index is what depmod(8) and kbuild wrote down about the modules of one kernel
// release, in /lib/modules/<release>. Of each file it reads the binary form, of
// which a look-up touches some blocks, else the text; and each only when it is
// asked for. Names are compared with - and _ taken as equal.
//
// Without modules.dep the .ko files themselves are the index: their names, and
// what they say that they need. Their aliases and symbols are unknown then.
type Index struct {
	Dir   string   // the folder, as this process opens it
	Notes []string // what was found absent or damaged so far, in words for people

	root   kernel.Root
	dir    string // the folder inside root
	tables map[string]table
	files  map[string]string // by name, where there is no modules.dep
}

// table is one file of the index: keys, which may be patterns, and values.
type table interface {
	get(key string) (values []string, ok bool, err error)
	match(name string) ([]entry, error)
	all() entries
}

// The files of the index, without the .bin of their binary form.
const (
	depFile          = "modules.dep"
	aliasFile        = "modules.alias"
	symbolsFile      = "modules.symbols"
	builtinFile      = "modules.builtin"
	builtinAliasFile = "modules.builtin.alias"
	softdepFile      = "modules.softdep"
	weakdepFile      = "modules.weakdep"
)

// OpenIndex returns the index in dir, a /lib/modules/<release> as seen inside
// root. A file that does not exist leaves its part of the index empty and says
// so in Notes, because a machine without in-tree modules (a container) can
// still load its own.
func OpenIndex(root kernel.Root, dir string) *Index {
	x := &Index{root: root, dir: dir, tables: make(map[string]table)}
	x.Dir = filepath.Join(cmp.Or(string(root), "/"), dir)
	if path, err := root.Path(dir); err == nil && !root.IsHost() {
		x.Dir = path
	}
	return x
}

// table opens a file of the index, once.
func (x *Index) table(file string) table {
	if t, ok := x.tables[file]; ok {
		return t
	}
	t, err := x.openBinary(file)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			x.note("%s/%s.bin: %v", x.Dir, file, err)
		}
		t = x.openText(file)
	}
	x.tables[file] = t
	return t
}

func (x *Index) openBinary(file string) (table, error) {
	f, err := x.root.Open(filepath.Join(x.dir, file+".bin"))
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return openTrie(f, st.Size())
}

// read asks a table. One whose binary form turns out to be damaged is replaced
// by its text and asked again.
func (x *Index) read(file string, ask func(table) error) {
	err := ask(x.table(file))
	if err == nil {
		return
	}
	x.note("%s/%s.bin: %v", x.Dir, file, err)
	x.tables[file] = x.openText(file)
	ask(x.tables[file])
}

func (x *Index) get(file, key string) (values []string, ok bool) {
	x.read(file, func(t table) (err error) {
		values, ok, err = t.get(key)
		return err
	})
	return values, ok
}

func (x *Index) match(file, name string) (found []entry) {
	x.read(file, func(t table) (err error) {
		found, err = t.match(name)
		return err
	})
	return found
}

// keys returns the keys of a file, sorted, each once.
func (x *Index) keys(file string) (keys []string) {
	x.read(file, func(t table) error {
		keys = nil
		for e, err := range t.all() {
			if err != nil {
				return err
			}
			keys = append(keys, e.key)
		}
		return nil
	})
	slices.Sort(keys)
	return slices.Compact(keys)
}

func (x *Index) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); !slices.Contains(x.Notes, n) {
		x.Notes = append(x.Notes, n)
	}
}

// Find returns the file of a module and the files of all modules that it needs,
// in the order in which they must be inserted. Of a tree without modules.dep
// it knows the file alone: see Indexed.
func (x *Index) Find(name string) (path string, deps []string, ok bool) {
	if x == nil {
		return "", nil, false
	}
	name = ko.NormalizeName(name)
	lines, ok := x.get(depFile, name)
	if !ok {
		path, ok := x.files[name]
		return path, nil, ok
	}
	path, rest, ok := strings.Cut(lines[0], ":")
	if !ok || !modulePath(path) || strings.Contains(rest, "../") {
		x.note("%s/%s: the line of %s is not \"path: dependencies\"", x.Dir, depFile, name)
		return "", nil, false
	}
	// depmod writes the nearest dependency first: right to left is the load order.
	for _, dep := range slices.Backward(strings.Fields(rest)) {
		deps = append(deps, x.abs(dep))
	}
	return x.abs(path), deps, true
}

// Indexed reports whether there is a modules.dep. Where there is none, what a
// module needs is to be read from its file.
func (x *Index) Indexed() bool {
	if x == nil {
		return false
	}
	x.table(depFile)
	return x.files == nil
}

// modulePath reports whether p names a file below the folder of the index or,
// by depmod.d's `external`, an absolute one.
func modulePath(p string) bool {
	return strings.Contains(filepath.Base(p), ".ko") && (filepath.IsAbs(p) || filepath.IsLocal(p))
}

// abs is the path by which this process opens a file of the index.
func (x *Index) abs(path string) string {
	if !filepath.IsAbs(path) {
		return filepath.Join(x.Dir, path)
	}
	if inside, err := x.root.Path(path); err == nil && !x.root.IsHost() {
		return inside
	}
	return filepath.Join(cmp.Or(string(x.root), "/"), path)
}

// Aliases returns what depmod collected for a device or another name: the
// modules one of whose aliases, which are patterns, fits it.
func (x *Index) Aliases(name string) []Alias {
	return x.aliases(aliasFile, normalizeAlias(name))
}

// Exporters returns the modules that export a symbol.
func (x *Index) Exporters(symbol string) []Alias {
	return x.aliases(symbolsFile, "symbol:"+symbol)
}

// Alias leads from a name to a module.
type Alias struct {
	Pattern string // what fits the name
	Module  string
	At      string // the file, with a line where there is one
}

func (x *Index) aliases(file, name string) (all []Alias) {
	if x == nil {
		return nil
	}
	for _, e := range x.match(file, name) {
		all = append(all, Alias{e.key, ko.NormalizeName(e.value), filepath.Join(x.Dir, file)})
	}
	return all
}

// Builtin reports whether the module is part of the kernel image.
func (x *Index) Builtin(name string) bool {
	if x == nil {
		return false
	}
	_, ok := x.get(builtinFile, ko.NormalizeName(name))
	return ok
}

// builtinAlias returns the parts of the kernel image that a name leads to.
func (x *Index) builtinAlias(name string) []Alias {
	return x.aliases(builtinAliasFile, normalizeAlias(name))
}

// Names returns the modules of the index that have a file, sorted.
func (x *Index) Names() []string {
	if x == nil {
		return nil
	}
	names := x.keys(depFile)
	for name := range x.files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Near returns at most five names of the index that a user may have meant,
// the likeliest first.
func (x *Index) Near(name string) []string {
	type near struct {
		name  string
		edits int
	}
	name = ko.NormalizeName(name)
	var all []near
	for _, m := range x.Names() {
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

// walk finds the .ko files below the folder, for a tree without modules.dep.
// Of two of one name it takes that below updates, as depmod does by default.
func (x *Index) walk() {
	x.files = make(map[string]string)
	filepath.WalkDir(x.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !modulePath(d.Name()) {
			return nil
		}
		name := ko.NameOfFile(path)
		updates := strings.HasPrefix(path, filepath.Join(x.Dir, "updates")+string(os.PathSeparator))
		if _, twice := x.files[name]; !twice || updates {
			x.files[name] = path
		}
		return nil
	})
}

// softdeps reads the kernel's own files of soft dependencies.
func (x *Index) softdeps() *Config {
	c := &Config{}
	if x != nil {
		c.readFile(x.root, filepath.Join(x.dir, softdepFile))
		c.readFile(x.root, filepath.Join(x.dir, weakdepFile))
	}
	return c
}
