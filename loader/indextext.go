package loader

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"iter"
	"path/filepath"
	"strings"

	"kmodctl/internal/ko"
)

type entries = iter.Seq2[entry, error]

// lines is a file of the index in its text form.
type lines []entry

func (l lines) get(key string) (values []string, ok bool, err error) {
	for _, e := range l {
		if e.key == key {
			values, ok = append(values, e.value), true
		}
	}
	return values, ok, nil
}

func (l lines) match(name string) (found []entry, err error) {
	for _, e := range l {
		if globMatch(e.key, name) {
			found = append(found, e)
		}
	}
	return found, nil
}

func (l lines) all() entries {
	return func(yield func(entry, error) bool) {
		for _, e := range l {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// openText reads the text form. What cannot be read is empty, and noted where
// people would miss it: kernels before 5.2 have no modules.builtin.modinfo.
func (x *Index) openText(file string) table {
	name, parse, needed := file, parseAliases, true
	switch file {
	case depFile:
		parse = x.parseDep
	case builtinFile:
		parse = parseBuiltin
	case builtinAliasFile:
		name, parse, needed = "modules.builtin.modinfo", parseBuiltinInfo, false
	}
	f, err := x.root.Open(filepath.Join(x.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		if needed {
			x.note("%s/%s does not exist", x.Dir, name)
		}
		if file == depFile {
			x.walk()
		}
		return lines(nil)
	}
	var l lines
	if err == nil {
		l, err = parse(f)
		f.Close()
	}
	if err != nil {
		x.note("%s/%s: %v", x.Dir, name, err)
	}
	return l
}

// parseDep reads modules.dep: "path: dependency dependency", everything that
// the module needs, directly or not. A line that is not of this form is noted
// and passed over, as one bad line must not hide 4,000 good ones.
func (x *Index) parseDep(r io.Reader) (l lines, err error) {
	err = eachLine(r, func(n int, line string) {
		path, deps, ok := strings.Cut(line, ":")
		if !ok || !modulePath(path) || strings.Contains(deps, "../") {
			x.note("%s/%s line %d is not \"path: dependencies\"", x.Dir, depFile, n)
			return
		}
		l = append(l, entry{ko.NameOfFile(path), line})
	})
	return l, err
}

// parseBuiltin reads modules.builtin: one path a line, of a file that exists
// only in the kernel image.
func parseBuiltin(r io.Reader) (l lines, err error) {
	err = eachLine(r, func(_ int, line string) {
		if modulePath(line) {
			l = append(l, entry{key: ko.NameOfFile(line)})
		}
	})
	return l, err
}

// parseAliases reads modules.alias and modules.symbols: "alias PATTERN MODULE".
func parseAliases(r io.Reader) (l lines, err error) {
	err = eachLine(r, func(_ int, line string) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "alias" {
			l = append(l, entry{normalizeAlias(f[1]), f[2]})
		}
	})
	return l, err
}

// parseBuiltinInfo reads modules.builtin.modinfo, what the .modinfo of the built-in
// modules had: "module.key=value", each with a zero byte behind it.
func parseBuiltinInfo(r io.Reader) (l lines, err error) {
	data, err := io.ReadAll(r)
	for field := range strings.SplitSeq(string(data), "\x00") {
		if module, alias, ok := strings.Cut(field, ".alias="); ok && !strings.ContainsAny(module, ".=") {
			l = append(l, entry{normalizeAlias(alias), module})
		}
	}
	return l, err
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
