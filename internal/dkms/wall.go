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

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"

	"kmodctl/internal/seccomp"
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
	const writing = unix.O_WRONLY | unix.O_RDWR | unix.O_CREAT | unix.O_TRUNC
	if !seccomp.Known() {
		return nil
	}
	prog := seccomp.Without(unix.EPERM, forbidden...)
	for _, open := range opens {
		prog = append(prog, seccomp.Equal(open.call, 0, 4), seccomp.Load(open.flags), seccomp.Any(writing, 0, 1), seccomp.Refuse(unix.EPERM), seccomp.Allow())
	}
	prog = append(prog, seccomp.Allow())
	runtime.LockOSThread() // to the end: no_new_privs is this thread's until the filter takes it to the others
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	err := seccomp.Install(prog, unix.SECCOMP_FILTER_FLAG_TSYNC)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// opener is a system call that opens a file, and which of its arguments is the flags.
type opener struct{ call, flags uint32 }
