package loader

import "strings"

// bootLine is where options of the kernel command line come from.
const bootLine = "the kernel command line"

// addCommandLine adds what a kernel command line says of modules:
// module.parameter=value, which the kernel itself applies to what is built in
// only; modprobe.blacklist=; and module_blacklist=, which the kernel holds to.
//
// Quotes may stand around a value or, as boot loaders put them, around a whole
// word; the kernel wants the former. A word that is quoted otherwise, or has a
// second dot before its =, is none of ours.
func (c *Config) addCommandLine(line string) {
	for w := range bootWords(line) {
		if w == "--" {
			return // the rest is for init
		}
		if names, ok := strings.CutPrefix(w, "module_blacklist="); ok {
			for name := range strings.SplitSeq(names, ",") {
				c.Barred = append(c.Barred, Directive{Name: normalizeAlias(name), Value: w, At: bootLine})
			}
			continue
		}
		module, param, ok := bootParam(w)
		switch {
		case !ok:
		case module == "modprobe" && strings.HasPrefix(param, "blacklist="):
			for name := range strings.SplitSeq(strings.TrimPrefix(param, "blacklist="), ",") {
				c.Blacklist = append(c.Blacklist, Directive{Name: normalizeAlias(name), Value: w, At: bootLine})
			}
		default:
			c.Boot = append(c.Boot, Directive{Name: normalizeAlias(module), Value: param, At: bootLine})
		}
	}
}

// bootWords splits a command line at blanks outside quotes; kmod takes 0xa0 for none, but the kernel would split there.
func bootWords(line string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		start, quoted := 0, false
		for i := 0; i <= len(line); i++ {
			switch {
			case i < len(line) && line[i] == '"':
				quoted = !quoted
			case i == len(line) || strings.IndexByte(blanks, line[i]) >= 0 && !quoted:
				if i > start && !yield(line[start:i]) {
					return
				}
				start = i + 1
			}
		}
	}
}

// bootParam takes module.parameter[=value] apart, and moves a quote before the
// whole to the value.
func bootParam(word string) (module, param string, ok bool) {
	if whole, quoted := strings.CutPrefix(word, `"`); quoted {
		name, value, hasValue := strings.Cut(whole, "=")
		if !hasValue {
			return "", "", false
		}
		word = name + `="` + value
	}
	module, param, ok = strings.Cut(word, ".")
	name, _, _ := strings.Cut(param, "=")
	closed := strings.Count(word, `"`)%2 == 0
	return module, param, ok && closed && module != "" && name != "" && !hasByte(module, blanks+`"=[]`) && !hasByte(name, blanks+`".`)
}
