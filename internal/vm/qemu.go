package vm

import (
	"context"
	"crypto/rand"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine is one guest, ready to be booted, more than once if need be.
type machine struct {
	Config
	qemu      string // path of the emulator
	token     string
	kernel    *os.File
	initramfs *os.File
	vars      *os.File // the firmware's store, nil without UEFI
	disk      string   // folder that UEFI starts from; "" when QEMU gives it the kernel

	out *output // of the last boot
}

// prepare makes everything that QEMU will read.
func prepare(c Config) (*machine, error) {
	path, err := exec.LookPath(qemu)
	if err != nil {
		return nil, ErrNoQEMU
	}
	if err := checkInit(c.Init); err != nil {
		return nil, err
	}
	if c.Output == nil {
		c.Output = io.Discard
	}
	m := &machine{Config: c, qemu: path, token: rand.Text()}
	if c.UEFI != nil {
		m.kernel, err = os.Open(c.Image) // UEFI starts a vmlinuz as it is
	} else {
		m.kernel, err = openKernel(c.Image)
	}
	if err != nil {
		return nil, err
	}
	if m.initramfs, err = writeInitramfs(m.task(), c); err != nil {
		m.close()
		return nil, fmt.Errorf("write initramfs: %w", err)
	}
	if c.UEFI != nil {
		if err := m.prepareUEFI(); err != nil {
			m.close()
			return nil, err
		}
	}
	if m.MemoryMB == 0 {
		if m.MemoryMB, err = memoryFor(m.initramfs); err != nil {
			m.close()
			return nil, err
		}
	}
	return m, nil
}

// memoryFor is the default of Config.MemoryMB: the archive and what it is
// unpacked to are in memory together, and a root on tmpfs takes at most half of
// what the archive leaves.
func memoryFor(initramfs *os.File) (int, error) {
	info, err := initramfs.Stat()
	if err != nil {
		return 0, err
	}
	return max(512, 256+3*int(info.Size()>>20)), nil
}

func (m *machine) close() {
	m.kernel.Close()
	m.initramfs.Close() // nil is told, which nobody minds
	m.vars.Close()
}

// prepareUEFI makes the firmware's store and what it starts from.
func (m *machine) prepareUEFI() (err error) {
	if m.vars, err = m.UEFI.store(); err != nil || m.UEFI.Disk == nil {
		return err
	}
	ours := func(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }
	if m.disk, err = m.UEFI.Disk(ours(m.kernel), ours(m.initramfs), m.cmdline()); err != nil {
		return fmt.Errorf("make the disk of UEFI: %w", err)
	}
	return nil
}

// cmdline is the kernel's.
func (m *machine) cmdline() string {
	return strings.TrimSpace("console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests " + marker + "=1 " + m.Append)
}

// checkInit refuses what the kernel could not start: there is no dynamic linker
// in the guest.
func checkInit(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("read init: %w", err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("init %s is not static (built with CGO_ENABLED=1?)", path)
		}
	}
	return nil
}

// task is what the guest's pid 1 is told.
func (m *machine) task() task {
	env := map[string]string{
		"HOME": "/root",
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"TERM": "dumb",
		marker: "1",
	}
	maps.Copy(env, m.Env)
	t := task{Token: m.token, Args: asBytes(m.Args), Dir: m.Dir}
	for k, v := range env {
		t.Env = append(t.Env, []byte(k+"="+v))
	}
	if t.Dir == "" {
		t.Dir = "/"
	}
	return t
}

// Why a boot was ended from our side.
var (
	errTimeout = errors.New("timeout")
	errNoBegin = errors.New("no begin")
	errResult  = errors.New("result arrived")
)

// rebootTime is how long a guest may take to reboot once its result is here. A
// kernel that a module has hurt may never manage; the result stands.
const rebootTime = 5 * time.Second

// boot runs the guest once. With beginWithin it is killed if its init does not
// start within that time.
func (m *machine) boot(ctx context.Context, accel string, beginWithin time.Duration) (exit int, err error) {
	timeout := m.Timeout
	if timeout == 0 {
		timeout = defaultTimeout(accel)
	}
	guest, kill := context.WithCancelCause(ctx)
	defer kill(nil)
	defer time.AfterFunc(timeout, func() { kill(errTimeout) }).Stop()
	m.out = newOutput(m.token, m.Output, func() { time.AfterFunc(rebootTime, func() { kill(errResult) }) })
	if out := m.out; beginWithin > 0 {
		defer time.AfterFunc(beginWithin, func() {
			if !out.begun() {
				kill(errNoBegin)
			}
		}).Stop()
	}
	var console, stderr tail
	console.to = m.Console
	err = m.exec(guest, accel, &console, &stderr)
	if lost := errors.Join(m.out.err, console.err); lost != nil && ctx.Err() == nil {
		return -1, fmt.Errorf("boot %s: pass on output: %w", m.Image, lost)
	}
	if m.out.state == "exit" {
		return m.out.result, nil
	}
	if ctx.Err() != nil {
		return -1, fmt.Errorf("boot %s: %w", m.Image, context.Cause(ctx))
	}
	failure := &Error{Image: m.Image, Console: console.String()}
	switch cause := context.Cause(guest); {
	case m.out.state == "signal":
		failure.Reason = fmt.Sprintf("the program was killed by signal %d (%s)", m.out.result, unix.Signal(m.out.result))
	case cause == errTimeout && m.out.begun():
		failure.Reason = fmt.Sprintf("the program did not end within %v", timeout)
	case cause == errTimeout:
		failure.Reason = fmt.Sprintf("the kernel did not reach its init within %v", timeout)
	case cause == errNoBegin:
		failure.Reason = fmt.Sprintf("the kernel did not reach its init within %v", beginWithin)
	case err != nil:
		failure.Reason = strings.TrimSpace(fmt.Sprintf("%s: %v: %s", qemu, err, stderr.String()))
	default:
		failure.Reason = ending(failure.Console, m.out.begun())
	}
	failure.Reason = withFault(failure.Reason, failure.Console)
	return -1, failure
}

// ending says why a guest went away by itself.
func ending(console string, begun bool) string {
	for line := range strings.Lines(console) {
		if why, ok := strings.CutPrefix(line, complaint); ok {
			return "pid 1 of the guest: " + strings.TrimSpace(why)
		}
		if _, why, ok := strings.Cut(line, "Kernel panic - "); ok {
			return "kernel panic: " + strings.TrimPrefix(strings.TrimSpace(why), "not syncing: ")
		}
	}
	if begun {
		return "the guest ended before its program did"
	}
	return "the guest ended before its program began"
}

// exec runs QEMU to its end. The kernel, the initramfs and the console are open
// files that it is handed, so none of them needs a name.
func (m *machine) exec(ctx context.Context, accel string, console, stderr *tail) error {
	ours, theirs, err := socketpair()
	if err != nil {
		return err
	}
	defer ours.Close()
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none",
		"-M", "q35", "-accel", accel, "-cpu", "max", "-smp", "1", "-m", fmt.Sprint(m.MemoryMB),
		"-chardev", "socket,id=console,fd=5",
		"-serial", "chardev:console", "-serial", "stdio",
	}
	files := []*os.File{m.kernel, m.initramfs, theirs}
	if m.disk == "" {
		args = append(args, "-no-reboot", "-kernel", "/proc/self/fd/3", "-initrd", "/proc/self/fd/4", "-append", m.cmdline())
	}
	if m.UEFI != nil {
		args = append(args, m.firmware("/proc/self/fd/6")...)
		files = append(files, m.vars)
	}
	if m.Instructions && accel == "tcg" {
		args = append(args, "-icount", "shift=0,sleep=off")
	}
	cmd := exec.CommandContext(ctx, m.qemu, args...)
	cmd.ExtraFiles = files
	cmd.Stdout, cmd.Stderr = m.out, stderr
	// A group of its own: Ctrl-C is for us, and ctx kills QEMU. The death signal comes
	// when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG), hence the lock.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return err
	}
	if m.Input != nil {
		go io.Copy(ours, m.Input)
	}
	io.Copy(console, ours) // until QEMU ends: a console that nobody reads would stop it
	return cmd.Wait()
}

// socketpair is the console's line, our end and QEMU's.
func socketpair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "console"), os.NewFile(uintptr(fds[1]), "console"), nil
}
