package loader

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
)

// kmsg reads the kernel's log: /dev/kmsg,
// Documentation/ABI/testing/dev-kmsg, since Linux 3.5. It is read with plain
// system calls: os.File would wait for lines that nobody promised.
type kmsg struct{ fd int }

func openKmsg(root kernel.Root) (*kmsg, error) {
	path := under(root, "dev/kmsg")
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &kmsg{fd}, nil
}

func (k *kmsg) Close() error { return unix.Close(k.fd) }

// skip goes past all that the kernel has printed so far.
func (k *kmsg) skip() error {
	_, err := unix.Seek(k.fd, 0, unix.SEEK_END)
	return err
}

// read returns the records that are there, without waiting.
func (k *kmsg) read() ([]record, error) {
	var records []record
	buf := make([]byte, 16<<10) // CONSOLE_EXT_LOG_MAX is 8 KiB
	for {
		n, err := unix.Read(k.fd, buf)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EPIPE): // EPIPE: records were overwritten, the next read goes on behind them
		case errors.Is(err, unix.EAGAIN), err == nil && n == 0:
			return records, nil
		case err != nil:
			return records, fmt.Errorf("read /dev/kmsg: %w", err)
		default:
			records = append(records, parseRecords(string(buf[:n]))...)
		}
	}
}

// record is one line of the kernel's log.
type record struct {
	usec int64 // since boot
	text string
}

// parseRecords reads "level,sequence,microseconds,flags[,...];text"; lines that
// start with a blank (device properties) belong to the record before.
func parseRecords(s string) (records []record) {
	for line := range strings.Lines(s) {
		head, text, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ";")
		fields := strings.Split(head, ",")
		if !ok || len(fields) < 4 || strings.HasPrefix(line, " ") {
			continue
		}
		usec, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil {
			continue
		}
		records = append(records, record{usec, text})
	}
	return records
}

// nameless are lines of the kernel's loader that do not begin with the module's
// name (kernel/module/main.c, kernel/params.c, security/): those of 6.1 and 6.12.
var nameless = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(` + strings.Join([]string{
		`Invalid ELF `, `Invalid architecture in ELF`, `ELF Spec violation`, `\(missing \.modinfo section`,
		`module: `, `Loading of `, `Lockdown: `, `LoadPin: `, `PKCS7: `, `Unsupported digest algo`,
		`Spectre V2 : System may be vulnerable`, `x86/modules: `, `overflow in relocation type`,
		`impossible to appraise a module`, `decompression failed`, `not an? \S+ compressed module`,
		`[A-Za-z_]\w*: (can only take \d+ arguments|string doesn't fit|string parameter too long)`,
	}, "|") + `)`)
})

// named reports whether the kernel or the module itself speaks of module: its
// own lines begin with its name, in which drivers also write - for _.
func named(line, module string) bool {
	words := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" :[]'", r) })
	if len(words) > 0 && ko.NormalizeName(words[0]) == module {
		return true
	}
	switch {
	case strings.HasPrefix(line, "Module "), strings.HasPrefix(line, "module "):
		return len(words) > 1 && words[1] == module
	case strings.HasPrefix(line, "do_init_module: '"), strings.HasPrefix(line, "failed to validate module ["):
		return strings.Contains(line, "'"+module+"'") || strings.Contains(line, "["+module+"]")
	}
	return false
}

// KernelLog returns all lines about a module that are still in the kernel's
// ring buffer, oldest first, with seconds since boot as dmesg(1) prints them.
// EPERM: kernel.dmesg_restrict is 1 and the process has no CAP_SYSLOG.
func KernelLog(module string) ([]string, error) {
	k, err := openKmsg("/")
	if err != nil {
		return nil, fmt.Errorf("read kernel log: %w", err)
	}
	defer k.Close()
	records, err := k.read()
	if err != nil {
		return nil, err
	}
	var lines []string
	module = ko.NormalizeName(module)
	for _, r := range records {
		if named(r.text, module) {
			lines = append(lines, fmt.Sprintf("[%5d.%06d] %s", r.usec/1e6, r.usec%1e6, r.text))
		}
	}
	return lines, nil
}

// window is the kernel's log during one system call.
type window struct {
	kmsg *kmsg
	err  error
}

func openWindow(root kernel.Root) *window {
	k, err := openKmsg(root)
	if err == nil {
		err = k.skip()
	}
	return &window{k, err}
}

// lines returns what was printed since openWindow about module, or by the
// loader without a name. After a failure without a line it waits up to 50 ms
// for one, since another CPU may still be about to store it.
func (w *window) lines(module string, failed bool) []string {
	if w.err != nil {
		return []string{fmt.Sprintf("(the kernel's log is not readable: %v)", w.err)}
	}
	var lines []string
	for try := 0; ; try++ {
		records, err := w.kmsg.read()
		for _, r := range records {
			if named(r.text, module) || nameless().MatchString(r.text) {
				lines = append(lines, r.text)
			}
		}
		if err != nil {
			return append(lines, fmt.Sprintf("(%v)", err))
		}
		if !failed || len(lines) > 0 || try > 0 {
			return lines
		}
		unix.Poll([]unix.PollFd{{Fd: int32(w.kmsg.fd), Events: unix.POLLIN}}, 50)
	}
}

func (w *window) close() {
	if w.kmsg != nil {
		w.kmsg.Close()
	}
}
