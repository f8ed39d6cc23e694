package registry

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// maxSourceFile is the size in bytes above which a file is surely not a module's
// source: an image or a dump that lies beside it.
const maxSourceFile = 1 << 30

// Digest returns what AddSource would: the digest of dir's archive and its
// files. It writes nothing. When ctx ends it, the error is ctx's cause.
func Digest(ctx context.Context, dir string) (digest string, files []File, err error) {
	sum := sha256.New()
	if files, err = archive(ctx, dir, sum); err != nil {
		return "", nil, fmt.Errorf("read source %s: %w", dir, err)
	}
	return hexSum(sum), files, nil
}

// archive writes the files below dir as a tar that depends on nothing but their
// paths, contents and x bits: sorted, uid and gid 0, mtime 0, modes 0644 and 0755.
// Folders have no entries of their own; an empty one is left out. A file is read
// once, so that what is hashed is what is kept.
func archive(ctx context.Context, dir string, w io.Writer) ([]File, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var paths []string
	if err := listTree(root, ".", &paths); err != nil {
		return nil, err
	}
	slices.Sort(paths)
	var files []File
	tw := tar.NewWriter(w)
	for _, p := range paths {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		f, err := archiveFile(ctx, root, p, tw)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, tw.Close()
}

// listTree appends the path of every file below folder that belongs to a source.
func listTree(root *os.Root, folder string, paths *[]string) error {
	entries, err := fs.ReadDir(root.FS(), folder)
	if err != nil {
		return err
	}
	names := map[string]bool{}
	for _, e := range entries {
		names[e.Name()] = true
	}
	for _, e := range entries {
		p := path.Join(folder, e.Name())
		switch {
		case leftOut(e.Name(), names):
		case e.Type() == fs.ModeSymlink && leadsOut(root, p):
		case e.IsDir():
			if err := listTree(root, p, paths); err != nil {
				return err
			}
		default:
			*paths = append(*paths, p)
		}
	}
	return nil
}

// leftOut reports whether a name is no part of a source: version control, and
// what kbuild makes. kbuild leaves .X.cmd beside every X that it made
// (scripts/Kbuild.include, if_changed).
func leftOut(name string, beside map[string]bool) bool {
	switch name {
	case ".git", ".svn", ".hg", "modules.order", "Module.symvers", ".tmp_versions":
		return true
	}
	switch {
	case strings.HasSuffix(name, ".ko"), strings.HasSuffix(name, ".mod"), strings.HasSuffix(name, ".mod.c"):
		return true
	case strings.HasPrefix(name, ".") && strings.HasSuffix(name, ".cmd"):
		return true
	}
	return beside["."+name+".cmd"]
}

func archiveFile(ctx context.Context, root *os.Root, p string, tw *tar.Writer) (File, error) {
	info, err := root.Lstat(p)
	if err != nil {
		return File{}, err
	}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return archiveLink(root, p, tw)
	case !info.Mode().IsRegular():
		return File{}, fmt.Errorf("%s is neither a file, a folder nor a symbolic link: %v", p, info.Mode().Type())
	case info.Size() > maxSourceFile:
		return File{}, fmt.Errorf("%s is too big for a source file: %d bytes, of %d at most", p, info.Size(), maxSourceFile)
	}
	f, err := root.Open(p)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return File{}, err
	}
	file := File{Path: p, Mode: 0o644, Size: info.Size()}
	if info.Mode()&0o100 != 0 {
		file.Mode = 0o755
	}
	if err := tw.WriteHeader(fileHeader(file)); err != nil {
		return File{}, fmt.Errorf("archive %s: %w", p, err)
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(tw, sum), contextReader{ctx, f})
	if n < file.Size && err == nil || errors.Is(err, tar.ErrWriteTooLong) {
		err = errors.New("it changed while it was read")
	}
	if err != nil {
		return File{}, fmt.Errorf("archive %s: %w", p, err)
	}
	file.SHA256 = hexSum(sum)
	return file, nil
}

// leadsOut reports whether a link leads out of the tree. Packages for DKMS have such links, to their documentation; of a
// source with a kmod.toml they are refused before (build.CheckSource).
func leadsOut(root *os.Root, p string) bool {
	target, err := root.Readlink(p)
	if err != nil || path.IsAbs(target) || !filepath.IsLocal(path.Join(path.Dir(p), target)) {
		return err == nil
	}
	// This follows the links on the way, too. A link to something that is yet to be made is fine.
	_, err = root.Stat(p)
	return err != nil && !errors.Is(err, fs.ErrNotExist)
}

// archiveLink keeps a symbolic link that stays in the tree, as it is.
func archiveLink(root *os.Root, p string, tw *tar.Writer) (File, error) {
	target, err := root.Readlink(p)
	if err == nil && leadsOut(root, p) { // by now
		err = fmt.Errorf("link %s leads out of the source: %s", p, target)
	}
	if err != nil {
		return File{}, err
	}
	file := File{Path: p, Mode: 0o777, Link: target}
	if err := tw.WriteHeader(fileHeader(file)); err != nil {
		return File{}, fmt.Errorf("archive %s: %w", p, err)
	}
	return file, nil
}

// unpack writes an archive's files below root and returns them as AddSource listed
// them. Every file gets the same mtime: make must not find one of them older than another.
func unpack(src io.Reader, root *os.Root, mtime time.Time) ([]File, error) {
	return eachFile(src, func(h *tar.Header, body io.Reader) error {
		if err := root.MkdirAll(path.Dir(h.Name), 0o755); err != nil {
			return err
		}
		if h.Typeflag == tar.TypeSymlink {
			return root.Symlink(h.Linkname, h.Name)
		}
		mode := fs.FileMode(h.Mode).Perm()
		f, err := root.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, body)
		if err := errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
			return fmt.Errorf("write %s: %w", h.Name, err)
		}
		return root.Chtimes(h.Name, mtime, mtime)
	})
}

// eachFile reads an archive and returns its files as AddSource listed them. do reads
// the body of each to its end.
func eachFile(src io.Reader, do func(h *tar.Header, body io.Reader) error) (files []File, err error) {
	for tr := tar.NewReader(src); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return files, nil
		} else if err != nil {
			return nil, err
		}
		if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeSymlink || isSparse(h) {
			return nil, fmt.Errorf("%s is of a kind that sources do not have", h.Name)
		}
		sum := sha256.New()
		if err := do(h, io.TeeReader(tr, sum)); err != nil {
			return nil, err
		}
		f := File{Path: h.Name, Mode: uint32(h.Mode), Size: h.Size, Link: h.Linkname}
		if h.Typeflag == tar.TypeReg {
			f.SHA256 = hexSum(sum)
		}
		files = append(files, f)
	}
}
