package loader

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"kmodctl/internal/ko"
)

// parameters judges what a module is given. The kernel ignores a name that it does not know. Whoever types one wants something; a
// line of modprobe.d that has outlived its module's parameter shall not keep the module out.
func (c *check) parameters(info *ko.Info, s Step) {
	given := splitParams(c.plan.Params)
	for _, arg := range splitParams(s.Params) {
		if arg == "--" {
			return // parse_args in kernel/params.c
		}
		var wrong *ParamError
		if err := CheckParam(info, arg); errors.As(err, &wrong) {
			c.parameter(wrong, slices.Contains(given, arg))
		} else {
			c.room(info, arg)
		}
	}
}

// room judges how much a parameter is given: param_array, param_set_charp and param_set_copystring of kernel/params.c.
func (c *check) room(info *ko.Info, arg string) {
	name, value, _ := strings.Cut(arg, "=")
	at := slices.IndexFunc(info.Params, func(p ko.Param) bool { return ko.NormalizeName(p.Name) == ko.NormalizeName(name) })
	if at < 0 {
		return // one of every module
	}
	const charp = 1024
	p, most := info.Params[at], 0
	switch {
	case strings.HasPrefix(p.Type, "array of "):
		if n := strings.Count(value, ",") + 1; p.Max > 0 && n > p.Max {
			c.refuse(CauseParamCount, unix.EINVAL, fmt.Sprintf("parameter %s takes at most %d values", p.Name, p.Max), fmt.Sprintf("%d values", n))
		}
		return
	case p.Type == "charp":
		most = charp
	case p.Type == "string" && p.Max > 0:
		most = p.Max - 1
	default:
		return
	}
	if len(value) > most {
		c.refuse(CauseParamLength, unix.ENOSPC, fmt.Sprintf("the text for parameter %s is longer than %d bytes", p.Name, most), fmt.Sprintf("%d bytes", len(value)))
	}
}

func (c *check) parameter(wrong *ParamError, given bool) {
	name, value, _ := strings.Cut(wrong.Param, "=")
	if !wrong.Unknown {
		errno := unix.EINVAL
		if isNumber(value) {
			errno = unix.ERANGE
		}
		c.refuse(CauseParamValue, errno, fmt.Sprintf("%q is not a value for parameter %s", value, name), wrong.Reason)
		return
	}
	var evidence []string
	if wrong.Near != "" {
		evidence = append(evidence, "the nearest name is "+wrong.Near)
	}
	severity := Warning
	if given {
		severity = Refused
	}
	c.add(severity, CauseParamUnknown, 0, fmt.Sprintf("it has no parameter %s, and the kernel would ignore it", name), evidence...)
}

// isNumber tells a number that is out of range from what is none, as the kernel does by ERANGE and EINVAL.
func isNumber(value string) bool {
	digits, base := numberBase(strings.TrimLeft(value[:min(1, len(value))], "+-") + value[min(1, len(value)):])
	_, err := strconv.ParseUint(digits, base, 64)
	return err == nil || errors.Is(err, strconv.ErrRange)
}
