package build

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// supervise stands in for a process namespace where there is none: it runs the
// command in a child and ends with everything that descends from it, in whatever
// session. What loses its parent becomes our child (PR_SET_CHILD_SUBREAPER, Linux
// 3.4). We keep the caller's rights, which the build user cannot touch, and are not
// killed but told to end, by lifeFD: it hangs up when kmodctl dies or cancels.
func (w wall) supervise() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return failed("subreaper", err)
	}
	w.Supervised = true
	message, err := json.Marshal(w)
	if err != nil {
		return failed("tell the wall", err)
	}
	status := os.NewFile(statusFD, "status")
	life := os.NewFile(lifeFD, "life")
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{stageName, string(message)}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{life, status}
	if w.Fifo != "" {
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(jobsFD, "jobs"), os.NewFile(jobsFD+1, "jobs"))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		return failed("start the stage", err)
	}
	status.Close()
	go func() {
		for {
			fds := []unix.PollFd{{Fd: lifeFD}} // POLLHUP comes unasked
			if n, err := unix.Poll(fds, -1); n > 0 || err != unix.EINTR {
				break
			}
		}
		runtime.KeepAlive(life)
		killDescendants()
	}()
	err = cmd.Wait()
	for killed := error(nil); killed != unix.ECHILD; {
		killDescendants()
		// Whatever was forked behind our back has a parent that dies and is reaped here: then we look again.
		_, killed = unix.Wait4(-1, nil, 0, nil)
		for pid := 1; pid > 0 && killed == nil; { // those that died meanwhile: to look for each is slow
			pid, killed = unix.Wait4(-1, nil, unix.WNOHANG, nil)
		}
	}
	code := 0
	if err != nil {
		if code = cmd.ProcessState.ExitCode(); code < 0 {
			code = 128 + int(cmd.ProcessState.Sys().(syscall.WaitStatus).Signal()) // as a shell says it
		}
	}
	os.Exit(code)
	panic("unreachable")
}

// killDescendants sends SIGKILL to all processes below this one. All are stopped first:
// those that fork faster than we look would never end, and the stopped fill their limit.
func killDescendants() {
	stopped := map[int]bool{}
	for more := true; more; {
		more = false
		for _, pid := range descendants() {
			if !stopped[pid] && unix.Kill(pid, unix.SIGSTOP) == nil {
				stopped[pid], more = true, true
			}
		}
	}
	for _, pid := range descendants() {
		unix.Kill(pid, unix.SIGKILL)
	}
}

// descendants lists all processes below this one, the nearer ones first.
func descendants() (below []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	children := map[int][]int{}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			parent := parentOf(pid)
			children[parent] = append(children[parent], pid)
		}
	}
	below = children[os.Getpid()]
	for i := 0; i < len(below); i++ {
		below = append(below, children[below[i]]...)
	}
	return below
}

// parentOf reads a process's parent from proc_pid_stat(5); 0 when it is gone.
func parentOf(pid int) (parent int) {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" ")) // the name before may hold anything
	var state string
	fmt.Sscan(string(rest), &state, &parent)
	return parent
}
