package loader

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"kmodctl/internal/kernel"
)

// Config is what the administrator and the distribution want of modules: the
// lines of modprobe.d(5), of the kernel's own files of soft dependencies, and of
// the kernel command line. Names have _ for -.
type Config struct {
	Aliases   []Directive // Name is a pattern, Value a module
	Blacklist []Directive // the module's aliases lead nowhere; modprobe.blacklist= too
	Options   []Directive // Value is what the kernel shall parse
	Install   []Directive // Name is a pattern, Value a command for sh -c
	Remove    []Directive
	Softdeps  []Softdep
	Weakdeps  []Directive // Value is a list of names
	Boot      []Directive // options of the kernel command line, module.parameter=value
	Barred    []Directive // module_blacklist= of the kernel command line: the kernel refuses them
	Notes     []string    // lines that are none, with file and line
}

// Directive is one line of modprobe.d(5).
type Directive struct {
	Name, Value string
	At          string // "FILE:LINE", or what else it comes from
	Reason      string // what `kmodctl deny` wrote above an install line
}

// Softdep is a line of soft dependencies; Name is a pattern.
type Softdep struct {
	Name      string
	Pre, Post []string
	At        string
}

// configDirs are the folders of modprobe.d(5), the first one first: a file in
// one hides those of its name in those behind.
var configDirs = []string{"/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d", "/usr/lib/modprobe.d", "/lib/modprobe.d"}

// DenyComment begins the comment that gives the reason of the install line below it:
//
//	# kmodctl deny: NAME: REASON
//	install NAME /bin/false
const DenyComment = "# kmodctl deny: "

// configLimit is what is read of a file, in bytes.
const configLimit = 4 << 20

// ReadConfig reads modprobe.d of a root. What cannot be read is noted. Of this
// machine it reads the kernel command line too, when that is the kernel's whose
// modules are meant.
func ReadConfig(root kernel.Root, running bool) *Config {
	c := &Config{}
	files := make(map[string]string) // the first path of a name
	var names []string
	for _, dir := range configDirs {
		list, err := root.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.note("%v", err)
		}
		for _, f := range list {
			name := f.Name()
			if strings.HasPrefix(name, ".") || !strings.HasSuffix(name, ".conf") || files[name] != "" {
				continue
			}
			files[name] = path.Join(dir, name)
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		c.readFile(root, files[name])
	}
	if running && root.IsHost() {
		if line, err := root.ReadFile("/proc/cmdline"); err != nil {
			c.note("%v", err)
		} else {
			c.addCommandLine(string(line))
		}
	}
	return c
}

// readFile adds the lines of a file, if it exists.
func (c *Config) readFile(root kernel.Root, name string) {
	f, err := root.Open(name)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			c.note("%v", err)
		}
		return
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, configLimit+1))
	if len(text) > configLimit {
		err = fmt.Errorf("read %s: more than %d bytes", name, configLimit)
	}
	if err != nil {
		c.note("%v", err)
		return
	}
	c.parse(name, text)
}

func (c *Config) note(format string, args ...any) {
	c.Notes = append(c.Notes, fmt.Sprintf(format, args...))
}

// parse adds the lines of one file of modprobe.d(5).
func (c *Config) parse(file string, text []byte) {
	denied, reason := "", "" // of the comment right above
	for n, line := range joinedLines(text) {
		at := fmt.Sprintf("%s:%d", file, n)
		if comment, ok := strings.CutPrefix(line, DenyComment); ok {
			denied, reason, _ = strings.Cut(comment, ":")
			denied, reason = normalizeAlias(denied), strings.TrimSpace(reason)
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		d := Directive{At: at}
		command, rest := word(line)
		d.Name, d.Value = word(rest)
		d.Name = normalizeAlias(d.Name)
		if denied == d.Name && command == "install" {
			d.Reason = reason
		}
		denied = ""
		if why := c.add(command, d); why != "" {
			c.note("%s: %s", at, why)
		}
	}
}

// add takes one line, or says why not.
func (c *Config) add(command string, d Directive) (why string) {
	lists := map[string]*[]Directive{"options": &c.Options, "install": &c.Install, "remove": &c.Remove, "weakdep": &c.Weakdeps}
	list, plain := lists[command]
	switch {
	case command == "include" || command == "config":
		return command + " is of the past and not followed"
	case !plain && command != "alias" && command != "blacklist" && command != "softdep":
		return fmt.Sprintf("%q begins no line of modprobe.d", command)
	case d.Name == "":
		return command + " names no module"
	case command == "blacklist":
		c.Blacklist = append(c.Blacklist, d)
	case d.Value == "":
		return command + " " + d.Name + " says nothing of it"
	case command == "alias":
		module, _ := word(d.Value)
		d.Value = normalizeAlias(module)
		c.Aliases = append(c.Aliases, d)
	case command == "softdep":
		c.Softdeps = append(c.Softdeps, parseSoftdep(d.Name, d.Value, d.At))
	default:
		*list = append(*list, d)
	}
	return ""
}

// parseSoftdep reads "pre: a b post: c". Words before the first of the two say
// nothing: so does kmod take them, and Debian's cifs has eleven.
func parseSoftdep(name, value, at string) Softdep {
	s := Softdep{Name: name, At: at}
	var list *[]string
	for f := range strings.FieldsSeq(value) {
		switch {
		case f == "pre:":
			list = &s.Pre
		case f == "post:":
			list = &s.Post
		case list != nil:
			*list = append(*list, f)
		}
	}
	return s
}

// word cuts the first word off a line.
func word(line string) (first, rest string) {
	const blanks = "\t "
	line = strings.TrimLeft(line, blanks)
	if i := strings.IndexAny(line, blanks); i >= 0 {
		return line[:i], strings.Trim(line[i:], blanks)
	}
	return line, ""
}

// joinedLines returns the lines of a file with the number of each in it. A
// backslash at the end of a line joins the next one to it; before another byte
// it goes, as kmod reads it.
func joinedLines(text []byte) func(yield func(int, string) bool) {
	return func(yield func(int, string) bool) {
		for n := 1; len(text) > 0; {
			line, first := []byte(nil), n
			for len(text) > 0 {
				c := text[0]
				text = text[1:]
				if c == '\n' {
					n++
					break
				}
				if c == '\\' && len(text) > 0 {
					c, text = text[0], text[1:]
					if c == '\n' {
						n++
						continue
					}
				}
				line = append(line, c)
			}
			if i := bytes.IndexByte(line, 0); i >= 0 {
				line = line[:i]
			}
			if !yield(first, string(line)) {
				return
			}
		}
	}
}

// find returns the lines whose name, which is a pattern, fits a module.
func find(list []Directive, module string) (found []Directive) {
	for _, d := range list {
		if globMatch(d.Name, module) {
			found = append(found, d)
		}
	}
	return found
}
