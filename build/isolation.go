package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// Isolation is what stood between a source's code and this machine while it was built.
type Isolation struct {
	Namespaces uintptr // CLONE_NEW* of those that were the build's own; 0 without any
	Refused    string  // why they are not all; "" when they are
	Landlock   int     // ABI version, Documentation/userspace-api/landlock.rst; 0 without
	Seccomp    bool    // no system call makes a socket that reaches a network
	UID        int     // who built
	Caller     bool    // UID is that of whoever called
}

// Levels of isolation, from the strongest; docs/sandbox.md has what each stops.
const (
	LevelStrict     = "strict"     // all of it
	LevelNamespaces = "namespaces" // own mounts and processes, but something is missing
	LevelLandlock   = "landlock"   // no namespaces
	LevelUser       = "user"       // another user, and no more
	LevelNone       = "none"       // the caller, and no more
)

// Level is the one word for it.
func (i Isolation) Level() string {
	switch {
	case i.Namespaces == allNamespaces && i.Landlock > 0 && i.Seccomp:
		return LevelStrict
	case i.Namespaces != 0:
		return LevelNamespaces
	case i.Landlock > 0:
		return LevelLandlock
	case !i.Caller:
		return LevelUser
	}
	return LevelNone
}

// String is the level and what it is made of, for the log.
func (i Isolation) String() string {
	var own []string
	for _, n := range namespaces {
		if i.Namespaces&n.flag != 0 {
			own = append(own, n.name)
		}
	}
	s := i.Level() + ": "
	if len(own) > 0 {
		s += "own " + strings.Join(own, ", ") + " namespaces"
	} else {
		s += "no namespaces"
	}
	if i.Refused != "" {
		s += " (refused: " + i.Refused + ")"
	}
	if i.Landlock > 0 {
		s += fmt.Sprintf(", Landlock ABI %d", i.Landlock)
	} else {
		s += ", no Landlock"
	}
	switch {
	case i.Seccomp:
		s += ", seccomp"
	case i.Namespaces&unix.CLONE_NEWNET != 0:
		s += ", no seccomp"
	default:
		s += ", no seccomp: the network is open"
	}
	s += fmt.Sprintf(", uid %d", i.UID)
	switch {
	case i.Caller && i.UID == 0:
		s += " (the caller: this user namespace has no other user)"
	case i.Caller:
		s += " (the caller)"
	}
	return s
}

// namespaces are those that the stage child is born into, namespaces(7). A process
// namespace ends with its first process: killing that one leaves no other.
var namespaces = []struct {
	name string
	flag uintptr
}{
	{"mount", unix.CLONE_NEWNS}, {"pid", unix.CLONE_NEWPID}, {"ipc", unix.CLONE_NEWIPC}, {"uts", unix.CLONE_NEWUTS}, {"net", unix.CLONE_NEWNET},
}

const allNamespaces uintptr = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET

// offers are the sets of namespaces that are asked for, the best first; a wall is made of one
// of them, or of none: without mounts or processes of its own a build needs what it
// needs without any.
var offers = []uintptr{allNamespaces, unix.CLONE_NEWNS | unix.CLONE_NEWPID}

// probe finds out which namespaces this machine grants, and takes the wall down to a
// supervised process group where it grants none; under a root that is an error. The log says what
// the wall is made of.
func (w *wall) probe(ctx context.Context, log io.Writer) error {
	var err error
	var setup *setupError
	for _, w.Namespaces = range offers {
		if err = w.run(ctx, "", nil, io.Discard); !errors.As(err, &setup) || !setup.refused() {
			break
		}
		w.Refused = setup.Error()
	}
	switch {
	case err == nil:
	case errors.As(err, &setup) && w.root:
		return fmt.Errorf("building with headers that are not in their place here needs a mount namespace: %w", setup)
	case errors.As(err, &setup) && setup.refused():
		w.Namespaces, w.Work, w.Binds, w.Beside.At = 0, "", nil, w.Beside.From
		if err := w.makeTemp(); err != nil {
			return err
		}
	default:
		return err
	}
	_, err = fmt.Fprintf(log, "isolation: %s\n", w.Isolation)
	return err
}
