package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"kmodctl/internal/kernel"
)

// TakeOver makes rows of modules that another program has installed for the release of an
// artifact: of each, Module, Path, Digest and Signer are given. Nothing is moved, and no index is
// made. A file that has another digest is a *CorruptError, a module that has a row an
// *OwnedError; after an error nothing is changed.
func (r *Registry) TakeOver(ctx context.Context, a Artifact, files []Install, shadowed []Original) error {
	if err := r.takeOverFiles(ctx, a, files, shadowed); err != nil {
		return fmt.Errorf("take over %s@%s for %s: %w", a.Package, a.Version, a.Release, err)
	}
	return nil
}

func (r *Registry) takeOverFiles(ctx context.Context, a Artifact, files []Install, shadowed []Original) error {
	if r.lock == nil {
		return ErrReadOnly
	}
	if err := r.resume(a.Release); err != nil {
		return err
	}
	m, err := openModules(r.root, a.Release)
	if err != nil {
		return err
	}
	defer m.Close()
	now := time.Now()
	rows := make([]Install, len(files))
	for i, f := range files {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		name := strings.TrimPrefix(f.Path, m.inside+"/")
		info, err := r.keepInstalled(ctx, m, name, f)
		if err != nil {
			return err
		}
		rows[i] = Install{Release: a.Release, Module: f.Module, Path: f.Path, Package: a.Package, Version: a.Version,
			Artifact: a.Digest, Digest: f.Digest, Size: info.Size(), Signer: f.Signer, At: now, Mtime: info.ModTime().UnixNano()}
	}
	in := intent{Release: a.Release, Op: OpInstall, Packages: []string{a.Package}, Target: rows, Originals: shadowed}
	return r.write(func(tx *sql.Tx) error {
		all, err := installRows(tx, a.Release)
		if err != nil {
			return err
		}
		if err := checkOwners(all, in); err != nil {
			return err
		}
		if err := putKernel(tx, a.Release, kernelStamp(m.tree)); err != nil {
			return err
		}
		if err := putOriginals(tx, in); err != nil {
			return err
		}
		for _, i := range rows {
			if err := insertInstall(tx, i); err != nil {
				return err
			}
		}
		done, err := beginAttempt(tx, Attempt{Op: OpInstall, Package: a.Package, Version: a.Version, Release: a.Release, Artifact: a.Digest})
		in.Attempts = []Attempt{done}
		return errors.Join(err, endAttempts(tx, in, OutcomeOK, ""))
	})
}

// keepInstalled makes a blob of an installed file, which may be compressed and signed: a row names
// only what can be put back.
func (r *Registry) keepInstalled(ctx context.Context, m *modules, name string, f Install) (fs.FileInfo, error) {
	file, err := m.tree.OpenFile(name, openPlain, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	src, err := plainFile(file)
	if err != nil {
		return nil, err
	}
	digest, _, err := r.PutBlob(ctx, src)
	if err == nil && digest != f.Digest {
		err = &CorruptError{Path: f.Path, Want: f.Digest, Got: digest}
	}
	if err != nil {
		return nil, err
	}
	return file.Stat()
}

// PutBack puts a module that another program had taken out of /lib/modules where it was, given
// inside the root. What is there stays: put is false then. The index is not made anew: put
// back what is shadowed, or install or uninstall something after it.
func PutBack(root kernel.Root, release, to string, src io.Reader) (put bool, err error) {
	m, err := openModules(root, release)
	if err != nil {
		return false, fmt.Errorf("put back %s: %w", to, err)
	}
	defer m.Close()
	name, below := strings.CutPrefix(path.Clean(to), m.inside+"/")
	if !below || moduleName(name) == "" {
		return false, fmt.Errorf("put back %s: it is no module of %s", to, release)
	}
	if put, err = m.putNew(name, src); err != nil {
		return false, fmt.Errorf("put back %s: %w", to, bare(err))
	}
	return put, nil
}

// putNew writes a file that is not there yet; it is durable then.
func (m *modules) putNew(name string, src io.Reader) (put bool, err error) {
	if _, err := m.tree.Lstat(name); err == nil {
		return false, nil
	}
	dir := path.Dir(name)
	if err := m.tree.MkdirAll(dir, 0o755); err != nil {
		return false, err
	}
	temp := path.Join(dir, tempName+path.Base(name))
	if err := ignoreAbsent(m.tree.Remove(temp)); err != nil { // of one that was killed
		return false, err
	}
	err = writeNew(m.tree, temp, src)
	if err == nil {
		err = m.tree.Link(temp, name) // not over what came meanwhile
	}
	err = errors.Join(err, m.takeAway(temp), syncDir(m.tree, dir))
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}
