package build

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultTimeLimit is how long a build may take when its Job does not say.
const DefaultTimeLimit = time.Hour

// TimeLimitError is a build that was ended because it took too long.
type TimeLimitError struct{ Limit time.Duration }

func (e *TimeLimitError) Error() string {
	return fmt.Sprintf("not done after %v, the time limit", e.Limit)
}

// errFloor is a build that was ended before the disk was full.
var errFloor = fmt.Errorf("ended before it fills the disk: %w", syscall.ENOSPC)

// limits are what a process of a build may have, getrlimit(2); less where the caller has less.
var limits = []struct {
	resource int
	max      uint64
}{
	{unix.RLIMIT_CORE, 0},
	{unix.RLIMIT_FSIZE, 4 << 30}, // bytes of one file
	{unix.RLIMIT_NOFILE, 4096},
}

// maxProcesses bounds processes and threads of the build user (RLIMIT_NPROC): all builds of a machine share it.
var maxProcesses uint64 = 2048

// limit lowers this process's limits. The number of processes counts by user: where the
// caller builds as himself, and not in a user namespace of his own, his others would count.
func (w *wall) limit() error {
	for _, l := range limits {
		if err := lower(l.resource, l.max); err != nil {
			return err
		}
	}
	if w.Nice {
		if err := giveWay(); err != nil {
			return err
		}
	}
	if w.Caller && w.Namespaces == 0 {
		return nil
	}
	return lower(unix.RLIMIT_NPROC, w.Processes)
}

// giveWay lets others go first: a niceness of 10, and the last of ioprio_set(2)'s
// best-effort levels. Both are this thread's, and what it executes keeps them.
func giveWay() error {
	const process, bestEffort, last = 1, 2 << 13, 7 // linux/ioprio.h
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 10); err != nil {
		return failed("setpriority", err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, process, 0, bestEffort|last); errno != 0 && errno != unix.ENOSYS {
		return failed("ioprio_set", errno)
	}
	return nil
}

func lower(resource int, most uint64) error {
	var now syscall.Rlimit
	err := syscall.Getrlimit(resource, &now)
	if err == nil {
		now.Max = min(now.Max, most)
		now.Cur = min(now.Cur, now.Max)
		err = syscall.Setrlimit(resource, &now)
	}
	return failed("set limits", err)
}

// watch returns a context that ends when ctx does, after the time limit, or when the
// disk that holds dir gets full; context.Cause tells. stop releases it.
func watch(ctx context.Context, limit time.Duration, dir string) (watched context.Context, stop func()) {
	if limit == 0 {
		limit = DefaultTimeLimit
	}
	watched, end := context.WithCancelCause(ctx)
	go func() {
		late := time.NewTimer(limit)
		defer late.Stop()
		look := time.NewTicker(lookEvery)
		defer look.Stop()
		for {
			select {
			case <-watched.Done():
				return
			case <-late.C:
				end(&TimeLimitError{limit})
			case <-look.C:
				if nearlyFull(dir) {
					end(errFloor)
				}
			}
		}
	}()
	return watched, func() { end(nil) }
}

// A disk is as good as full with a hundredth of it left, or 256 MiB: faster than a
// build writes between two looks.
const (
	lookEvery = 100 * time.Millisecond
	floorMax  = 256 << 20 // bytes
)

func nearlyFull(dir string) bool {
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil {
		return false
	}
	block := uint64(fs.Bsize)
	return fs.Bavail*block < min(fs.Blocks*block/100, floorMax) || fs.Ffree < fs.Files/100
}
