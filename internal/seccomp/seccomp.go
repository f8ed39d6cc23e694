// Package seccomp writes the filters of seccomp(2) that builds and the reading of a dkms.conf run behind. (The
// library at hand lets 32-bit system calls through where the default is to allow: docs/architecture.md.)
package seccomp

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// auditArch is how a filter knows system calls of this machine's own kind; those of another (int 0x80 on amd64) have other
// numbers. Architectures with socketcall(2) are not among them: its arguments are out of a filter's sight.
var auditArch = map[string]uint32{
	"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64, "riscv64": unix.AUDIT_ARCH_RISCV64, "loong64": unix.AUDIT_ARCH_LOONGARCH64,
}[runtime.GOARCH]

// Known reports whether filters can be written for this machine's kind.
func Known() bool { return auditArch != 0 }

// Load loads the low half of an argument, from 0, of little-endian machines (struct seccomp_data).
func Load(arg uint32) unix.SockFilter { return load(16 + 8*arg) }

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

// Equal passes over yes instructions when what was loaded is k, else over no.
func Equal(k uint32, yes, no uint8) unix.SockFilter { return jump(unix.BPF_JEQ, k, yes, no) }

// Any is Equal for whether any bit of k is set.
func Any(k uint32, yes, no uint8) unix.SockFilter { return jump(unix.BPF_JSET, k, yes, no) }

func jump(how uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | how | unix.BPF_K, K: k, Jt: yes, Jf: no}
}

// Allow lets the system call go on.
func Allow() unix.SockFilter { return result(unix.SECCOMP_RET_ALLOW) }

// Refuse fails the system call with errno.
func Refuse(errno unix.Errno) unix.SockFilter {
	return result(unix.SECCOMP_RET_ERRNO | uint32(errno))
}

func result(k uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k}
}

// Without begins a filter that kills for system calls of another architecture and refuses those of x32, and those listed, with
// errno. The number of the system call is loaded after it; an Allow must end the filter.
func Without(errno unix.Errno, calls ...uint32) []unix.SockFilter {
	const (
		nr, arch = 0, 4    // in struct seccomp_data
		x32      = 1 << 30 // __X32_SYSCALL_BIT
	)
	prog := []unix.SockFilter{
		load(arch), Equal(auditArch, 1, 0), result(unix.SECCOMP_RET_KILL_PROCESS),
		load(nr), jump(unix.BPF_JGE, x32, 0, 1), Refuse(errno),
	}
	for _, call := range calls {
		prog = append(prog, Equal(call, 0, 1), Refuse(errno))
	}
	return prog
}

// Install has the kernel take a filter for this thread and what it executes; flags are SECCOMP_FILTER_FLAG_*. With a nil
// filter it fails with EFAULT where the kernel takes filters.
func Install(prog []unix.SockFilter, flags uintptr) error {
	var p *unix.SockFprog
	if prog != nil {
		p = &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(p))); errno != 0 {
		return errno
	}
	return nil
}
