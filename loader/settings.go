package loader

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"kmodctl/internal/ko"
)

// The files that hold what an administrator tells kmodctl about modules, for boot, udev and modprobe(8) as well: modprobe.d(5)
// and modules-load.d(5). They are a person's too: lines that are not about the module at hand stay as they are.
const (
	ModprobeFile    = "/etc/modprobe.d/kmodctl.conf"
	ModulesLoadFile = "/etc/modules-load.d/kmodctl.conf"
)

// settingsHead begins a file of settings that was not there; a file that has no more than it goes.
const settingsHead = "# Settings of modules, written by kmodctl enable, options and deny. Lines of yours stay.\n"

// CheckName refuses what is no name of a module: it would be a pattern, or more than one word.
func CheckName(module string) error {
	for i := range len(module) {
		if c := module[i]; c != '_' && c != '-' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return fmt.Errorf("read module name %q: it has a %q", module, c)
		}
	}
	if module == "" || module[0] == '-' {
		return fmt.Errorf("read module name %q: not a name", module)
	}
	return nil
}

// SetOptions edits modprobe.d's `options` lines of a module: parameters are "name=value" or a name alone, unset are names.
// The line stands where the first one stood, and keeps the order.
func SetOptions(text []byte, module string, params, unset []string) ([]byte, error) {
	module = ko.NormalizeName(module)
	if _, err := joinParams(params); err != nil {
		return nil, err
	}
	var all []string
	lines := settingLines(text)
	at := lines.drop(func(l settingLine) bool {
		ours := l.is("options", module)
		if ours {
			all = slices.AppendSeq(all, bootWords(l.value))
		}
		return ours
	})
	for _, p := range unset {
		all = slices.DeleteFunc(all, func(old string) bool { return paramName(old) == paramName(p) })
	}
	for _, p := range params {
		all = replaceParam(all, p)
	}
	joined, err := joinParams(all)
	if err != nil {
		return nil, err
	}
	if i := strings.IndexAny(joined, "\n\r"); i >= 0 {
		return nil, fmt.Errorf("write options of %s: a value has an end of line", module)
	}
	if joined != "" {
		// A backslash makes the next byte ordinary.
		lines.put(at, "options "+module+" "+strings.ReplaceAll(joined, `\`, `\\`)+"\n")
	}
	return lines.text(), nil
}

// replaceParam puts p in the place of the first parameter of its name, and takes the others away; the kernel would take the last.
func replaceParam(all []string, p string) (out []string) {
	for _, old := range all {
		if paramName(old) != paramName(p) {
			out = append(out, old)
		} else if p != "" {
			out = append(out, p)
			p = ""
		}
	}
	if p != "" {
		out = append(out, p)
	}
	return out
}

func paramName(param string) string {
	name, _, _ := strings.Cut(param, "=")
	return ko.NormalizeName(name)
}

// SetDeny edits modprobe.d so that a module is not loaded, by whatever way modprobe(8) is asked for it: `install` stops its
// name and its dependents, `blacklist` its aliases, the comment tells why.
func SetDeny(text []byte, module, reason string) ([]byte, error) {
	module = ko.NormalizeName(module)
	if strings.ContainsAny(reason, "\n\r\x00") {
		return nil, fmt.Errorf("write reason of %s: more than one line", module)
	}
	lines := settingLines(text)
	at := lines.drop(func(l settingLine) bool { return l.denies(module) })
	lines.put(at, fmt.Sprintf("%s%s: %s\ninstall %s /bin/false\nblacklist %s\n", DenyComment, module, strings.ReplaceAll(reason, `\`, `\\`), module, module))
	return lines.text(), nil
}

// UnsetDeny takes away what refuses a module in the text of a modprobe.d file.
func UnsetDeny(text []byte, module string) []byte {
	lines := settingLines(text)
	lines.drop(func(l settingLine) bool { return l.denies(ko.NormalizeName(module)) })
	return lines.text()
}

// SetLoad edits modules-load.d(5) so that a module is, or is not, loaded at boot.
func SetLoad(text []byte, module string, load bool) []byte {
	module = ko.NormalizeName(module)
	var lines settings
	for raw := range bytes.Lines(text) {
		l := settingLine{raw: string(raw), name: ko.NormalizeName(strings.TrimSpace(string(raw)))}
		if !bytes.HasSuffix(raw, []byte("\n")) {
			l.end = "\n"
		}
		lines = append(lines, l)
	}
	named := func(l settingLine) bool { return l.name == module }
	switch {
	case !load:
		lines.drop(named)
	case !slices.ContainsFunc(lines, named):
		lines.put(-1, module+"\n")
	}
	return lines.text()
}

// settings are the lines of a file, in order.
type settings []settingLine

// settingLine is a line of modprobe.d, together with those that a backslash joins to it.
type settingLine struct {
	raw         string // with its newline; "" when it goes
	end         string // what the last line of a file lacks, so that another can follow
	line        string // as kmod reads it
	command     string
	name, value string
}

func settingLines(text []byte) (lines settings) {
	for rest := string(text); rest != ""; {
		end := 0
		for ; end < len(rest) && rest[end] != '\n'; end++ {
			if rest[end] == '\\' {
				end++
			}
		}
		l := settingLine{raw: rest[:min(end+1, len(rest))]}
		switch {
		case end > len(rest):
			l.end = "\\\n" // a backslash that ends the file stands for itself, which is written with two
		case end == len(rest):
			l.end = "\n"
		}
		rest = rest[len(l.raw):]
		for _, l.line = range joinedLines([]byte(l.raw)) {
			break
		}
		var words string
		l.command, words = word(l.line)
		l.name, l.value = word(words)
		lines = append(lines, l)
	}
	return lines
}

func (l settingLine) is(command, module string) bool {
	return l.command == command && normalizeAlias(l.name) == module
}

func (l settingLine) denies(module string) bool {
	return l.is("blacklist", module) || l.is("install", module) && isRefusal(l.value) || strings.HasPrefix(l.line, DenyComment+module+":")
}

// drop takes lines away, and says where the first one was; -1 when there was none.
func (s settings) drop(which func(settingLine) bool) (first int) {
	first = -1
	for i, l := range s {
		if which(l) {
			s[i] = settingLine{}
			if first < 0 {
				first = i
			}
		}
	}
	return first
}

// put puts text, which ends its line, at a line that was dropped, or at the end. A file that had nothing gets a head.
func (s *settings) put(at int, text string) {
	if at >= 0 {
		(*s)[at].raw = text
		return
	}
	if len(*s) == 0 {
		*s = append(*s, settingLine{raw: settingsHead})
	}
	*s = append(*s, settingLine{raw: text})
}

// text is the content of the file; nil when it has nothing to say.
func (s settings) text() []byte {
	var all []byte
	end := ""
	for _, l := range s {
		if l.raw != "" {
			all = append(append(all, end...), l.raw...)
			end = l.end
		}
	}
	if len(all) == 0 || string(all) == settingsHead {
		return nil
	}
	return all
}

// OptionsOf returns what modprobe(8) gives a module, in its order: of a parameter that is named twice, the kernel takes the
// last. names are the module's own and, when it was asked for by an alias, that one.
func (c *Config) OptionsOf(names ...string) (found []Directive) {
	for i, name := range names {
		names[i] = normalizeAlias(name)
	}
	for _, d := range slices.Concat(c.Options, c.Boot) {
		if slices.Contains(names, d.Name) {
			found = append(found, d)
		}
	}
	return found
}

// Params takes the value of an `options` line apart.
func (d Directive) Params() []string { return slices.Collect(bootWords(d.Value)) }

// Denials returns what forbids a module: lines of modprobe.d, and module_blacklist= of the kernel command line.
func (c *Config) Denials(module string) (found []Directive) {
	module = ko.NormalizeName(module)
	for _, d := range c.Barred {
		if d.Name == module {
			found = append(found, d)
		}
	}
	for _, d := range find(c.Install, module) {
		if isRefusal(d.Value) {
			found = append(found, d)
		}
	}
	return found
}
