package loader

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/u-root/u-root/pkg/kmodule"
	"golang.org/x/sys/unix"
)

// An oops in a module's init or exit function ends the thread that called it, and
// one that waits for ever cannot be killed; a process with such a thread does not
// end either. So the system calls are made by a child of ours, which we can leave
// behind: each on a thread of its own, so that independent modules come at once.

// stageName is the name by which a process is started to make system calls: by
// child.start alone.
const stageName = "kmodctl-loader-stage"

// stageFD is the child's end of a socket pair. Its end of file is the parent's.
const stageFD = 3

// request is a system call to make; a file that it needs is passed beside it.
type request struct {
	ID      int           `json:"id"`
	Op      string        `json:"op"` // opFinit, opInit, opDelete
	Name    string        `json:"name,omitempty"`
	Params  []byte        `json:"params,omitempty"` // not a string, which JSON would mend to UTF-8
	Flags   int           `json:"flags,omitempty"`
	Timeout time.Duration `json:"timeout"`
}

const (
	opFinit  = "finit"
	opInit   = "init"
	opDelete = "delete"
)

// reply is how the call with that ID ended, or that it does not.
type reply struct {
	ID    int         `json:"id"`
	Errno unix.Errno  `json:"errno,omitempty"`
	Error string      `json:"error,omitempty"` // of a call that could not be made
	Stuck *StuckError `json:"stuck,omitempty"`
}

func (r reply) err() error {
	switch {
	case r.Stuck != nil:
		return r.Stuck
	case r.Error != "":
		return errors.New(r.Error)
	case r.Errno != 0:
		return r.Errno
	}
	return nil
}

// Stage must be the first call of main, and of TestMain in tests that load modules.
// In an ordinary process it returns at once. In the child that a Loader starts it
// makes system calls until the Loader is closed; then it never returns.
func Stage() {
	if os.Args[0] != stageName {
		return
	}
	buf, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(stageFD, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			os.Exit(0)
		}
		var r request
		file, err := passedFile(oob[:oobn])
		if err == nil {
			err = json.Unmarshal(buf[:n], &r)
		}
		go func() {
			answer := reply{Error: fmt.Sprint(err)}
			if err == nil {
				answer = r.carryOut(file)
			}
			answer.ID = r.ID
			text, _ := json.Marshal(answer)
			unix.Sendmsg(stageFD, text, nil, nil, 0)
		}()
	}
}

// maxMessage is the longest message in bytes: what a socket takes at once by
// default (net.core.wmem_default).
const maxMessage = 208 << 10

// passedFile is the file that came beside a message, nil if none did.
func passedFile(oob []byte) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) == 0 {
		return nil, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "module"), nil
}

// deathPolls is how often it is looked whether the thread of a call has died.
const deathPolls = 50 * time.Millisecond

// carryOut makes the call and waits for its end, for that of its thread, or until
// r.Timeout is over.
func (r request) carryOut(file *os.File) reply {
	thread, end := make(chan int, 1), make(chan error, 1)
	onOwnThread(func() {
		thread <- unix.Gettid()
		end <- r.call(file)
	})
	tid := <-thread
	poll := time.NewTicker(deathPolls)
	defer poll.Stop()
	late := time.After(r.Timeout)
	for {
		select {
		case err := <-end:
			return ended(err)
		case <-poll.C:
			if !errors.Is(unix.Tgkill(os.Getpid(), tid, 0), unix.ESRCH) {
				continue
			}
			select {
			case err := <-end: // a thread that is done ends too
				return ended(err)
			default:
				return reply{Stuck: &StuckError{Thread: tid, Died: true}}
			}
		case <-late:
			return reply{Stuck: &StuckError{Thread: tid, Waited: r.Timeout, Stack: stackOf(tid)}}
		}
	}
}

func ended(err error) (r reply) {
	if err != nil && !errors.As(err, &r.Errno) {
		r.Error = err.Error()
	}
	return r
}

// onOwnThread runs f on a thread that ends with it. It is not the process's first,
// which would stay to be seen, as a zombie, until all others have gone.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread() // and never unlocked: so the thread ends
		if unix.Gettid() != os.Getpid() {
			f()
			return
		}
		done := make(chan struct{})
		onOwnThread(func() { f(); close(done) })
		<-done
	}()
}

func (r request) call(file *os.File) error {
	switch r.Op {
	case opFinit:
		// kmodule.FileInit is not used since it drops its flags and calls
		// init_module(2) (u-root v0.16.0), which LoadPin and IMA deny.
		return unix.FinitModule(int(file.Fd()), string(r.Params), r.Flags)
	case opInit:
		image, err := io.ReadAll(io.NewSectionReader(file, 0, math.MaxInt64))
		if err != nil {
			return err
		}
		return kmodule.Init(image, string(r.Params))
	case opDelete:
		return kmodule.Delete(r.Name, uintptr(r.Flags))
	}
	return unix.EINVAL
}

// stackOf is where the kernel is in a thread of this process, innermost first:
// proc_pid_stack(5), for root.
func stackOf(tid int) (frames []string) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/stack", tid))
	for line := range strings.Lines(string(text)) {
		_, frame, _ := strings.Cut(strings.TrimSpace(line), "] ") // "[<0>] msleep+0x2d/0x40"
		frames = append(frames, frame)
	}
	return frames
}

// child is a Kernel whose calls are made by another process, which the first call
// starts.
type child struct {
	timeout time.Duration // that an init or exit function has

	mu      sync.Mutex
	cmd     *exec.Cmd
	fd      int
	last    int
	waiting map[int]chan reply // by ID; nil before the start and after the end
	left    bool               // a call has not returned: the process may never end
}

func (c *child) Finit(f *os.File, params string, flags int) error {
	return c.call(request{Op: opFinit, Params: []byte(params), Flags: flags}, f)
}

func (c *child) Init(f *os.File, params string) error {
	return c.call(request{Op: opInit, Params: []byte(params)}, f)
}

func (c *child) Delete(name string, flags int) error {
	return c.call(request{Op: opDelete, Name: name, Flags: flags}, nil)
}

// answerGrace is how much longer than the deadline we wait for a child that says
// nothing at all, because it was stopped or starves.
const answerGrace = 10 * time.Second

func (c *child) call(r request, file *os.File) error {
	r.Timeout = c.timeout
	answer, err := c.send(r, file)
	runtime.KeepAlive(file)
	if err != nil {
		return fmt.Errorf("ask the process that makes the system calls: %w", err)
	}
	select {
	case got, ok := <-answer:
		if !ok {
			return errors.New("the process that makes the system calls has ended")
		}
		if got.Stuck != nil {
			c.leave()
		}
		return got.err()
	case <-time.After(c.timeout + answerGrace):
		c.leave()
		return &StuckError{Waited: c.timeout + answerGrace}
	}
}

// send passes a request on, and returns the channel on which its reply will come.
func (c *child) send(r request, file *os.File) (<-chan reply, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd == nil {
		if err := c.start(); err != nil {
			return nil, err
		}
	}
	if c.waiting == nil {
		return nil, errors.New("it has ended")
	}
	c.last++
	r.ID = c.last
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	answer := make(chan reply, 1)
	c.waiting[r.ID] = answer
	for {
		err = unix.Sendmsg(c.fd, text, rights, nil, unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			return answer, err
		}
	}
}

// start starts the child. It gets nothing of ours but the socket, and is in a
// process group of its own, so that the user's ^C reaches us alone.
func (c *child) start() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{stageName}
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{theirs} // stageFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		unix.Close(pair[0])
		return err
	}
	c.cmd, c.fd, c.waiting = cmd, pair[0], make(map[int]chan reply)
	go c.receive(c.fd)
	return nil
}

// receive hands the child's replies to those who wait, until the child or we end.
func (c *child) receive(fd int) {
	buf := make([]byte, maxMessage)
	for {
		n, _, _, _, err := unix.Recvmsg(fd, buf, nil, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		var r reply
		over := err != nil || n == 0 || json.Unmarshal(buf[:n], &r) != nil
		c.mu.Lock()
		if answer := c.waiting[r.ID]; answer != nil {
			answer <- r
			delete(c.waiting, r.ID)
		}
		if over {
			for _, answer := range c.waiting {
				close(answer)
			}
			c.waiting = nil
			unix.Close(fd)
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
	}
}

// leave notes that a call has been given up.
func (c *child) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = true
}

// close ends the child. One with a call that has not returned is killed and left to
// the kernel, since waiting for its end could take for ever.
func (c *child) close() {
	c.mu.Lock()
	cmd, left := c.cmd, c.left || len(c.waiting) > 0
	if c.waiting != nil {
		unix.Shutdown(c.fd, unix.SHUT_RDWR)
	}
	c.mu.Unlock()
	switch {
	case cmd == nil:
	case left:
		cmd.Process.Kill()
		cmd.Process.Release()
	default:
		cmd.Wait()
	}
}
