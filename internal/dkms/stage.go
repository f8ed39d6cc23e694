package dkms

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"kmodctl/build"
)

// stageName is the name by which a process is started as the child that evaluates: by
// message.run alone, which writes the message to its standard input.
const stageName = "kmodctl-dkms-stage"

const (
	timeLimit   = 10 * time.Second
	memoryLimit = 512 << 20 // bytes, RLIMIT_DATA
	replyLimit  = 8 << 20   // bytes
)

var tooLong = fmt.Sprintf("it was not done after %v: look for an endless loop in it", timeLimit)

// Stage must be called at the begin of main, and of TestMain in tests that evaluate. In an ordinary
// process it returns at once. In the child that Evaluate starts it gives up all rights, evaluates and
// writes what came out to standard output; then it never returns.
func Stage() {
	if os.Args[0] != stageName || len(os.Args) != 1 {
		return
	}
	var m message
	err := json.NewDecoder(os.Stdin).Decode(&m)
	if err == nil {
		err = m.confine()
	}
	var r *reply
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), timeLimit)
		defer cancel()
		r, err = newShell(&m).evaluate(ctx)
	}
	var bad *Error
	switch {
	case errors.As(err, &bad):
		r = &reply{Fault: bad}
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// run has the child evaluate the message.
func (m *message) run(ctx context.Context) (*reply, error) {
	m.UID, m.GID, m.Drop = build.User()
	text, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	// The child is told by a signal when the thread that started it ends (PR_SET_PDEATHSIG).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	late := &Error{m.Files[0].Name, 0, tooLong}
	ctx, cancel := context.WithTimeoutCause(ctx, timeLimit+5*time.Second, late) // it ends itself before
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{stageName}
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(text)
	out, said := &limited{left: replyLimit}, &limited{left: 4 << 10}
	cmd.Stdout, cmd.Stderr = out, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return nil, cause
	}
	var exit *exec.ExitError
	switch first, _, _ := strings.Cut(said.String(), "\n"); {
	case err == nil:
	case !errors.As(err, &exit) || exit.ExitCode() == 1:
		return nil, fmt.Errorf("evaluate %s: %w: %s", m.Files[0].Name, err, first)
	case strings.HasPrefix(first, "panic: "):
		return nil, &Error{m.Files[0].Name, 0, "the interpreter fails on it: " + first}
	default: // Go's runtime ends a process that gets no memory, or whose stack is too deep
		return nil, &Error{m.Files[0].Name, 0, fmt.Sprintf("it needs more than %d MiB of memory: look for an endless loop in it", memoryLimit>>20)}
	}
	if out.left == 0 {
		return nil, &Error{m.Files[0].Name, 0, fmt.Sprintf("its values are longer than %d MiB: look for an endless loop in it", replyLimit>>20)}
	}
	var r reply
	if err := json.Unmarshal([]byte(out.String()), &r); err != nil {
		return nil, fmt.Errorf("evaluate %s: %w", m.Files[0].Name, err)
	}
	if r.Fault != nil {
		return nil, r.Fault
	}
	return &r, nil
}
