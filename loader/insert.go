package loader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"kmodctl/internal/ko"
)

// insert does one finit_module(2) and verifies what it left behind.
func (l *Loader) insert(ctx context.Context, s Step) (StepResult, error) {
	m, err := openModule(s.Path)
	if err != nil {
		return StepResult{}, fmt.Errorf("load %s: %w", s.Module, err)
	}
	log := openWindow(l.Root)
	defer log.close()

	outcome := Inserted
	err = l.finit(ctx, m, s.Params)
	if errors.Is(err, unix.EEXIST) {
		// Either it is there, or its own init returned EEXIST: kmod and u-root
		// take both for success.
		var live bool
		if live, err = l.becomesLive(ctx, m.info.Name, err); live {
			outcome, err = "already live", nil
		}
	}
	lines := log.lines(m.info.Name, err != nil)
	if errno := unix.Errno(0); errors.As(err, &errno) {
		refusal := &KernelError{Op: Insert, Module: s.Module, Path: s.Path, Release: l.release(),
			BuiltFor: m.info.Release(), Errno: errno, Log: lines}
		refusal.judge(log.err == nil)
		return StepResult{}, refusal
	}
	if err != nil {
		return StepResult{}, fmt.Errorf("load %s: %w", s.Module, err)
	}
	if state := initstate(l.Root, m.info.Name); state != "live" {
		return StepResult{}, fmt.Errorf("load %s: the kernel took it, but /sys/module/%s/initstate is %q", s.Module, m.info.Name, state)
	}
	return StepResult{Step: s, Outcome: outcome, Log: lines, Notes: l.differences(m.info, s.Params)}, nil
}

// twinRetries are the pauses before a load that gave EBUSY is tried again: when
// another process was loading the same module and failed, the kernel answers
// EBUSY to us, who have not been tried (kernel/module/main.c, add_unformed_module).
var twinRetries = []time.Duration{20 * time.Millisecond, 80 * time.Millisecond, 320 * time.Millisecond}

// finit inserts m by its file, or by its image on a kernel (or seccomp filter)
// that has init_module(2) only.
func (l *Loader) finit(ctx context.Context, m *module, params string) error {
	try := func() error {
		return call(ctx, func() error {
			err := l.Kernel.Finit(m.file, params, 0)
			if errors.Is(err, unix.ENOSYS) {
				err = l.Kernel.Init(m.elf, params)
			}
			return err
		})
	}
	err := try()
	for _, d := range twinRetries {
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		if err := pause(ctx, d); err != nil {
			return err
		}
		err = try()
	}
	if errors.Is(err, unix.ENOSYS) {
		return ErrNoModules
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return fmt.Errorf("its init has not returned: %w", err) // the file stays open for the call
	}
	m.file.Close()
	return err
}

// becomesLive waits while another load of the module is in its init. If none
// is there, then err, the kernel's EEXIST, stands.
func (l *Loader) becomesLive(ctx context.Context, name string, err error) (bool, error) {
	for {
		switch initstate(l.Root, name) {
		case "live":
			return true, nil
		case "":
			return false, err
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return false, fmt.Errorf("another load of it is in its init: %w", err)
		}
	}
}

// module is a file that is ready for finit_module(2).
type module struct {
	info *ko.Info
	elf  []byte
	file *os.File // the file itself; of a compressed one a memfd with its content
}

// openModule reads a .ko. Errors of internal/ko name the path.
func openModule(path string) (*module, error) {
	// O_NONBLOCK: a FIFO must not hold us. Read-only: a writer gives ETXTBSY.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	m, err := readModule(f)
	if err != nil {
		f.Close()
		var format *ko.FormatError
		if errors.As(err, &format) && format.Path == "" {
			format.Path = path
			return nil, err
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

func readModule(f *os.File) (*module, error) {
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, cmp.Or[error](err, &ko.FormatError{Reason: "not a regular file", Err: ko.ErrNotModule})
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	m := &module{file: f}
	compression := ""
	if m.elf, compression, err = ko.Decompress(data); err != nil {
		return nil, err
	}
	if m.info, err = ko.Read(m.elf); err != nil {
		return nil, err
	}
	if compression != "" {
		// Not MODULE_INIT_COMPRESSED_FILE: a kernel knows one format at most, and
		// of xz only files with crc32, while xz(1) writes crc64.
		if m.file, err = memfd(m.info.Name, m.elf); err != nil {
			return nil, err
		}
		f.Close()
	}
	return m, nil
}

// memfd puts data into memfd_create(2). Unlike a file that is open for writing,
// it gives no ETXTBSY.
func memfd(name string, data []byte) (*os.File, error) {
	// MFD_NOEXEC_SEAL, since Linux 6.3, is required under vm.memfd_noexec=2.
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// differences are what a live module has otherwise than was asked for: another
// build, when some other load was quicker, and parameters, which the kernel
// drops in that case and a module may change.
func (l *Loader) differences(info *ko.Info, params string) (notes []string) {
	if id := liveBuildID(l.Root, info.Name); id != "" && info.BuildID != "" && id != info.BuildID {
		notes = append(notes, "the live "+info.Name+" is another build than the file")
	}
	asked := splitParams(params)
	for i, p := range asked {
		name, want, hasValue := strings.Cut(p, "=")
		later := func(q string) bool { return strings.HasPrefix(q, name+"=") }
		if !hasValue || slices.ContainsFunc(asked[i+1:], later) {
			continue // the kernel takes the last of several
		}
		got, err := os.ReadFile(under(l.Root, "sys/module/"+info.Name+"/parameters/"+name))
		if have := strings.TrimSuffix(string(got), "\n"); err == nil && !sameValue(want, have) {
			notes = append(notes, fmt.Sprintf("parameter %s is %q, asked for was %q", name, have, want))
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
