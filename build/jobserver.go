package build

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Jobserver holds as many tokens as compilers may run at once, for all builds of a
// command together. Who starts a build takes one; make takes one more for each
// compiler beside its first ("POSIX Jobserver Interaction" in GNU make's manual).
// A nil Jobserver is a build's own: one compiler at a time.
type Jobserver struct {
	tokens int
	make   string   // its version line
	fifo   string   // has a name for make 4.4, which opens it itself
	reads  *os.File // ours alone: whoever has a descriptor may change its flags
	writes int      // never waits

	mu    sync.Mutex
	taken int   // by us
	err   error // why a token could not be given back
}

// jobsAt is the folder of the fifo as a build in a namespace of its own sees it.
const jobsAt = workRoot + "/jobs"

// NewJobserver makes the tokens in dir, a folder that every user may enter and that is there
// as long as the Jobserver is. Close it. The error is an *exec.Error when there is no make.
func NewJobserver(dir string, tokens int) (s *Jobserver, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make jobserver: %w", err)
		}
	}()
	s = &Jobserver{tokens: max(tokens, 1), fifo: filepath.Join(dir, "fifo")}
	path, err := findProgram("make")
	if err != nil {
		return nil, err
	}
	if s.make, err = toolIdentity(path); err != nil {
		return nil, err
	}
	if err := unix.Mkfifo(s.fifo, 0o600); err != nil {
		return nil, fmt.Errorf("mkfifo %s: %w", s.fifo, err)
	}
	if uid, gid, drop := User(); drop {
		if err := os.Chown(s.fifo, uid, gid); err != nil {
			return nil, err
		}
	}
	if s.writes, err = unix.Open(s.fifo, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open %s: %w", s.fifo, err)
	}
	if s.reads, err = os.OpenFile(s.fifo, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		unix.Close(s.writes)
		return nil, err
	}
	if err := s.put(s.tokens); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Tokens is how many there are.
func (s *Jobserver) Tokens() int {
	if s == nil {
		return 1
	}
	return s.tokens
}

// Close gives up the tokens; no build may be running.
func (s *Jobserver) Close() error { return errors.Join(s.reads.Close(), unix.Close(s.writes)) }

// put adds tokens. In a full pipe, which only a source's code can make, there are enough.
func (s *Jobserver) put(n int) error {
	if _, err := unix.Write(s.writes, bytes.Repeat([]byte("+"), n)); err != nil && err != unix.EAGAIN {
		return fmt.Errorf("write %s: %w", s.fifo, err)
	}
	return nil
}

// acquire takes a token as soon as there is one. The error is ctx's cause, when it ends, or why
// a token is lost that may have been the last.
func (s *Jobserver) acquire(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.wake)
	defer stop()
	_, err := s.reads.Read(make([]byte, 1))
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case s.err != nil:
		return s.err
	case err != nil:
		return err
	}
	s.taken++
	return nil
}

// wake ends a read that waits, and all to come.
func (s *Jobserver) wake() { s.reads.SetReadDeadline(time.Unix(1, 0)) }

// release gives a token back. With the last one no make runs, and all are made anew: one that
// was killed has taken some with it, and a source's code can take or add as many as it likes.
func (s *Jobserver) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 1
	if s.taken--; s.taken == 0 {
		n = s.tokens
		s.drain()
	}
	if err := s.put(n); err != nil {
		s.err = err
		s.wake()
	}
}

// drain takes what tokens there are.
func (s *Jobserver) drain() {
	for old := make([]byte, 4096); ; {
		if n, err := unix.Read(s.writes, old); n <= 0 && err != unix.EINTR {
			break
		}
	}
}

// open returns the two ends for one build. They are opened anew, so that its make, which
// sets O_NONBLOCK on what it reads from, does so for itself alone.
func (s *Jobserver) open() (ends []*os.File, err error) {
	for _, flag := range []int{unix.O_RDONLY, unix.O_WRONLY} { // neither waits: we hold both
		fd, err := unix.Open(s.fifo, flag|unix.O_CLOEXEC, 0)
		if err != nil {
			return ends, fmt.Errorf("open %s: %w", s.fifo, err)
		}
		ends = append(ends, os.NewFile(uintptr(fd), s.fifo))
	}
	return ends, nil
}

var makeVersion = anyOf(`^GNU Make (\d+)\.(\d+)`)

// flags tells make of the tokens. From 4.4 on it is given the fifo's name, which also
// reaches those makes that have lost their descriptors.
func (s *Jobserver) flags(fifo string) string {
	auth := fmt.Sprintf("%d,%d", jobsFD, jobsFD+1)
	if v := makeVersion().FindStringSubmatch(s.make); v != nil {
		major, _ := strconv.Atoi(v[1])
		minor, _ := strconv.Atoi(v[2])
		if major > 4 || major == 4 && minor >= 4 {
			auth = "fifo:" + fifo
		}
	}
	return "MAKEFLAGS= -j --jobserver-auth=" + auth
}

// compilerMemory is what a compiler of a large module takes, in bytes. (cc1 and pahole of
// the smallest one take 62 MiB on 6.1 and 80 on 6.12.)
const compilerMemory = 256 << 20

// Parallel is how many compilers can run at once: one for each processor that this
// process may use (its affinity and cgroup counted), no more than there is memory for.
func Parallel() int {
	n := runtime.GOMAXPROCS(0)
	if room, ok := freeMemory(); ok {
		n = min(n, int(room/compilerMemory))
	}
	return max(n, 1)
}

// freeMemory is how much can be allocated without swapping, in bytes: MemAvailable of
// proc_meminfo(5), or what a cgroup (v2) around us leaves.
func freeMemory() (room int64, ok bool) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "MemAvailable:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			room, ok = kib<<10, err == nil
		}
	}
	text, err = os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return room, ok
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		group, unified := strings.CutPrefix(lines.Text(), "0::")
		for ; unified && group != "/" && group != "."; group = filepath.Dir(group) {
			most, limited := cgroupBytes(group, "memory.max")
			now, _ := cgroupBytes(group, "memory.current")
			if left := most - now; limited && (!ok || left < room) {
				room, ok = left, true
			}
		}
	}
	return room, ok
}

// cgroupBytes reads a number of a cgroup; "max", which is none, is not ok.
func cgroupBytes(group, name string) (int64, bool) {
	text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", group, name))
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n, err == nil
}
