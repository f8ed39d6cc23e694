package build

import (
	"golang.org/x/sys/unix"

	"kmodctl/internal/seccomp"
)

// Without SPEC_ALLOW (Linux 4.17) kernels before 5.16 slow the compiler down on processors with Spectre's variant 4.
const filterFlags = unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW

// canFilter reports whether seccomp(2) takes filters here: without one it gets as far as reading it.
var canFilter = func() bool {
	return seccomp.Known() && seccomp.Install(nil, filterFlags) == unix.EFAULT
}

// hidden are system calls that are not there for a build: io_uring makes sockets past any
// filter (since 5.19), and the keyrings are those of whoever called.
var hidden = []uint32{unix.SYS_IO_URING_SETUP, unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY}

// filter leaves this thread, and what it executes, no socket but AF_UNIX's: not those that a network
// namespace cuts, nor AF_VSOCK, which it does not. Foreign system calls kill.
func filter() error {
	prog := append(seccomp.Without(unix.ENOSYS, hidden...),
		seccomp.Equal(unix.SYS_SOCKET, 0, 3),
		seccomp.Load(0),
		seccomp.Equal(unix.AF_UNIX, 1, 0),
		seccomp.Refuse(unix.EAFNOSUPPORT),
		seccomp.Allow(),
	)
	return failed("seccomp", seccomp.Install(prog, filterFlags))
}
