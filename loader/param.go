package loader

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/xrash/smetrics"
	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
)

// ParamError says why "name=value" is nothing that a module takes.
type ParamError struct {
	Module  string
	Param   string // as it was written
	Reason  string // "no such parameter", `"many" is no int`
	Unknown bool   // it is the name that no parameter has
	Near    string // the parameter that may have been meant, or ""
	Err     error  // the kernel's answer, nil when it was not asked
}

func (e *ParamError) Error() string {
	return fmt.Sprintf("set parameter %s of %s: %s", e.Param, e.Module, e.Reason)
}

// Unwrap lets errors.Is compare with unix.EINVAL and its like.
func (e *ParamError) Unwrap() error { return e.Err }

// NotLiveError is returned for a module that the running kernel does not have.
type NotLiveError struct{ Module string }

func (e *NotLiveError) Error() string { return e.Module + " is not loaded" }

// everyModules are the parameters that the kernel takes for every module, though no file says so: load_module of
// kernel/module/main.c, ddebug_dyndbg_module_param_cb of lib/dynamic_debug.c.
var everyModules = []string{"async_probe", "dyndbg"}

// CheckParam holds "name=value" against what a module's file says of its parameters: the name, - and _ taken as equal, and
// the value by its type. Of a type that is not one of moduleparam.h's, only the module itself can judge, as of
// the length of a string or an array. The error is a *ParamError.
func CheckParam(info *ko.Info, param string) error {
	name, value, hasValue := strings.Cut(param, "=")
	plain := ko.NormalizeName(name)
	wrong := func(reason string, args ...any) error {
		return &ParamError{Module: info.Name, Param: param, Reason: fmt.Sprintf(reason, args...)}
	}
	if _, err := joinParams([]string{param}); err != nil {
		return wrong("not of the form name=value, or a quote that the kernel has no way to write")
	}
	at := slices.IndexFunc(info.Params, func(p ko.Param) bool { return ko.NormalizeName(p.Name) == plain })
	switch {
	case at < 0 && slices.Contains(everyModules, plain):
		return nil
	case at < 0:
		return &ParamError{Module: info.Name, Param: param, Reason: "no such parameter", Unknown: true, Near: nearestParam(plain, info.Params)}
	}
	kind := info.Params[at].Type
	element, isArray := strings.CutPrefix(kind, "array of ")
	check, known := paramTypes[element]
	switch {
	case !known, element == "bool" && !hasValue:
		return nil
	case !hasValue:
		return wrong("it takes a value (%s)", kind)
	}
	values := []string{unquoted(value)}
	if isArray {
		values = strings.Split(values[0], ",")
	}
	for _, v := range values {
		if !check(v) {
			return wrong("%q is no %s", v, element)
		}
	}
	return nil
}

// unquoted takes the quotes off a value that was written for the kernel's own parser, next_arg of lib/cmdline.c.
func unquoted(value string) string {
	if len(value) > 1 && value[0] == '"' && value[len(value)-1] == '"' {
		return value[1 : len(value)-1]
	}
	return value
}

// nearestParam is the parameter that a name was likely meant to be, "" when none is near.
func nearestParam(name string, params []ko.Param) (best string) {
	edits := 2 + len(name)/4
	for _, p := range params {
		if n := smetrics.WagnerFischer(name, ko.NormalizeName(p.Name), 1, 1, 1); n < edits {
			best, edits = p.Name, n
		}
	}
	return best
}

// paramTypes are those of linux/moduleparam.h that a value can be wrong for, and what kernel/params.c takes for them. The
// widths of long are those of 64 bits, since a file of 32 does not say what it was meant for.
var paramTypes = map[string]func(string) bool{
	"byte": isUnsigned(8), "short": isSigned(16), "ushort": isUnsigned(16), "int": isSigned(32), "uint": isUnsigned(32),
	"hexint": isUnsigned(32), "long": isSigned(64), "ulong": isUnsigned(64), "ullong": isUnsigned(64),
	"bool": isBool, "invbool": isBool, "bint": isBool,
}

// isUnsigned is kstrtou8 and its like with base 0: decimal, 0x hexadecimal or 0 octal.
func isUnsigned(bits int) func(string) bool {
	return func(s string) bool {
		digits, base := numberBase(strings.TrimPrefix(strings.TrimSuffix(s, "\n"), "+"))
		_, err := strconv.ParseUint(digits, base, bits)
		return err == nil
	}
}

// isSigned is kstrtos16 and its like.
func isSigned(bits int) func(string) bool {
	return func(s string) bool {
		s = strings.TrimSuffix(s, "\n")
		minus := strings.HasPrefix(s, "-")
		digits, base := numberBase(strings.TrimLeft(s[:min(1, len(s))], "+-") + s[min(1, len(s)):])
		n, err := strconv.ParseUint(digits, base, 64)
		limit := uint64(1) << (bits - 1)
		return err == nil && (n < limit || minus && n == limit)
	}
}

func numberBase(s string) (digits string, base int) {
	switch {
	case len(s) > 2 && strings.EqualFold(s[:2], "0x"):
		return s[2:], 16
	case len(s) > 1 && s[0] == '0':
		return s, 8
	}
	return s, 10
}

// isBool is kstrtobool, which looks at the first letter, and of o at the second.
func isBool(s string) bool {
	s = strings.ToLower(s)
	return s != "" && strings.Contains("y1tn0fed", s[:1]) || strings.HasPrefix(s, "on") || strings.HasPrefix(s, "of")
}

// LiveParam is one parameter of what runs, in /sys/module/<name>/parameters.
type LiveParam struct {
	Name     string
	Value    string
	Readable bool // by this user, who else knows no Value
	Writable bool // by root: it can be changed without a reload
}

// LiveParams reads the parameters that the running kernel shows of a module, built-in ones included; none
// shows those that were declared with the permission 0. The error is a *NotLiveError when there is no such module.
func LiveParams(root kernel.Root, module string) ([]LiveParam, error) {
	dir := under(root, "sys/module/"+ko.NormalizeName(module))
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, &NotLiveError{module}
	}
	entries, err := os.ReadDir(dir + "/parameters")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read parameters of %s: %w", module, err)
	}
	var all []LiveParam
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			continue // it was unloaded meanwhile
		}
		value, err := os.ReadFile(dir + "/parameters/" + entry.Name())
		all = append(all, LiveParam{entry.Name(), strings.TrimSuffix(string(value), "\n"), err == nil, info.Mode()&0o200 != 0})
	}
	return all, nil
}

// SetParam writes a parameter of a live module and returns what the kernel made of it. The error is a *ParamError when the
// module refuses the value.
func SetParam(root kernel.Root, module, name, value string) (now string, err error) {
	path := under(root, "sys/module/"+ko.NormalizeName(module)+"/parameters/"+name)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		defer f.Close()
		var errno unix.Errno
		_, err = f.WriteString(cmp.Or(unquoted(value), "\n")) // an empty write is none; a charp would keep a newline
		if errors.As(err, &errno) {
			return "", &ParamError{Module: module, Param: name + "=" + value, Reason: "the module refuses it: " + errno.Error(), Err: errno}
		}
	}
	if err != nil {
		return "", fmt.Errorf("set parameter %s of %s: %w", name, module, err)
	}
	return readLine(path), nil
}
