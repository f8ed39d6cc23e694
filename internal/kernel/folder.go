package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// Folder opens a folder inside r: this very one, whatever happens to its name afterwards. With perm
// other than 0 it is made if it is not there, durably, and so are those above it, which everybody may read.
func (r Root) Folder(name string, perm fs.FileMode) (*os.Root, error) {
	dir, err := r.openFolder(name)
	if errors.Is(err, fs.ErrNotExist) && perm != 0 {
		above, aboveErr := r.Folder(path.Dir(name), 0o755)
		if aboveErr != nil {
			return nil, aboveErr
		}
		err = errors.Join(above.Mkdir(path.Base(name), perm), SyncFolder(above), above.Close())
		if err == nil || errors.Is(err, fs.ErrExist) {
			dir, err = r.openFolder(name)
		}
	}
	return dir, err
}

func (r Root) openFolder(name string) (*os.Root, error) {
	if r.IsHost() {
		return os.OpenRoot(path.Join("/", name)) // errors name it by this
	}
	f, err := r.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// SyncFolder makes the names in a folder durable.
func SyncFolder(dir *os.Root) error {
	f, err := dir.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Flock is flock(2), begun again when a signal interrupts it.
func Flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

// Lock takes f's lock for us alone, and waits for who has it. After an error, that of ctx too, f is closed, or will
// be: a blocked flock cannot be called off.
func Lock(ctx context.Context, f *os.File) error {
	taken := make(chan error, 1)
	go func() { taken <- Flock(f, unix.LOCK_EX) }()
	select {
	case err := <-taken:
		if err != nil {
			f.Close()
		}
		return err
	case <-ctx.Done():
		go func() { <-taken; f.Close() }()
		return context.Cause(ctx)
	}
}
