package build

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// stageName is the name by which a process is started as the stage child: by
// wall.run alone, which passes the wall as the only argument.
const stageName = "kmodctl-build-stage"

// File descriptors that the stage child is born with.
const (
	lifeFD   = 3 // a pipe that hangs up when the parent dies
	statusFD = 4 // takes a setupError; closed by a successful exec
	jobsFD   = 5 // with the next one the Jobserver's two ends, if there is one; make's too
)

const opExec = "exec"

// Stage must be the first call of main, and of TestMain in tests that build. In an
// ordinary process it returns at once. In the child that Run starts it puts up the
// wall, becomes the build user and executes the command; then it never returns.
func Stage() {
	if os.Args[0] != stageName || len(os.Args) != 2 {
		return
	}
	// Credentials and the death signal belong to a thread, and exec keeps those of the one that calls.
	runtime.LockOSThread()
	closeOnExec()
	var w wall
	err := failed("read the wall", json.Unmarshal([]byte(os.Args[1]), &w))
	switch {
	case err != nil:
	case w.Work == "" && !w.Supervised:
		err = w.supervise()
	default:
		err = w.enter()
	}
	report, _ := json.Marshal(err)
	unix.Write(statusFD, report)
	os.Exit(126)
}

// closeOnExec keeps every descriptor but the standard ones from the source's code:
// beside ours there may be those that whoever called kmodctl left open.
func closeOnExec() {
	const first = lifeFD
	if unix.CloseRange(first, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	// Before Linux 5.11.
	open, _ := os.ReadDir("/proc/self/fd")
	for _, e := range open {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
}

// enter goes through the wall; it returns only when that fails, a *setupError.
func (w *wall) enter() error {
	unix.Umask(0o022)
	// Out of memory, the kernel ends the build, not a service; without /proc it has to choose.
	os.WriteFile("/proc/self/oom_score_adj", []byte("500"), 0)
	if w.Work != "" {
		if err := w.mount(); err != nil {
			return err
		}
	}
	if w.Namespaces&unix.CLONE_NEWUTS != 0 {
		if err := unix.Sethostname([]byte("kmodctl")); err != nil {
			return failed("sethostname", err)
		}
	}
	if err := w.limit(); err != nil {
		return err
	}
	if w.Landlock > 0 {
		if err := w.landlock(); err != nil { // before drop: the build user may not reach all of it
			return err
		}
	}
	if err := w.drop(); err != nil {
		return err
	}
	if err := dieWithParent(); err != nil {
		return err
	}
	if err := unix.Chdir(w.work()); err != nil {
		return failed("enter "+w.work(), err)
	}
	if w.Seccomp {
		if err := filter(); err != nil {
			return err
		}
	}
	if w.File == "" {
		os.Exit(0)
	}
	if w.Fifo != "" {
		for _, fd := range []uintptr{jobsFD, jobsFD + 1} {
			if _, err := unix.FcntlInt(fd, unix.F_SETFD, 0); err != nil {
				return failed("pass the jobserver on", err)
			}
		}
	}
	return failed(opExec, unix.Exec(w.File, w.Argv, os.Environ()))
}

// drop gives up every right that the build does not need.
func (w *wall) drop() error {
	if !w.Caller {
		// The user last: only root may change the others.
		if err := syscall.Setgroups(nil); err != nil {
			return failed("setgroups", err)
		}
		if err := syscall.Setgid(w.GID); err != nil {
			return failed("setgid", err)
		}
		if err := syscall.Setuid(w.UID); err != nil {
			return failed("setuid", err)
		}
	}
	if w.Caller { // who may be root of a user namespace, to whom an exec gives what this set holds
		for c := uintptr(0); unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0) == nil; c++ {
		}
	}
	// In a user namespace CAP_SYS_ADMIN is ambient; without ambient rights the exec of a user other than root drops all.
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && err != unix.EINVAL {
		return failed("drop ambient capabilities", err)
	}
	return failed("no_new_privs", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
}

// dieWithParent renews the death signal, which the kernel forgets when the
// credentials change (prctl(2)), and looks whether the parent died meanwhile.
func dieWithParent() error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return failed("pdeathsig", err)
	}
	life := []unix.PollFd{{Fd: lifeFD, Events: unix.POLLIN}}
	if n, err := unix.Poll(life, 0); err == nil && n > 0 {
		os.Exit(1)
	}
	return nil
}

// failed is err as the parent will read it, a *setupError; nil stays nil.
func failed(op string, err error) error {
	if err == nil {
		return nil
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return &setupError{op + ": " + err.Error(), unix.EPROTO}
	}
	return &setupError{op, errno}
}
