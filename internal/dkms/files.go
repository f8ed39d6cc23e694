package dkms

import (
	"context"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"mvdan.cc/sh/v3/interp"
)

// What lies outside of what a conf may read is not there for it.

func (s *shell) stat(ctx context.Context, name string, follow bool) (fs.FileInfo, error) {
	path, ok := s.host(ctx, name)
	if !ok && path != "/" {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
	}
	if follow {
		return os.Stat(path)
	}
	return os.Lstat(path)
}

func (s *shell) access(ctx context.Context, name string, mode interp.AccessMode) error {
	path, ok := s.host(ctx, name)
	if !ok && path != "/" {
		return fs.ErrNotExist
	}
	return unix.Access(path, uint32(mode))
}

func (s *shell) readDir(ctx context.Context, name string) ([]fs.DirEntry, error) {
	path, ok := s.host(ctx, name)
	if !ok {
		return nil, nil // an error would end the evaluation
	}
	entries, _ := os.ReadDir(path)
	return entries, nil
}
