package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
)

const (
	lockFile   = "lock"   // 0600: whoever can open a file can flock(2) it, and hang us
	writerFile = "writer" // 0644: names the writer; nobody locks it
)

// acquire takes the writer's lock, an flock(2) on the lock file, and leaves our
// name beside it. flock belongs to the open file, not to the process: a depmod
// that inherits the descriptor holds the lock on when we are killed.
func acquire(ctx context.Context, tree *os.Root, o WriterOptions) (*os.File, error) {
	f, err := tree.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = errors.Join(f.Chmod(0o600), kernel.Flock(f, unix.LOCK_EX|unix.LOCK_NB))
	if errors.Is(err, unix.EWOULDBLOCK) {
		if o.Timeout < 0 {
			f.Close()
			return nil, &BusyError{Holder: holder(tree)}
		}
		if o.Waiting != nil {
			o.Waiting(holder(tree))
		}
		wait, cancel := ctx, func() {}
		if o.Timeout > 0 {
			wait, cancel = context.WithTimeout(ctx, o.Timeout)
		}
		err = kernel.Lock(wait, f)
		cancel()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil, fmt.Errorf("wait for %s: %w", holder(tree), context.Cause(ctx))
		case errors.Is(err, context.DeadlineExceeded):
			return nil, &BusyError{Holder: holder(tree), Waited: o.Timeout}
		}
	}
	if err == nil {
		err = signLock(tree, o.Command)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// keepToOurselves keeps the descriptors that our caller left open from what we
// start: a depmod that outlives us must hold on to nothing but the lock. Go's own
// are closed on exec. Kernels before 5.11 do not know how; there it is left out.
func keepToOurselves() {
	unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
}

// signLock writes since when we are, and who. A full disk
// must not stop us: we may be about to free it.
func signLock(tree *os.Root, command string) error {
	started, err := startTime(os.Getpid())
	if err != nil {
		return err
	}
	text := fmt.Appendf(nil, "%s pid %d (%s) since %s\n", started, os.Getpid(), command, time.Now().UTC().Format(time.RFC3339))
	err = tree.WriteFile(writerFile, text, 0o644)
	if err == nil {
		err = tree.Chmod(writerFile, 0o644)
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return nil
	}
	return err
}

// holder names who holds the lock, in words for people.
func holder(tree *os.Root) string {
	words, live, _ := lockWords(tree)
	switch {
	case words == "":
		return "another writer"
	case !live:
		return "a depmod that outlived " + words
	}
	return words
}

// lockWords reads who wrote last and reports whether that process lives. It may
// have been killed and its number given away: so the time of its start counts.
func lockWords(tree *os.Root) (words string, live bool, err error) {
	f, err := tree.Open(writerFile)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	} else if err != nil {
		return "", false, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 1<<16))
	if err != nil {
		return "", false, err
	}
	started, words, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	var pid int
	if _, err := fmt.Sscanf(words, "pid %d", &pid); err != nil {
		return "", false, nil // it is being written, or the disk was full
	}
	now, err := startTime(pid)
	return words, err == nil && now == started, nil
}

// startTime returns when a process was started, in clock ticks since the boot,
// field 22 of /proc/PID/stat (proc(5)). One that has ended is no process, though
// nobody has waited for it yet.
func startTime(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The second field, in parentheses, may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return "", fs.ErrNotExist
	}
	return fields[19], nil
}
