package registry

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	workDir = "work"
	workEnv = "KMODCTL_WORK" // a process with this works for the folder it names
)

// NewWork makes a folder for a build on the registry's filesystem, which every
// user may enter. done removes it, and Close returns the error if that fails;
// after a crash the next writer removes it, once it has killed every process
// whose environment has KMODCTL_WORK set to a path in it.
func (r *Registry) NewWork(label string) (dir string, done func(), err error) {
	if r.lock == nil {
		return "", nil, ErrReadOnly
	}
	label = strings.Map(func(c rune) rune {
		if c == '/' || c == 0 {
			return '_'
		}
		return c
	}, label)
	name := filepath.Join(workDir, label+"-"+rand.Text()[:8])
	if err := r.tree.Mkdir(name, 0o755); err != nil {
		return "", nil, fmt.Errorf("make work folder: %w", err)
	}
	done = func() {
		if err := removeTree(r.tree, name); err != nil {
			r.leave(fmt.Errorf("remove work folder: %w", err))
		}
	}
	if err := r.tree.Chmod(name, 0o755); err != nil { // whatever the umask is
		done()
		return "", nil, fmt.Errorf("make work folder: %w", err)
	}
	return filepath.Join(r.dir, name), done, nil
}

// removeTree removes a folder and what is in it. Who is not root has to let
// himself into folders that a build has left without rights.
func removeTree(tree *os.Root, name string) error {
	err := tree.RemoveAll(name)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	// WalkDir shows a folder before it reads it.
	fs.WalkDir(tree.FS(), name, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && tree.Chmod(p, 0o700) != nil {
			return fs.SkipDir // RemoveAll says why
		}
		return nil
	})
	return tree.RemoveAll(name)
}

// sweepWork removes the work folders of writers that are gone, after their
// processes: those would go on writing. A folder that resists is reported and
// stays for the next writer.
func (r *Registry) sweepWork() {
	names, err := readNames(r.tree, workDir)
	if err != nil {
		r.note("could not read work folders: %v", err)
	}
	if len(names) == 0 {
		return
	}
	prefix := []byte(workEnv + "=" + filepath.Join(r.dir, workDir) + "/")
	for round := 0; round < 10; round++ { // a process may fork while we look
		found := r.killWorkers(prefix)
		if found == 0 {
			break
		}
	}
	for _, name := range names {
		if err := removeTree(r.tree, filepath.Join(workDir, name)); err != nil {
			r.note("could not remove work folder %s: %v", name, err)
			continue
		}
		r.note("removed work folder %s", name)
	}
}

// killWorkers kills every process, but this one, whose environment holds a
// string that begins with prefix, and returns how many it found.
func (r *Registry) killWorkers(prefix []byte) (found int) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() || !worksFor(pid, prefix) {
			continue
		}
		found++
		if err := killWorker(pid, prefix); err != nil {
			r.note("could not kill process %d of a build that was cut off: %v", pid, err)
			continue
		}
		r.note("killed process %d of a build that was cut off", pid)
	}
	return found
}

// worksFor reads the environment that a process was started with. Those of other
// users and of kernel threads cannot be read and are not ours.
func worksFor(pid int, prefix []byte) bool {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false
	}
	for v := range bytes.SplitSeq(env, []byte{0}) {
		if bytes.HasPrefix(v, prefix) {
			return true
		}
	}
	return false
}

// killWorker kills a process and waits until it is gone. The descriptor (pidfd,
// Linux 5.3) makes sure that no other process has come by the same number.
func killWorker(pid int, prefix []byte) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return nil
	} else if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !worksFor(pid, prefix) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return err
	}
	const patience = 5000 // ms; a process in the kernel dies when its call ends
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, patience)
		switch {
		case err == unix.EINTR:
			continue
		case err == nil && n == 0:
			return fmt.Errorf("still there after %d ms", patience)
		}
		return err
	}
}
