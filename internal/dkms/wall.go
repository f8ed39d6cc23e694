package dkms

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
)

// confine takes from this process, and from the commands that it will start, what evaluating does not need. The
// allow-list and the handlers of the shell already keep a conf from all of it; this holds where they should fail.
func (m *message) confine() error {
	unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // there is nothing that we know of; before Linux 5.9 it stays
	debug.SetGCPercent(100)
	debug.SetMaxStack(memoryLimit / 8)
	if err := limit(); err != nil {
		return fmt.Errorf("set limits: %w", err)
	}
	if err := m.landlock(); err != nil { // before the user changes, who may not reach all of it
		return fmt.Errorf("landlock: %w", err)
	}
	if m.Drop {
		// The user last: only root may change the others.
		for _, err := range []error{syscall.Setgroups(nil), syscall.Setgid(m.GID), syscall.Setuid(m.UID)} {
			if err != nil {
				return fmt.Errorf("become user %d: %w", m.UID, err)
			}
		}
	}
	if err := filter(); err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	return nil
}

func limit() error {
	seconds := uint64(timeLimit/time.Second) + 1
	for _, l := range []struct {
		resource int
		max      uint64
	}{
		{unix.RLIMIT_DATA, dataSize() + memoryLimit},
		{unix.RLIMIT_FSIZE, 0},
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_NOFILE, 256},
		{unix.RLIMIT_CPU, seconds * uint64(runtime.NumCPU())},
	} {
		var now unix.Rlimit
		if err := unix.Getrlimit(l.resource, &now); err != nil {
			return err
		}
		now.Max = min(now.Max, l.max)
		now.Cur = min(now.Cur, now.Max)
		if err := unix.Setrlimit(l.resource, &now); err != nil {
			return err
		}
	}
	return nil
}

// dataSize is what this process already has of what RLIMIT_DATA counts, in bytes: much under the race detector.
func dataSize() (bytes uint64) {
	status, _ := os.ReadFile("/proc/self/status")
	_, rest, _ := strings.Cut(string(status), "\nVmData:")
	fmt.Sscan(rest, &bytes)
	return bytes << 10
}

// landlock leaves to read what the message says, and to execute the commands.
func (m *message) landlock() error {
	dirs := []string{"/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/dev/null"}
	dirs = append(dirs, m.Reads...)
	for name := range commands {
		for _, place := range places {
			if path, err := filepath.EvalSymlinks(filepath.Join(place, name)); err == nil {
				dirs = append(dirs, path)
			}
		}
	}
	var rules []landlock.Rule
	for _, path := range dirs {
		switch info, err := os.Stat(path); {
		case err != nil:
		case info.IsDir():
			rules = append(rules, landlock.RODirs(path))
		default:
			rules = append(rules, landlock.ROFiles(path))
		}
	}
	return landlock.V10.BestEffort().Restrict(rules...)
}

// auditArch is how a seccomp filter knows system calls of this machine's own kind.
var auditArch = map[string]uint32{
	"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64, "riscv64": unix.AUDIT_ARCH_RISCV64, "loong64": unix.AUDIT_ARCH_LOONGARCH64,
}[runtime.GOARCH]

// forbidden are system calls that change files, or reach other processes or a network.
var forbidden = append([]uint32{
	unix.SYS_SOCKET, unix.SYS_IO_URING_SETUP, unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	unix.SYS_OPENAT2, unix.SYS_MKDIRAT, unix.SYS_MKNODAT, unix.SYS_UNLINKAT, unix.SYS_LINKAT, unix.SYS_SYMLINKAT, unix.SYS_RENAMEAT2,
	unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_TRUNCATE, unix.SYS_FTRUNCATE,
	unix.SYS_UTIMENSAT, unix.SYS_SETXATTR, unix.SYS_LSETXATTR, unix.SYS_FSETXATTR, unix.SYS_REMOVEXATTR, unix.SYS_LREMOVEXATTR, unix.SYS_FREMOVEXATTR,
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_MOUNT, unix.SYS_UNSHARE, unix.SYS_SHMGET, unix.SYS_MSGGET, unix.SYS_SEMGET, unix.SYS_MQ_OPEN,
}, oldCalls...)

// filter refuses the forbidden system calls and each opening of a file for writing, in all threads and in
// what they execute. Where there is no seccomp(2) the rest of the wall has to do.
func filter() error {
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		above  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		any    = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		result = unix.BPF_RET | unix.BPF_K

		nr, arch, arg0 = 0, 4, 16 // in struct seccomp_data; each argument has 8 bytes, of little-endian machines
		x32            = 1 << 30  // __X32_SYSCALL_BIT
		writing        = unix.O_WRONLY | unix.O_RDWR | unix.O_CREAT | unix.O_TRUNC
	)
	if auditArch == 0 {
		return nil
	}
	refuse := unix.SockFilter{Code: result, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
	allow := unix.SockFilter{Code: result, K: unix.SECCOMP_RET_ALLOW}
	prog := []unix.SockFilter{
		{Code: load, K: arch},
		{Code: equal, K: auditArch, Jt: 1},
		{Code: result, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: load, K: nr},
		{Code: above, K: x32, Jf: 1},
		refuse,
	}
	for _, call := range forbidden {
		prog = append(prog, unix.SockFilter{Code: equal, K: call, Jf: 1}, refuse)
	}
	for _, open := range opens {
		prog = append(prog, unix.SockFilter{Code: equal, K: open.call, Jf: 4},
			unix.SockFilter{Code: load, K: arg0 + 8*open.flags}, unix.SockFilter{Code: any, K: writing, Jf: 1}, refuse, allow)
	}
	prog = append(prog, allow)
	runtime.LockOSThread() // to the end: no_new_privs is this thread's until the filter takes it to the others
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	p := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&p)))
	if errno != 0 && !errors.Is(errno, unix.ENOSYS) && !errors.Is(errno, unix.EINVAL) {
		return errno
	}
	return nil
}

// opener is a system call that opens a file, and which of its arguments is the flags.
type opener struct{ call, flags uint32 }
