package loader

import (
	"cmp"
	"fmt"
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
	for _, letter := range real {
		switch {
		case explains(info, letter):
		case letter == 'E':
			notes = append(notes, s.Module+" taints the kernel, E: it is signed, but not by a key that the kernel has")
		default:
			notes = append(notes, fmt.Sprintf("%s taints the kernel, though its file does not say so: %s", s.Module, cmp.Or(explainTaints(string(letter))[0], string(letter))))
		}
	}
	return notes
}

// explains reports whether a file says why the kernel gave the module that letter.
func explains(info *ko.Info, letter rune) bool {
	switch letter {
	case 'P':
		return !slices.Contains(gplLicences, info.License)
	case 'F':
		return info.Vermagic == "" || !info.Modversions
	case 'C':
		return info.Field("staging") != ""
	case 'O':
		return info.Field("intree") == ""
	case 'E':
		return info.Signature == nil
	case 'K':
		return info.Field("livepatch") != ""
	case 'N':
		return info.Field("test") != ""
	}
	return false
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
