package loader

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// noModule is a name that no kernel has: whatever kernel this is, asking it to remove that changes nothing.
const noModule = "kmodctl_test_of_no_module"

// Many calls at once, with a file and without, each get their own answer.
func TestChild(t *testing.T) {
	c := &child{timeout: time.Minute}
	t.Cleanup(c.close)
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no module\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var calls sync.WaitGroup
	for i := range 32 {
		calls.Go(func() {
			var errno unix.Errno
			if err := c.Delete(noModule, unix.O_NONBLOCK); !errors.As(err, &errno) {
				t.Errorf("delete %d: %v", i, err)
			}
			f, err := os.Open(text)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			// The kernel, if it has modules, has read the file that was passed: ENOEXEC.
			if err := c.Finit(f, "\xff=\xfe", 0); !errors.As(err, &errno) || errno == unix.EBADF {
				t.Errorf("finit %d: %v", i, err)
			}
		})
	}
	calls.Wait()
}

// A child that is gone is an error, for calls under way and for later ones.
func TestChildIsKilled(t *testing.T) {
	c := &child{timeout: time.Minute}
	t.Cleanup(c.close)
	c.Delete(noModule, 0)
	c.cmd.Process.Signal(unix.SIGSTOP)
	answer := make(chan error)
	go func() { answer <- c.Delete(noModule, 0) }()
	for asked := false; !asked; { // the call is under way
		c.mu.Lock()
		asked = len(c.waiting) > 0
		c.mu.Unlock()
	}
	c.cmd.Process.Kill()
	for _, err := range []error{<-answer, c.Delete(noModule, 0)} {
		if err == nil || errors.As(err, new(unix.Errno)) && !errors.Is(err, unix.EPIPE) || !strings.Contains(err.Error(), "the process that makes the system calls") {
			t.Errorf("got %v", err)
		}
	}
}

// A system call that does not return is given up, and its process is left behind.
func TestCallThatNeverReturns(t *testing.T) {
	c := &child{timeout: 200 * time.Millisecond}
	c.Delete(noModule, 0)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	strace := exec.CommandContext(ctx, "strace", "-f", "-p", strconv.Itoa(c.cmd.Process.Pid),
		"-e", "trace=delete_module", "-e", "inject=delete_module:delay_enter=3600s")
	says, err := strace.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := strace.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(says); lines.Scan(); {
		if strings.Contains(lines.Text(), "attached") {
			break
		}
	}
	var stuck *StuckError
	if err := c.Delete(noModule, 0); !errors.As(err, &stuck) || stuck.Died || stuck.Thread == 0 {
		t.Errorf("got %v", err)
	}
	c.close() // must not wait for it
	stop()
	strace.Wait()
}

// Who calls alone knows it, and who does not knows that.
func TestPresence(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	open := func() *locks {
		l, err := openLocks(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.close)
		return l
	}
	a, b := open(), open()
	enter := func(l *locks) *presence {
		p, err := l.enter()
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for range 2 {
		if p := enter(a); !p.leave() {
			t.Error("the only call was not alone")
		}
	}
	long := enter(a)
	if short := enter(b); short.leave() {
		t.Error("a call within another was alone")
	}
	if long.leave() {
		t.Error("a call around another was alone")
	}
	first, second := enter(a), enter(b)
	if first.leave() || second.leave() {
		t.Error("calls that overlapped were alone")
	}
	if p := enter(b); !p.leave() {
		t.Error("after them the only call was not alone")
	}
}

func TestLocks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	a, err := openLocks(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	free, err := a.module(t.Context(), "hello")
	if err != nil {
		t.Fatal(err)
	}
	if other, err := a.module(t.Context(), "world"); err != nil {
		t.Errorf("another module: %v", err)
	} else {
		other()
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.module(ended, "hello"); !errors.Is(err, context.Canceled) {
		t.Errorf("a lock that is taken: %v", err)
	}
	free()
	if free, err = a.module(ended, "hello"); err != nil {
		t.Errorf("a lock that is free: %v", err)
	} else {
		free()
	}

	// A folder that others can write is not used, nor one that a link leads to.
	open := filepath.Join(t.TempDir(), "open")
	if err := errors.Join(os.Mkdir(open, 0o755), os.Chmod(open, 0o777), os.Symlink(dir, open+"-link")); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{open, open + "-link"} {
		if l, err := openLocks(bad); err == nil {
			t.Errorf("%s was taken", bad)
			l.close()
		}
	}
}
