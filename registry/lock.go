package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const lockFile = "lock"

// acquire takes the writer's lock, an flock(2) on the lock file, and leaves our
// name in it. flock belongs to the open file, not to the process: a depmod that
// inherits the descriptor holds the lock on when we are killed.
func acquire(ctx context.Context, tree *os.Root, o WriterOptions) (*os.File, error) {
	f, err := tree.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	err = flock(f, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		if o.Waiting != nil {
			o.Waiting(holder(f))
		}
		taken := make(chan error, 1)
		go func() { taken <- flock(f, unix.LOCK_EX) }()
		select {
		case err = <-taken:
		case <-ctx.Done():
			go func() { <-taken; f.Close() }() // a blocked flock cannot be called off
			return nil, fmt.Errorf("wait for %s: %w", holder(f), context.Cause(ctx))
		}
	}
	if err == nil {
		err = signLock(f, o.Command)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

func signLock(f *os.File, command string) error {
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt(fmt.Appendf(nil, "pid %d (%s)\n", os.Getpid(), command), 0)
	return err
}

// holder names who holds the lock, in words for people.
func holder(f *os.File) string {
	words, live := lockWords(f)
	switch {
	case words == "":
		return "another writer"
	case !live:
		return "a depmod that outlived " + words
	}
	return words
}

// lockWords reads the lock file and reports whether the writer it names lives.
func lockWords(f *os.File) (words string, live bool) {
	text, err := io.ReadAll(io.NewSectionReader(f, 0, 256))
	if err != nil {
		return "", false
	}
	words = strings.TrimSpace(string(text))
	var pid int
	if _, err := fmt.Sscanf(words, "pid %d", &pid); err != nil {
		return "", false
	}
	return words, !errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}
