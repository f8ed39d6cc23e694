package loader

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
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

// undecompressed are the lines of kernel/module/decompress.c about a file that it could not read.
var undecompressed = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`decompress|compressed (module|data)`)
})

// gaveUp is the line about a dependency that was in its init for 30 seconds: the EBUSY that no second try will mend.
var gaveUp = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`gave up waiting for init of module`)
})

// window is the kernel's log during one system call.
type window struct {
	kmsg     *kmsg
	err      error
	presence *presence // nil: others may have been at work
	records  []record
	mixed    bool // lines of the loader without a name may have been about another module
}

// openWindow begins with the next line that the kernel logs.
func (r *runner) openWindow() *window {
	w := &window{}
	if w.kmsg, w.err = openKmsg(r.Root); w.err == nil {
		w.err = w.kmsg.skip()
	}
	if r.locks != nil {
		w.presence, _ = r.locks.enter()
	}
	return w
}

func (w *window) read() error {
	records, err := w.kmsg.read()
	w.records = append(w.records, records...)
	return err
}

// has reports whether any line so far fits, whoever it is about.
func (w *window) has(line func() *regexp.Regexp) bool {
	return w.err == nil && w.read() == nil &&
		slices.ContainsFunc(w.records, func(r record) bool { return line().MatchString(r.text) })
}

// lines ends the window: it returns what was printed since openWindow about module,
// and, if no other call of ours was under way, by the loader without a name. After
// a failure without a line it waits up to 50 ms for one, since another CPU may
// still be about to store it.
func (w *window) lines(module string, failed bool) []string {
	if w.err != nil {
		return []string{fmt.Sprintf("(the kernel's log is not readable: %v)", w.err)}
	}
	err := w.read()
	if failed && err == nil && len(w.about(module, true)) == 0 {
		unix.Poll([]unix.PollFd{{Fd: int32(w.kmsg.fd), Events: unix.POLLIN}}, 50)
		err = w.read()
	}
	alone := w.leave()
	lines := w.about(module, alone)
	w.mixed = !alone && len(lines) < len(w.about(module, true))
	if err != nil {
		lines = append(lines, fmt.Sprintf("(%v)", err))
	}
	return lines
}

// about are the lines that name module, and with nameless those without a name.
func (w *window) about(module string, withNameless bool) (lines []string) {
	for _, r := range w.records {
		if named(r.text, module) || withNameless && nameless().MatchString(r.text) {
			lines = append(lines, r.text)
		}
	}
	return lines
}

// heard reports whether silence about a module is evidence: all that was printed
// about it is known.
func (w *window) heard() bool { return w.err == nil && !w.mixed }

// crashBegin and crashEnd are the first and the last line of an oops, arch/x86/kernel/dumpstack.c and its like.
var (
	crashBegin = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^(BUG: |kernel BUG at |general protection fault|Oops|Unable to handle kernel|Internal error: |divide error|invalid opcode|stack segment|int3: )`)
	})
	crashTelling = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^(BUG: |kernel BUG at |general protection fault|Oops|Unable to handle kernel|Internal error: |divide error|invalid opcode|RIP: |pc : )`)
	})
)

const crashEnd = "---[ end trace "

// crash adds to lines the telling ones of the oops by which the thread of a call
// ended: its own, by the thread's number, or else by a function of the module.
func (w *window) crash(module string, stuck *StuckError, lines []string) []string {
	if !stuck.Died || w.err != nil {
		return lines
	}
	thread := fmt.Sprintf("PID: %d ", stuck.Thread)
	for i := 0; i < len(w.records); i++ {
		if !crashBegin().MatchString(w.records[i].text) {
			continue
		}
		var telling []string
		ours := false
		for ; i < len(w.records) && !strings.HasPrefix(w.records[i].text, crashEnd); i++ {
			text := w.records[i].text
			if crashTelling().MatchString(text) && !slices.Contains(telling, text) {
				telling = append(telling, text)
			}
			ours = ours || strings.Contains(text, thread) || strings.Contains(text, "["+module+"]")
		}
		if ours {
			return append(lines, telling...)
		}
	}
	return lines
}

// leave ends the call's presence, and says whether it was alone.
func (w *window) leave() bool {
	p := w.presence
	w.presence = nil
	return p != nil && p.leave()
}

func (w *window) close() {
	w.leave()
	if w.kmsg != nil {
		w.kmsg.Close()
	}
}
