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
		} else if name, value, _ := strings.Cut(arg, "="); len(value) > maxCharp && isCharp(info, name) {
			c.refuse(CauseParamLength, unix.ENOSPC, fmt.Sprintf("the value of parameter %s is too long", name), fmt.Sprintf("%d bytes, the kernel takes %d", len(value), maxCharp))
		}
	}
}

// maxCharp is what param_set_charp of kernel/params.c takes.
const maxCharp = 1024

func isCharp(info *ko.Info, name string) bool {
	return slices.ContainsFunc(info.Params, func(p ko.Param) bool {
		return p.Type == "charp" && ko.NormalizeName(p.Name) == ko.NormalizeName(name)
	})
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
