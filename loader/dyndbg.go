package loader

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
)

// ErrNoDynamicDebug says that there is no control file, by CONFIG_DYNAMIC_DEBUG or because neither /proc nor debugfs shows it.
var ErrNoDynamicDebug = errors.New("this kernel has no dynamic debug (CONFIG_DYNAMIC_DEBUG)")

// DebugMessage is a pr_debug or dev_dbg of a module, which is compiled in and can be turned on:
// Documentation/admin-guide/dynamic-debug-howto.rst.
type DebugMessage struct {
	File     string `json:"file"` // of the source
	Line     int    `json:"line"`
	Function string `json:"function"`
	Flags    string `json:"flags"` // p when it prints, _ for none; f, l, m, t and s decorate
	Text     string `json:"text"`  // the format, with the escapes of C
}

// On reports whether the message is printed.
func (m DebugMessage) On() bool { return strings.Contains(m.Flags, "p") }

// dynamicDebug is the control file: in /proc since Linux 5.7, in debugfs before.
func dynamicDebug(root kernel.Root) (string, error) {
	for _, name := range []string{"proc/dynamic_debug/control", "sys/kernel/debug/dynamic_debug/control"} {
		path := under(root, name)
		if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return path, err
		}
	}
	return "", ErrNoDynamicDebug
}

// DebugMessages reads the messages of a module that the running kernel has, in it or as a part of it. The error is a *NotLiveError
// when it has no such module, and ErrNoDynamicDebug where there is none.
func DebugMessages(root kernel.Root, module string) ([]DebugMessage, error) {
	path, err := dynamicDebug(root)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	module = ko.NormalizeName(module)
	all, err := parseDebug(f, module)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if _, err := os.Stat(under(root, "sys/module/"+module)); len(all) == 0 && errors.Is(err, fs.ErrNotExist) {
		return nil, &NotLiveError{module}
	}
	return all, nil
}

// SetDebug turns all messages of a module on or off. Their decorations stay.
func SetDebug(root kernel.Root, module string, on bool) error {
	path, err := dynamicDebug(root)
	if err != nil {
		return err
	}
	if err := CheckName(module); err != nil { // the kernel takes patterns, and several commands
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	flag := "-p"
	if on {
		flag = "+p"
	}
	_, err = fmt.Fprintf(f, "module %s %s\n", ko.NormalizeName(module), flag)
	return errors.Join(err, f.Close())
}

// debugLine is `FILE:LINE [MODULE]FUNCTION =FLAGS "FORMAT"`, of lib/dynamic_debug.c, ddebug_proc_show.
var debugLine = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(.+):(\d+) \[([^\]]+)\](\S+) =(\S+) "(.*)"(?: .*)?$`)
})

func parseDebug(r io.Reader, module string) (all []DebugMessage, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m := debugLine().FindStringSubmatch(lines.Text())
		if m == nil || ko.NormalizeName(m[3]) != module {
			continue
		}
		line, _ := strconv.Atoi(m[2]) // digits, as the pattern says; 0 if there are too many
		all = append(all, DebugMessage{m[1], line, m[4], m[5], strings.TrimSuffix(strings.TrimSuffix(m[6], `\n`), `\012`)})
	}
	return all, lines.Err()
}
