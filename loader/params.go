package loader

import (
	"fmt"
	"slices"
	"strings"
)

// blanks are the bytes at which the kernel ends a parameter: isspace of
// lib/ctype.c, for which 0xa0 is one even inside a UTF-8 character.
const blanks = " \t\n\v\f\r\xa0"

// joinParams makes the one string that finit_module(2) takes. A value with
// blanks is quoted as next_arg of lib/cmdline.c reads it, which knows no escapes.
func joinParams(params []string) (string, error) {
	var args []string
	for _, p := range params {
		name, value, hasValue := strings.Cut(p, "=")
		switch {
		case name == "" || hasByte(name, blanks+"\"\x00") || strings.Contains(value, "\x00"):
			return "", fmt.Errorf("read parameter %q: not of the form name=value", p)
		case !hasByte(value, blanks+`"`):
		case len(value) > 1 && value[0] == '"' && strings.IndexByte(value[1:], '"') == len(value)-2:
			// The user quoted it for the kernel already.
		case strings.Contains(value, `"`):
			return "", fmt.Errorf("read parameter %q: the kernel has no way to write a quote inside a value", p)
		case hasValue:
			p = name + `="` + value + `"`
		}
		args = append(args, p)
	}
	return strings.Join(args, " "), nil
}

// hasByte is strings.ContainsAny for bytes: 0xa0 is no valid UTF-8.
func hasByte(s, set string) bool {
	return slices.ContainsFunc([]byte(s), func(b byte) bool { return strings.IndexByte(set, b) >= 0 })
}
