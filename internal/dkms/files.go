package dkms

import (
	"context"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"mvdan.cc/sh/v3/interp"
)

// That a file is there a conf may ask of each, as far as the build user sees it; what is in it only of those that it may read.

func (s *shell) stat(ctx context.Context, name string, follow bool) (fs.FileInfo, error) {
	path, _ := s.host(ctx, name)
	if follow {
		return os.Stat(path)
	}
	return os.Lstat(path)
}

func (s *shell) access(ctx context.Context, name string, mode interp.AccessMode) error {
	path, _ := s.host(ctx, name)
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
