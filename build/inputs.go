package build

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
)

// Builder is the version of how this package builds. It is an input of every
// artifact: raise it when the same sources come out as other bytes.
const Builder = "1"

// Input is one thing that an artifact is made from. Names are words for people:
// "Module.symvers changed".
type Input struct {
	Name  string `json:"name"`
	Value string `json:"value"` // a sha256 in hex, or a version line
}

// facts are what every package's inputs share on one kernel.
type facts struct {
	config, symvers, pahole, flags string
	chain                          *Toolchain
	err                            error // why there can be no build
}

func factsOf(k kernel.Release, tool func(path string) (string, error)) *facts {
	f := &facts{}
	if k.Tree == nil {
		f.err = errors.New(lacks(k))
		return f
	}
	if f.config, f.err = digestConfig(k.Tree.Host); f.err != nil {
		return f
	}
	if f.symvers, f.err = digestFile(k.Tree.Symvers); f.err != nil {
		return f
	}
	if f.chain, f.err = findToolchain(k.Tree.CC, tool); f.err != nil {
		return f
	}
	f.flags = strings.Join(append(f.chain.flags(), reproducible...), " ")
	f.pahole, f.err = paholeIdentity(k, tool)
	return f
}

func (f *facts) inputs(manifest, sourceDigest string, k kernel.Release) []Input {
	return []Input{
		{"builder", Builder},
		{"source", sourceDigest},
		{"manifest", manifest},
		{"release", k.Name},
		{"config", f.config},
		{"Module.symvers", f.symvers},
		{"compiler", f.chain.Identity},
		{"pahole", f.pahole},
		{"flags", f.flags},
	}
}

// digest stands for all that a manifest says.
func (m *Manifest) digest() (string, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

// Hash is the key of the artifact that in makes: sha256 in hex over its lines
// "name value".
func Hash(in []Input) string {
	var text []byte
	for _, i := range in {
		text = append(append(append(append(text, i.Name...), ' '), i.Value...), '\n')
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// Changed names the inputs whose value differs, in the order of new; those that
// only old has come last.
func Changed(old, new []Input) []string {
	before := map[string]string{}
	for _, i := range old {
		before[i.Name] = i.Value
	}
	var names []string
	for _, i := range new {
		if value, ok := before[i.Name]; !ok || value != i.Value {
			names = append(names, i.Name)
		}
		delete(before, i.Name)
	}
	for _, i := range old {
		if _, gone := before[i.Name]; gone {
			names = append(names, i.Name)
		}
	}
	return names
}

// paholeIdentity is the version of pahole where it writes into the modules: kbuild
// makes BTF of a module only when the configuration asks for it and the build tree
// has the kernel's own (scripts/Makefile.modfinal).
func paholeIdentity(k kernel.Release, tool func(string) (string, error)) (string, error) {
	if _, err := os.Stat(filepath.Join(k.Tree.Host, "vmlinux")); err != nil {
		return "not used", nil
	}
	if !k.Tree.Config.Has("DEBUG_INFO_BTF_MODULES") {
		return "not used", nil
	}
	path, err := findProgram("pahole")
	if err != nil {
		return "not installed", nil
	}
	return tool(path)
}

// digestConfig reads the tree's configuration: .config, or what is left of it in
// trees that come without.
func digestConfig(tree string) (string, error) {
	sum, err := digestFile(filepath.Join(tree, ".config"))
	if errors.Is(err, fs.ErrNotExist) {
		return digestFile(filepath.Join(tree, "include/config/auto.conf"))
	}
	return sum, err
}

// fileKey tells one content of a path from the next, as far as stat(2) can.
type fileKey struct {
	path         string
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

var digests sync.Map // fileKey to func() (string, error): Foresee begins what a Planner waits for

func digestFile(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: path, Err: err}
	}
	key := fileKey{path, st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
	once, _ := digests.LoadOrStore(key, sync.OnceValues(func() (string, error) { return readDigest(path) }))
	return once.(func() (string, error))()
}

func readDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Foresee begins to read what a Planner will ask of a kernel's build tree, 2 MB of
// it, while the caller does something else.
func Foresee(k kernel.Release) {
	go digestFile(k.Tree.Symvers)
}
