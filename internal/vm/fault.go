package vm

import (
	"regexp"
	"strings"
	"sync"
)

// What a kernel calls a fault of its own, and where it was: the words of
// arch/x86/mm/fault.c, lib/bug.c, arch/x86/kernel/traps.c and dumpstack.c.
var (
	faultLine = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`(?m)(\bBUG: |kernel BUG at |general protection fault[,:]|Oops: ).*$`)
	})
	faultAt = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?m)RIP: 0010:([^+\s]+\+0x.*)$`) })
)

// withFault adds the first fault on a guest's console to the reason of its end. Of a
// panic it takes the place of the reason that the panic gives, which is then only
// "Fatal exception".
func withFault(reason, console string) string {
	at := faultLine().FindStringIndex(console)
	if at == nil {
		return reason
	}
	fault := strings.TrimSpace(console[at[0]:at[1]])
	if place := faultAt().FindStringSubmatch(console[at[1]:]); place != nil {
		fault += " in " + strings.TrimSpace(place[1])
	}
	const panicked = "kernel panic: "
	if strings.HasPrefix(reason, panicked) {
		return panicked + fault
	}
	return reason + ": " + fault
}
