package loader

import (
	"os"
	"slices"
	"strconv"
	"strings"

	"kmodctl/internal/ko"
)

// Difference is a parameter of a live module that is not as it was asked for: some
// other load was quicker, whose parameters count, or the module changed it.
type Difference struct {
	Param    string `json:"param"`
	Asked    string `json:"asked"`
	Have     string `json:"have"`
	Writable bool   `json:"writable,omitempty"` // root can change it while the module is live
}

// differences compares what was asked for with /sys/module/<name>/parameters. What is not
// shown there (permissions 0) cannot be compared.
func (l *Loader) differences(s Step) (differ []Difference) {
	asked := splitParams(s.Params)
	for i, p := range asked {
		name, want, hasValue := strings.Cut(p, "=")
		later := func(q string) bool { return strings.HasPrefix(q, name+"=") }
		if !hasValue || slices.ContainsFunc(asked[i+1:], later) {
			continue // the kernel takes the last of several
		}
		path := under(l.Root, "sys/module/"+s.Module+"/parameters/"+name)
		st, err := os.Stat(path)
		if err != nil {
			continue
		}
		got, err := os.ReadFile(path)
		if have := strings.TrimSuffix(string(got), "\n"); err == nil && !sameValue(want, have) {
			differ = append(differ, Difference{name, want, have, st.Mode().Perm()&0o200 != 0})
		}
	}
	return differ
}

// taintWords say of each letter that a module can set what it means:
// Documentation/admin-guide/tainted-kernels.rst.
var taintWords = map[rune]string{
	'P': "its licence is not the GPL's",
	'F': "it was forced, or has no vermagic or no CRCs",
	'C': "it is a staging driver",
	'O': "it was not built with the kernel",
	'E': "it has no signature that the kernel trusts",
	'K': "it is a live patch",
	'X': "the distribution does not support it",
	'N': "it is a test",
	'T': "it was built with a randomized structure layout",
}

// gplLicences are those that include/linux/license.h takes for compatible.
var gplLicences = []string{"GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL"}

// Taints are the letters that a file says the kernel will be tainted with, in the order of
// the kernel (kernel/panic.c, taint_flags). For one that is signed "E" is not among them: the kernel
// sets it if it does not know the key.
func Taints(info *ko.Info) string {
	letters := ""
	add := func(letter string, is bool) {
		if is {
			letters += letter
		}
	}
	add("P", !slices.Contains(gplLicences, info.License))
	add("F", info.Vermagic == "")
	add("C", info.Field("staging") != "")
	add("O", info.Field("intree") == "")
	add("E", info.Signature == nil)
	add("K", info.Field("livepatch") != "")
	add("N", info.Field("test") != "")
	return letters
}

// taintNotes tell where the taint of a module that was just loaded is not what its
// file says. A module without a taint is what it should be; its file is not read.
func (l *Loader) taintNotes(s Step, m *module) (notes []string) {
	real := readLine(under(l.Root, "sys/module/"+s.Module+"/taint"))
	if real == "" {
		return nil
	}
	info, err := m.info()
	if err != nil {
		return []string{"its file could not be read again: " + err.Error()}
	}
	predicted := Taints(info)
	for _, letter := range real {
		switch words := taintWords[letter]; {
		case strings.ContainsRune(predicted, letter):
		case letter == 'E':
			notes = append(notes, s.Module+" taints the kernel (E): it is signed, but by a key that the kernel does not have")
		case words != "":
			notes = append(notes, s.Module+" taints the kernel ("+string(letter)+"), though its file does not say so: "+words)
		default:
			notes = append(notes, s.Module+" taints the kernel ("+string(letter)+"), though its file does not say so")
		}
	}
	return notes
}

// splitParams is the reverse of joinParams, without the quotes.
func splitParams(params string) (args []string) {
	var arg []byte
	quoted := false
	for _, b := range []byte(params + " ") {
		switch {
		case b == '"':
			quoted = !quoted
		case quoted || strings.IndexByte(blanks, b) < 0:
			arg = append(arg, b)
		case len(arg) > 0:
			args, arg = append(args, string(arg)), nil
		}
	}
	return args
}

// sameValue compares a parameter as written with what sysfs shows: the kernel
// prints numbers in decimal and booleans as Y and N (kernel/params.c).
func sameValue(want, have string) bool {
	w, h := strings.Split(want, ","), strings.Split(have, ",")
	return slices.EqualFunc(w, h, func(w, h string) bool {
		return w == h || canonical(w) == canonical(h)
	})
}

func canonical(v string) string {
	switch strings.ToLower(v) {
	case "y", "yes", "on", "t", "true":
		return "1"
	case "n", "no", "off", "f", "false":
		return "0"
	}
	if n, err := strconv.ParseInt(v, 0, 64); err == nil {
		return strconv.FormatInt(n, 10)
	}
	return v
}
