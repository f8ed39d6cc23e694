package registry

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
)

// indexFiles is what depmod writes into /lib/modules/R (kmod 34, tools/depmod.c).
var indexFiles = []string{
	"modules.dep", "modules.dep.bin", "modules.alias", "modules.alias.bin",
	"modules.softdep", "modules.weakdep", "modules.symbols", "modules.symbols.bin",
	"modules.builtin.bin", "modules.builtin.alias.bin", "modules.devname",
}

// depmodPlaces are where depmod is looked for. PATH is the caller's word and has
// no say in what runs with our rights.
var depmodPlaces = []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"}

var depmodEnv = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}

// depmodCommand prepares depmod(8) for a release, or says why it must not run:
// ErrNoDepmod, or a *LinkError when depmod, which knows nothing of a root's links,
// would write elsewhere than we.
func depmodCommand(root kernel.Root, m *modules) (*exec.Cmd, error) {
	var file string
	for _, place := range depmodPlaces {
		if found, err := exec.LookPath(filepath.Join(place, "depmod")); err == nil {
			file = found
			break
		}
	}
	if file == "" {
		return nil, ErrNoDepmod
	}
	if root.IsHost() {
		return exec.Command(file, m.release), nil
	}
	base, err := filepath.Abs(string(root))
	if err != nil {
		return nil, err
	}
	plain := filepath.Join(base, m.inside)
	if leads, err := filepath.EvalSymlinks(plain); err != nil || leads != m.host {
		return nil, &LinkError{Path: plain, Leads: leads, Want: m.host}
	}
	// depmod -b reads the host's depmod.d all the same (kmod 30, by strace), but
	// for -C, which replaces the whole list.
	args := []string{"-b", base, "-C", "/dev/null"}
	for _, conf := range []string{"/etc/depmod.d", "/run/depmod.d", "/usr/local/lib/depmod.d", "/lib/depmod.d"} {
		if host, err := root.Path(conf); err == nil {
			args = append(args, "-C", host)
		}
	}
	return exec.Command(file, append(args, m.release)...), nil
}

// reindex runs depmod and makes its files durable; before it keeps the old ones,
// for depmod's own way to fail is half an index. lock is the writer's: depmod
// inherits it, so that the next writer waits for a depmod that outlives us.
func (m *modules) reindex(depmod *exec.Cmd, lock *os.File) error {
	if err := m.keepIndex(); err != nil {
		return fmt.Errorf("keep module index of %s: %w", m.inside, bare(err))
	}
	// A file, not a pipe: a depmod that outlives us must not die of its own words.
	stderr, err := unix.MemfdCreate("depmod-stderr", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("run depmod: %w", err)
	}
	words := os.NewFile(uintptr(stderr), "depmod-stderr")
	defer words.Close()
	depmod.Stderr = words
	depmod.Env = depmodEnv
	depmod.ExtraFiles = []*os.File{lock}
	depmod.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us
	if err := depmod.Run(); err != nil {
		text, _ := io.ReadAll(io.NewSectionReader(words, 0, 4096))
		for _, errno := range []error{unix.ENOSPC, unix.EROFS} { // in words (LC_ALL=C)
			if strings.Contains(strings.ToLower(string(text)), errno.Error()) {
				err = fmt.Errorf("%w: %w", err, errno)
			}
		}
		return fmt.Errorf("run depmod for %s: %w%s", m.release, err, lastLines(text))
	}
	for _, name := range indexFiles {
		if err := settleFile(m.tree, name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("settle %s: %w", path.Join(m.inside, name), bare(err))
		}
	}
	return syncDir(m.tree, ".")
}

// keepIndex gives the files of the index a second name and adds the way back.
// depmod writes new files and renames them, so the old ones stay as they are.
func (m *modules) keepIndex() error {
	for _, name := range indexFiles {
		kept := oldName(path.Join(ourDir, name))
		err := m.tree.Link(name, kept)
		switch {
		case errors.Is(err, os.ErrNotExist):
			m.undo = append(m.undo, func() error { return m.takeAway(name) })
		case err != nil:
			return err
		default:
			m.undo = append(m.undo, func() error { return m.putBack(kept, name) })
		}
	}
	return nil
}

// indexed returns what modules.dep names: for each module, by name, its file below
// the release's folder. It is nil when there is no modules.dep.
func (m *modules) indexed() (map[string]string, error) {
	f, err := m.tree.Open("modules.dep")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	return readIndex(f)
}

// readIndex reads modules.dep(5): "PATH: DEPENDENCY...", paths below the
// release's folder. Of modules of one name depmod lists the one that is loaded.
func readIndex(r io.Reader) (map[string]string, error) {
	index := map[string]string{}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if file, _, ok := strings.Cut(line, ":"); ok {
			if name := moduleName(file); name != "" {
				index[name] = file
			}
		}
		if err == io.EOF {
			return index, nil
		} else if err != nil {
			return nil, err
		}
	}
}

// moduleName is the name, in the kernel's form, of the module in a file, "" when its
// name is not that of a module: hello_world of extra/hello-world.ko.xz.
func moduleName(file string) string {
	if _, ok := ko.CompressionOf(file); !ok {
		return ""
	}
	stem, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(stem, "-", "_")
}

// lastLines shows the end of what a program said, indented, below its error.
func lastLines(text []byte) string {
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return ""
	}
	lines := strings.Split(string(text), "\n")
	return "\n  " + strings.Join(lines[max(0, len(lines)-3):], "\n  ")
}

// settleFile makes a file of depmod's durable, and readable by everyone whatever
// the umask was: modprobe reads the index for any user.
func settleFile(tree *os.Root, name string) error {
	f, err := tree.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return errors.Join(f.Chmod(0o644), f.Sync())
}

// wouldIndex is what modules.dep would name if depmod ran now; it writes nothing.
func (m *modules) wouldIndex(root kernel.Root) (map[string]string, error) {
	depmod, err := depmodCommand(root, m)
	if err != nil {
		return nil, err
	}
	depmod.Args = append(depmod.Args, "-n")
	depmod.Env = depmodEnv
	out, err := depmod.Output()
	if err != nil {
		return nil, fmt.Errorf("run depmod -n for %s: %w", m.release, err)
	}
	return readIndex(bytes.NewReader(out))
}
