package registry

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxModule is the size in bytes above which a file is surely not a module.
const maxModule = 512 << 20

// TakeFile copies the file name, a path below dir, to the new file to, for the
// owner alone. dir may belong to somebody who is not trusted, such as the user
// that a build ran as, and who may still be changing it: whatever is done to it,
// the copy holds a regular file of that folder, of 512 MiB at most. Look at the
// copy from then on.
func TakeFile(dir, name, to string) error {
	if err := takeFile(dir, name, to); err != nil {
		return fmt.Errorf("take %s: %w", name, err)
	}
	return nil
}

func takeFile(dir, name, to string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := root.OpenFile(name, openPlain, 0)
	if err != nil {
		return err
	}
	src, err := plainFile(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	defer f.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if err := errors.Join(err, dst.Close()); err != nil {
		return errors.Join(err, os.Remove(to))
	}
	return nil
}

// openPlain opens a file that may have become something else: it follows no
// link at the end, and does not wait for a FIFO's writer.
const openPlain = os.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK

// plainFile returns what an open file holds, when that is a regular file and not
// above maxModule. What is added to it meanwhile is left out.
func plainFile(f *os.File) (io.Reader, error) {
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", f.Name())
	case info.Size() > maxModule:
		return nil, fmt.Errorf("%s is too big for a module: %d bytes, of %d at most", f.Name(), info.Size(), maxModule)
	}
	return io.LimitReader(f, info.Size()), nil
}
