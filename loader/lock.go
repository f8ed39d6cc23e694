package loader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
)

// runDir is where the locks are, below Loader.Root. It goes with the boot, as the
// loaded modules do. It is root's alone: who can open a file can flock(2) it, and
// hang us.
const runDir = "run/kmodctl"

// locks keeps the loads and unloads of all processes apart. Locks belong to open
// files, so they also keep the steps of one plan apart, and end with their process.
type locks struct{ dir *os.Root }

// openLocks makes the folder of the locks. That a folder which is not ours alone
// cannot be used is an error.
func openLocks(dir string) (*locks, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	opened, err := root.Stat(".")
	if err != nil || !os.SameFile(st, opened) || !ours(opened) {
		root.Close()
		return nil, fmt.Errorf("%s is not a folder that only %s can write", dir, "this user")
	}
	return &locks{root}, nil
}

func ours(st os.FileInfo) bool {
	owner, ok := st.Sys().(*syscall.Stat_t)
	return ok && st.IsDir() && int(owner.Uid) == os.Geteuid() && st.Mode().Perm()&0o022 == 0
}

func (l *locks) close() { l.dir.Close() }

// lockPolls is how often a lock that another has is asked for again: a blocked
// flock(2) could not be called off.
const lockPolls = 5 * time.Millisecond

// module takes the lock of a module's name, and waits for who has it. free gives it back.
func (l *locks) module(ctx context.Context, name string) (free func(), err error) {
	f, err := l.dir.OpenFile(name+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := kernel.Flock(f, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = pause(ctx, lockPolls)
		}
		if err != nil {
			f.Close()
			return nil, err
		}
	}
}

// presence tells whether a call of ours was the only one, of all processes: only
// then the lines of the kernel's log without a name are about its module.
//
// Each call holds a shared lock on one file while it lasts, and adds a byte to it
// when it begins. Alone is who could have had the lock alone at the beginning, and
// finds no byte of another's at the end.
type presence struct {
	file  *os.File
	first bool  // nobody was there before us
	size  int64 // of the file with our byte
}

// enter begins a call. Without a file (nil) it is taken to be alone.
func (l *locks) enter() (*presence, error) {
	f, err := l.dir.OpenFile("calls", os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	p := &presence{file: f}
	if p.first = kernel.Flock(f, unix.LOCK_EX|unix.LOCK_NB) == nil; p.first {
		err = f.Truncate(0)
		p.size = 1
	}
	// To share it is waited for only as long as another looks whether he is alone.
	if err = errors.Join(err, kernel.Flock(f, unix.LOCK_SH)); err == nil {
		_, err = f.Write([]byte{'.'})
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return p, nil
}

// leave ends the call and says whether it was alone all the time.
func (p *presence) leave() bool {
	defer p.file.Close()
	st, err := p.file.Stat()
	return err == nil && p.first && st.Size() == p.size
}
