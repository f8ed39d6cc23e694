package build

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// auditArch is how a seccomp filter knows system calls of this machine's own kind; those of
// another (int 0x80 on amd64) have other numbers. Architectures with socketcall(2) are not
// among them: its arguments are out of a filter's sight.
var auditArch = map[string]uint32{
	"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64, "riscv64": unix.AUDIT_ARCH_RISCV64, "loong64": unix.AUDIT_ARCH_LOONGARCH64,
}[runtime.GOARCH]

// canFilter reports whether seccomp(2) takes filters here: with one at address 0 it
// gets as far as reading it.
var canFilter = func() bool {
	return auditArch != 0 && seccomp(nil) == unix.EFAULT
}

func seccomp(prog *unix.SockFprog) error {
	// Without SPEC_ALLOW (Linux 4.17) kernels before 5.16 slow the compiler down on processors with Spectre's variant 4.
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(prog)))
	if errno != 0 {
		return errno
	}
	return nil
}

// hidden are system calls that are not there for a build: io_uring makes sockets past any
// filter (since 5.19), and the keyrings are those of whoever called.
var hidden = []uint32{unix.SYS_IO_URING_SETUP, unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY}

// filter leaves this thread, and what it executes, no socket but AF_UNIX's: not those that a network
// namespace cuts, nor AF_VSOCK, which it does not. Foreign system calls kill.
func filter() error {
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		above  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		result = unix.BPF_RET | unix.BPF_K

		nr, arch, arg0 = 0, 4, 16 // in struct seccomp_data; arg0's low half, of little-endian machines
		x32            = 1 << 30  // __X32_SYSCALL_BIT
	)
	refuse := func(errno unix.Errno) unix.SockFilter {
		return unix.SockFilter{Code: result, K: unix.SECCOMP_RET_ERRNO | uint32(errno)}
	}
	prog := []unix.SockFilter{
		{Code: load, K: arch},
		{Code: equal, K: auditArch, Jt: 1},
		{Code: result, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: load, K: nr},
		{Code: above, K: x32, Jf: 1},
		refuse(unix.ENOSYS),
	}
	for _, call := range hidden {
		prog = append(prog, unix.SockFilter{Code: equal, K: call, Jf: 1}, refuse(unix.ENOSYS))
	}
	prog = append(prog,
		unix.SockFilter{Code: equal, K: unix.SYS_SOCKET, Jf: 3},
		unix.SockFilter{Code: load, K: arg0},
		unix.SockFilter{Code: equal, K: unix.AF_UNIX, Jt: 1},
		refuse(unix.EAFNOSUPPORT),
		unix.SockFilter{Code: result, K: unix.SECCOMP_RET_ALLOW},
	)
	return failed("seccomp", seccomp(&unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}))
}
