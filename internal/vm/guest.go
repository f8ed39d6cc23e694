package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

const (
	// marker is on the kernel's command line; a NAME=VALUE that the kernel does not
	// know becomes the environment of init (Documentation/admin-guide/kernel-parameters.rst).
	marker = "KMODCTL_VM"

	// taskFile holds the task: the command line of a kernel could not carry blanks,
	// quotes and commas unharmed.
	taskFile = "/kmodctl-vm.json"
)

// complaint starts what pid 1 says on the console when it cannot do its task.
const complaint = "kmodctl-vm: "

// task is what pid 1 shall run. Its lists are bytes, since a JSON string would
// lose what is no UTF-8.
type task struct {
	Token string   `json:"token"` // of the frame, see stream.go
	Args  [][]byte `json:"args"`
	Env   [][]byte `json:"env"` // NAME=VALUE
	Dir   string   `json:"dir"`
}

func asBytes(list []string) (out [][]byte) {
	for _, s := range list {
		out = append(out, []byte(s))
	}
	return out
}

func asStrings(list [][]byte) (out []string) {
	for _, b := range list {
		out = append(out, string(b))
	}
	return out
}

// InGuest reports whether this process is pid 1 of a guest that Run booted. The
// program itself, its child, is told by KMODCTL_VM=1 in its environment.
func InGuest() bool { return os.Getpid() == 1 && os.Getenv(marker) == "1" }

// Main is called first in main or TestMain of a binary that Run boots; it does
// not return.
//
// Outside of a guest, and in the program of a guest, it calls run and exits with
// its result. As pid 1 of a guest it mounts /proc, /sys, /sys/kernel/security
// and /dev, runs /init again with the arguments of Config as a child (so that a
// panic or os.Exit is an exit code and not the end of the kernel), reaps
// whatever else ends, reports and reboots, which ends QEMU.
func Main(run func() int) {
	if !InGuest() {
		os.Exit(run())
	}
	if err := serve(); err != nil {
		fmt.Fprintf(os.Stderr, "\n%s%v\n", complaint, err) // the console, which Run reads
	}
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		fmt.Fprintf(os.Stderr, "\n%sreboot: %v\n", complaint, err)
	}
	os.Exit(1) // the kernel panics: pid 1 ended
}

// serve is the life of pid 1 between boot and reboot.
func serve() error {
	if err := mountAll(); err != nil {
		return err
	}
	var t task
	data, err := os.ReadFile(taskFile)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("the files do not fit into its memory")
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &t); err != nil {
		return fmt.Errorf("read %s: %w", taskFile, err)
	}
	tty, err := openLine("/dev/ttyS1")
	if err != nil {
		return err
	}
	fmt.Fprint(tty, frame(t.Token), "begin\n")
	status, err := runChild(t, tty)
	if err != nil {
		return err
	}
	if status.Signaled() {
		fmt.Fprintf(tty, "%ssignal %d\n", frame(t.Token), status.Signal())
	} else {
		fmt.Fprintf(tty, "%sexit %d\n", frame(t.Token), status.ExitStatus())
	}
	// What is still in the line's buffer would be lost by the reboot: tcdrain(3).
	return unix.IoctlSetInt(int(tty.Fd()), unix.TCSBRK, 1)
}

// mountAll makes what programs expect of a running system. /tmp and /run stay
// on the root, which is in memory as well: a mount would hide Config.Files there.
func mountAll() error {
	for _, m := range []struct{ kind, dir string }{
		{"proc", "/proc"},
		{"sysfs", "/sys"},
		{"securityfs", "/sys/kernel/security"},
		{"devtmpfs", "/dev"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil && m.kind != "securityfs" {
			return err
		}
		err := unix.Mount(m.kind, m.dir, m.kind, 0, "")
		if m.kind == "securityfs" && (errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT)) {
			continue // a kernel without CONFIG_SECURITYFS
		}
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	for dir, mode := range map[string]os.FileMode{"/tmp": 0o777 | os.ModeSticky, "/run": 0o755, "/root": 0o700} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(dir, mode); err != nil {
			return err
		}
	}
	return nil
}

// openLine opens a serial line as a pipe of bytes: without OPOST no line end is
// changed on its way.
func openLine(path string) (*os.File, error) {
	tty, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	attr, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("read attributes of %s: %w", path, err)
	}
	attr.Oflag &^= unix.OPOST
	attr.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, attr); err != nil {
		return nil, fmt.Errorf("set attributes of %s: %w", path, err)
	}
	return tty, nil
}

// runChild runs the program and reaps every process that ends until it does.
func runChild(t task, tty *os.File) (status unix.WaitStatus, err error) {
	cmd := exec.Command("/init", asStrings(t.Args)...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = asStrings(t.Env), t.Dir, tty, tty
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	for {
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err != nil && err != unix.EINTR {
			return 0, fmt.Errorf("wait for /init: %w", err)
		}
		if pid == cmd.Process.Pid {
			return status, nil
		}
	}
}
