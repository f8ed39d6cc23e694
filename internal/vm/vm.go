// Package vm boots a kernel in QEMU and runs one program in it: a static Go
// binary, nearly always the one that is running, becomes /init of a generated
// initramfs. No root, no network, no disk image, no module in the guest: two
// serial lines and a cpio archive are all it uses, so that every kernel of a
// distribution will do.
//
// On the host, Run boots, passes on what the program prints and returns its exit
// code. In the guest, Main is what the same binary calls first.
//
// Nothing outlives Run: QEMU dies with its parent, and the initramfs is a file
// without a name. Only the unpacked kernel is kept, in a cache folder.
package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"
)

// qemu is the program that Run starts.
const qemu = "qemu-system-x86_64"

// ErrNoQEMU says that the emulator is not installed.
var ErrNoQEMU = errors.New(qemu + " is not installed")

// Config is one run of one program on one kernel.
type Config struct {
	// Image is the kernel: a vmlinuz (bzImage) or an x86_64 vmlinux with a PVH note
	// (CONFIG_PVH, Linux 5.0).
	Image string

	UEFI *UEFI // the guest's firmware; nil means none, which boots fastest

	Init string            // host path of a static binary that calls Main: becomes /init
	Args []string          // arguments of the program, kept byte for byte
	Env  map[string]string // its environment, beside HOME, PATH, TERM and KMODCTL_VM=1
	Dir  string            // its working directory; default "/"

	Files []File // what else lies in the guest; its root is in memory and writable

	// Append is added to the end of the kernel command line, for instance
	// "module.sig_enforce=1", or "oops=panic" to end a run at its first oops.
	Append string

	MemoryMB int // MiB; default 512, more when Files need it

	// Timeout bounds the whole run. The default is 60 s, and up to four times as much
	// when the guest is emulated on a machine that has more to run than processors.
	Timeout time.Duration

	// Instructions makes the guest's clock count its instructions, one a nanosecond, when it is emulated (QEMU's -icount): what
	// is timed in it does not depend on what else this machine does. It is slower, and waits take no time.
	Instructions bool

	Input   io.Reader // what somebody types at the console, which the firmware's screens read; nil is nobody
	Output  io.Writer // what the program prints, both streams, as it comes; nil discards it
	Console io.Writer // what the firmware and the kernel print on the console; nil discards it
}

// File is one file, folder tree or symbolic link of the guest. Parent folders
// are made. Owner is root.
type File struct {
	Guest string // absolute path in the guest

	// One of the three says what it is; none of them is an empty file.
	Host string // a file, or a folder with everything below it; links inside it stay links
	Data []byte // the content itself
	Link string // a symbolic link to this

	Mode fs.FileMode // permission bits of Data; default 0644
}

// Error says how a guest ended without a result of its program: it panicked,
// hung, never reached /init, or the program was killed by a signal.
type Error struct {
	Image   string // Config.Image
	Reason  string // one line, with what the kernel says is its fault
	Console string // the end of what the kernel and pid 1 printed, at most 8 KiB
}

func (e *Error) Error() string { return "boot " + e.Image + ": " + e.Reason }

// Run boots c.Image, runs c.Init in it and returns the program's exit code.
//
// The error is an *Error when the guest gave no exit code, ErrNoQEMU when there
// is no emulator, the cause of ctx when that ended first; the exit code is then
// -1. The end of ctx kills QEMU.
func Run(ctx context.Context, c Config) (exit int, err error) {
	m, err := prepare(c)
	if err != nil {
		return -1, fmt.Errorf("boot %s: %w", c.Image, err)
	}
	defer m.close()
	accel, _ := Accel()
	switch {
	case accel != "kvm" && accel != "tcg":
		return -1, fmt.Errorf("boot %s: %s=%q is neither kvm nor tcg", c.Image, accelVariable, accel)
	case accel == "kvm" && kvm.untried():
		return m.try(ctx)
	}
	return m.boot(ctx, accel, 0)
}
