package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
)

// wall is what stands between a source's code and this machine, and how it is put
// up. It is also the message to the stage child, which builds it from inside.
type wall struct {
	Isolation

	Source string   // the copy, as this process opens it
	Work   string   // where the copy appears inside the namespace; "" without one
	Beside bind     // the Job's Pristine; zero without one
	Binds  []bind   // folders of a root that must appear at their own places
	Trees  []string // the build tree, and the source that it was made from
	GID    int

	Processes uint64 // RLIMIT_NPROC
	Nice      bool   // goes last for processors and disks

	Supervised bool   // without a namespace: the stage child has a supervisor
	Fifo       string // the Jobserver's, of which the stage child is born with descriptors; "" without one

	File string   // the program; "" only tries the wall
	Argv []string // its arguments

	env  []string // what the program's environment has beside cleanEnv
	jobs *Jobserver
	root bool // the kernel is one of a root: it cannot be built for without a namespace
}

// bind is a folder and the place where kbuild expects it.
type bind struct{ From, At string }

const (
	workRoot = "/tmp/kmodctl"
	treeAt   = workRoot + "/tree" // of a build tree whose own place the build user cannot reach
	nobody   = 65534              // the kernel's overflow user, /proc/sys/kernel/overflowuid
)

// User is who builds: the system user kmodctl, else nobody. ok is false when this
// process is not root and builds as itself; so it does as the root of a user
// namespace that has no such user (unshare -r, user_namespaces(7)).
func User() (uid, gid int, ok bool) {
	if os.Geteuid() == 0 {
		uid, gid = systemUser()
		ok = mapped("/proc/self/uid_map", uid) && mapped("/proc/self/gid_map", gid)
	}
	if !ok {
		uid, gid = os.Getuid(), os.Getgid()
	}
	return uid, gid, ok
}

func systemUser() (uid, gid int) {
	if u, err := user.Lookup("kmodctl"); err == nil {
		uid, uidErr := strconv.Atoi(u.Uid)
		gid, gidErr := strconv.Atoi(u.Gid)
		if uidErr == nil && gidErr == nil && uid != 0 {
			return uid, gid
		}
	}
	return nobody, nobody
}

// mapped reports whether an id exists in this user namespace. Where there are no
// user namespaces there is no map either.
func mapped(file string, id int) bool {
	data, err := os.ReadFile(file)
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(data)) {
		var inside, outside, count int
		if fmt.Sscan(line, &inside, &outside, &count); id >= inside && id-inside < count {
			return true
		}
	}
	return false
}

func newWall(j Job) wall {
	w := wall{
		Source: j.Source,
		Work:   j.fixedPlace(),
		Binds:  treeBinds(j.Kernel),
		jobs:   j.Jobserver,
		root:   !j.Kernel.Root.IsHost(),

		Processes: maxProcesses,
		Nice:      j.Nice,
	}
	if w.jobs != nil {
		w.Fifo = w.jobs.fifo
		w.Binds = append(w.Binds, bind{filepath.Dir(w.Fifo), jobsAt})
	}
	if j.Pristine != "" {
		w.Beside = bind{j.Pristine, j.Manifest.sourcePlace()}
	}
	var other bool
	w.UID, w.GID, other = User()
	w.Caller = !other
	w.Landlock, w.Seccomp = landlockABI(), canFilter()
	w.Trees = []string{j.Kernel.Tree.Path, filepath.Join(j.Kernel.Tree.Path, "source"), filepath.Join("/lib/modules", j.Kernel.Name, "source")}
	if other && !covered(j.Kernel.Tree.Path) && !w.reaches(filepath.Dir(j.Kernel.Tree.Path)) {
		w.Binds = append(w.Binds, bind{j.Kernel.Tree.Host, treeAt})
	}
	return w
}

// reaches reports whether the build user may pass through dir and all above it. A
// folder that is not there bars nobody: the namespace makes it.
func (w *wall) reaches(dir string) bool {
	var st unix.Stat_t
	if unix.Stat(dir, &st) == nil {
		enter := uint32(0o001)
		switch {
		case st.Uid == uint32(w.UID):
			enter = 0o100
		case st.Gid == uint32(w.GID):
			enter = 0o010
		}
		if st.Mode&enter == 0 {
			return false
		}
	}
	return dir == "/" || w.reaches(filepath.Dir(dir))
}

// tree is the build tree's path as the build sees it.
func (w *wall) tree(k kernel.Release) string {
	if slices.ContainsFunc(w.Binds, func(b bind) bool { return b.At == treeAt }) {
		return treeAt
	}
	return k.Tree.Path
}

// work is the copy's path as the build sees it.
func (w *wall) work() string {
	if w.Work != "" {
		return w.Work
	}
	return w.Source
}

// copies are the folders that the build may write to, and where it sees them.
func (w *wall) copies() []bind {
	all := []bind{{w.Source, w.work()}}
	if w.Beside.From != "" {
		all = append(all, w.Beside)
	}
	return all
}

// fifo is the Jobserver's path as the build sees it.
func (w *wall) fifo() string {
	if w.Work != "" {
		return filepath.Join(jobsAt, filepath.Base(w.Fifo))
	}
	return w.Fifo
}

// treeBinds lists the folders that kbuild will look for at absolute paths.
func treeBinds(k kernel.Release) (binds []bind) {
	if k.Root.IsHost() {
		if tree := k.Tree.Host; covered(tree) {
			binds = append(binds, bind{tree, tree})
		}
		return binds
	}
	add := func(name string) {
		if from, err := k.Root.Path(name); err == nil {
			binds = append(binds, bind{from, name})
		}
	}
	add("/usr/src")
	add(filepath.Join("/lib/modules", k.Name))
	if lib, err := k.Root.Path("/usr/lib"); err == nil {
		entries, _ := os.ReadDir(lib)
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "linux-kbuild-") {
				add(filepath.Join("/usr/lib", e.Name()))
			}
		}
	}
	if !under(k.Tree.Path, "/usr/src") {
		binds = append(binds, bind{k.Tree.Host, k.Tree.Path})
	}
	return binds
}

func under(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// covered reports whether the namespace has other files at a path: it has an own /tmp,
// and nothing in /run, where the sockets of this machine's services are.
func covered(path string) bool { return under(path, "/tmp") || under(path, "/run") }

// makeTemp makes the folder that stands for /tmp where that is everybody's.
func (w *wall) makeTemp() error {
	dir := w.temp()
	if err := os.RemoveAll(dir); err != nil { // the source's, or of a build before this one
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil || w.Caller {
		return err
	}
	return os.Lchown(dir, w.UID, w.GID)
}

func (w *wall) temp() string { return filepath.Join(w.Source, ".kmodctl-tmp") }

// setupError is a wall that could not be put up.
type setupError struct {
	Op    string        `json:"op"`
	Errno syscall.Errno `json:"errno"`
}

func (e *setupError) Error() string { return e.Op + ": " + e.Errno.Error() }
func (e *setupError) Unwrap() error { return e.Errno }

// refused reports whether the kernel or its policy denies namespaces: a container
// (EPERM), AppArmor (EACCES), user.max_user_namespaces (ENOSPC), a kernel without
// them (EINVAL, ENOSYS).
func (e *setupError) refused() bool {
	switch e.Errno {
	case unix.EPERM, unix.EACCES, unix.ENOSPC, unix.ENOSYS, unix.EINVAL:
		return e.Op != opExec
	}
	return false
}

// run executes file behind the wall and waits for it and for all that it started.
// The error is a *setupError when file never ran, else an *exec.ExitError.
func (w wall) run(ctx context.Context, file string, argv []string, out io.Writer) error {
	w.File, w.Argv = file, argv
	message, err := json.Marshal(w)
	if err != nil {
		return err
	}
	// The child is told by a signal when the thread that started it ends
	// (PR_SET_PDEATHSIG), so that thread must live as long as we wait.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	lifeR, lifeW, err := os.Pipe() // its write end is ours alone: it closes when we die
	if err != nil {
		return err
	}
	defer lifeR.Close()
	defer lifeW.Close()
	statusR, statusW, err := os.Pipe() // closes without a word when file is executed
	if err != nil {
		return err
	}
	defer statusR.Close()
	defer statusW.Close()

	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{stageName, string(message)}
	cmd.Env = append(cleanEnv[:len(cleanEnv):len(cleanEnv)], "KMODCTL_WORK="+w.Source,
		"PWD="+w.work()) // as a shell has it: many a Makefile says -I$(PWD)
	cmd.Env = append(cmd.Env, w.env...)
	if w.Work == "" {
		cmd.Env = append(cmd.Env, "TMPDIR="+w.temp())
	}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{lifeR, statusW} // lifeFD, statusFD
	if w.Fifo != "" {
		ends, err := w.jobs.open()
		for _, end := range ends {
			defer end.Close()
		}
		if err != nil {
			return err
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, ends...) // jobsFD
		cmd.Env = append(cmd.Env, w.jobs.flags(w.fifo()))
	}
	cmd.SysProcAttr = w.attributes()
	if w.Work == "" {
		cmd.Cancel = lifeW.Close // the supervisor has to outlive the others
	}
	if err := cmd.Start(); err != nil {
		var errno syscall.Errno
		if errors.As(err, &errno) {
			return &setupError{"clone", errno}
		}
		return err
	}
	statusW.Close()
	said, err := io.ReadAll(statusR)
	waitErr := cmd.Wait()
	if err != nil {
		return err
	}
	if len(said) > 0 {
		var setup setupError
		if err := json.Unmarshal(said, &setup); err != nil {
			return fmt.Errorf("read the stage's report: %w", err)
		}
		return &setup
	}
	return waitErr
}

func (w wall) attributes() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setsid: true}
	if w.Work == "" {
		return a
	}
	a.Pdeathsig, a.Cloneflags = syscall.SIGKILL, w.Namespaces
	if os.Geteuid() != 0 {
		// A user namespace grants the mounts. We stay who we are in it, so the right has to pass the exec as ambient.
		a.Cloneflags |= unix.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
		a.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN}
	}
	return a
}
