package dkms

import "golang.org/x/sys/unix"

// oldCalls are forbidden system calls that newer architectures do not have.
var oldCalls = []uint32{
	unix.SYS_CREAT, unix.SYS_MKDIR, unix.SYS_MKNOD, unix.SYS_RMDIR, unix.SYS_UNLINK, unix.SYS_LINK, unix.SYS_SYMLINK, unix.SYS_RENAME, unix.SYS_RENAMEAT,
	unix.SYS_CHMOD, unix.SYS_CHOWN, unix.SYS_LCHOWN, unix.SYS_UTIME, unix.SYS_UTIMES, unix.SYS_FUTIMESAT,
}

var opens = []opener{{unix.SYS_OPENAT, 2}, {unix.SYS_OPEN, 1}}
