package loader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
)

// Rewritten is a file before and after a Rewrite; nil is no file.
type Rewritten struct {
	Path     string // inside the root
	Old, New []byte
}

// Changed reports whether there is a difference.
func (r Rewritten) Changed() bool {
	return !bytes.Equal(r.Old, r.New) || (r.Old == nil) != (r.New == nil)
}

// rewriteLimit is the size in bytes of a file that a person wrote, and that will be read.
const rewriteLimit = 4 << 20

// tempPrefix begins the name of the file that a rewrite writes; no reader of a .d folder takes a name with a dot in front.
const tempPrefix = ".kmodctl-tmp-"

// Rewrite makes of a file what edit makes of its content, whole and durable or not at all; of nil, no file. Its folder is made when
// it is missing. Links in the path of the folder lead where they lead inside the root, and a file that is one is an error.
//
// The temporary file is also the lock, an flock(2): it is 0600 until it is complete, so that nobody but the writer's user can
// hold it, and one that a killed writer has left is taken over. With dry nothing is written, and nothing waited for.
func Rewrite(ctx context.Context, root kernel.Root, name string, dry bool, edit func(old []byte) ([]byte, error)) (Rewritten, error) {
	r := Rewritten{Path: name}
	var create fs.FileMode
	if !dry {
		create = 0o755
	}
	dir, err := root.Folder(path.Dir(name), create)
	if dry && errors.Is(err, fs.ErrNotExist) {
		r.New, err = edit(nil)
		return r, err
	}
	if err != nil {
		return r, fmt.Errorf("write %s: %w", name, err)
	}
	defer dir.Close()
	if dry {
		if r.Old, _, err = readRegular(dir, path.Base(name)); err == nil {
			r.New, err = edit(r.Old)
		}
		return r, err
	}
	temp, err := lockTemp(ctx, dir, tempPrefix+path.Base(name))
	if err != nil {
		return r, fmt.Errorf("write %s: %w", name, err)
	}
	defer temp.Close()
	err = r.replace(dir, temp, edit)
	if err != nil || !r.Changed() || r.New == nil {
		err = errors.Join(err, dir.Remove(tempPrefix+path.Base(name)))
	}
	if err != nil {
		return r, fmt.Errorf("write %s: %w", name, err)
	}
	return r, nil
}

// lockTemp opens the temporary file and waits until it is ours.
func lockTemp(ctx context.Context, dir *os.Root, name string) (*os.File, error) {
	for {
		f, err := dir.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := kernel.Lock(ctx, f); err != nil {
			return nil, err
		}
		// Who held it has renamed or removed it: then it is a lock of nothing.
		ours, err := f.Stat()
		there, thereErr := dir.Lstat(name)
		if err == nil && thereErr == nil && os.SameFile(ours, there) {
			return f, nil
		}
		f.Close()
		if thereErr != nil && !errors.Is(thereErr, fs.ErrNotExist) {
			return nil, thereErr
		}
	}
}

// replace is Rewrite with the lock held.
func (r *Rewritten) replace(dir *os.Root, temp *os.File, edit func([]byte) ([]byte, error)) (err error) {
	name := path.Base(r.Path)
	var mode fs.FileMode
	if r.Old, mode, err = readRegular(dir, name); err != nil {
		return err
	}
	if r.New, err = edit(r.Old); err != nil || !r.Changed() {
		return err
	}
	if r.New == nil {
		return errors.Join(dir.Remove(name), kernel.SyncFolder(dir))
	}
	if err := temp.Truncate(0); err != nil {
		return err
	}
	if _, err := temp.WriteAt(r.New, 0); err != nil {
		return err
	}
	if err := errors.Join(temp.Chmod(mode), temp.Sync()); err != nil {
		return err
	}
	return errors.Join(dir.Rename(tempPrefix+name, name), kernel.SyncFolder(dir))
}

// readRegular reads a file that may not be there, and says with which mode it is to be written.
func readRegular(dir *os.Root, name string) (text []byte, mode fs.FileMode, err error) {
	info, err := dir.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, 0o644, nil
	case err != nil:
		return nil, 0, err
	case !info.Mode().IsRegular():
		return nil, 0, fmt.Errorf("read %s: not a regular file", name)
	}
	f, err := dir.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	text, err = io.ReadAll(io.LimitReader(f, rewriteLimit+1))
	if len(text) > rewriteLimit {
		err = fmt.Errorf("read %s: more than %d bytes", name, rewriteLimit)
	}
	if text == nil {
		text = []byte{}
	}
	return text, info.Mode().Perm(), err
}
