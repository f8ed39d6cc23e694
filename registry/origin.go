package registry

import (
	"database/sql"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Untouched reports whether the folder that a source was added from is, for sure, as it
// was then: it has the same files, and the kernel has changed nothing of any
// since. Nobody can set the time of that (ctime, stat(2)). When it says false,
// only Digest can tell.
func (s Source) Untouched() bool {
	const tick = 10 * time.Millisecond // the clock of ctime goes in steps of up to 1/HZ
	before := s.Added.Add(-tick)
	left := map[string]File{}
	for _, f := range s.Files {
		left[f.Path] = f
	}
	settled := func(path string, size int64) bool {
		info, err := os.Lstat(path)
		return err == nil && !ctime(info).After(before) && (size < 0 || info.Mode()&fs.ModeSymlink != 0 || info.Size() == size)
	}
	root, err := os.OpenRoot(s.Origin)
	if err != nil {
		return false
	}
	defer root.Close()
	var paths []string
	if err := listTree(root, ".", &paths); err != nil {
		return false
	}
	folders := map[string]bool{}
	for _, p := range paths {
		f, known := left[p]
		delete(left, p)
		if !known || !settled(filepath.Join(s.Origin, p), f.Size) {
			return false
		}
		folders[filepath.Dir(p)] = true
	}
	for dir := range folders {
		if !settled(filepath.Join(s.Origin, dir), -1) {
			return false
		}
	}
	return len(left) == 0
}

func ctime(info fs.FileInfo) time.Time {
	return time.Unix(info.Sys().(*syscall.Stat_t).Ctim.Unix())
}

// Latest returns, for each origin, the source that was last added from there: its
// Name, Version and Origin.
func (r *Registry) Latest() (map[string]Source, error) {
	all, err := collect(r.db, func(rows *sql.Rows, s *Source) error {
		var added int64
		return rows.Scan(&s.Origin, &s.Name, &s.Version, &added)
	}, `SELECT origin, name, version, max(added) FROM source GROUP BY origin`)
	if err != nil {
		return nil, fmt.Errorf("read sources: %w", err)
	}
	latest := map[string]Source{}
	for _, s := range all {
		latest[s.Origin] = s
	}
	return latest, nil
}
