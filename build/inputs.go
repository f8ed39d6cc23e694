package build

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"kmodctl/internal/kernel"
)

// Builder is the version of how this package builds. It is an input of every
// artifact: raise it when the same sources come out as other bytes.
const Builder = "2"

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

// asker tells of a program its version line, of a file its sha256 in hex.
type asker struct {
	tool, digest func(path string) (string, error)
}

func factsOf(k kernel.Release, ask asker) *facts {
	f := &facts{}
	if k.Tree == nil {
		f.err = errors.New(lacks(k))
		return f
	}
	if f.err = foreign(k); f.err != nil {
		return f
	}
	if f.config, f.err = ask.digest(k.Tree.ConfigFile); f.err != nil {
		return f
	}
	if f.symvers, f.err = ask.digest(k.Tree.Symvers); f.err != nil {
		return f
	}
	if f.chain, f.err = findToolchain(k.Tree.CC, ask.tool); f.err != nil {
		return f
	}
	f.flags = strings.Join(append(f.chain.flags(), reproducible...), " ")
	f.pahole, f.err = paholeIdentity(k, ask.tool)
	return f
}

// foreign is the error of headers whose tools (modpost, objtool) cannot run here: they are for
// another processor. A 32-bit system may run below a 64-bit kernel.
func foreign(k kernel.Release) error {
	machine, err := kernel.Machine()
	also := map[string]string{"i686": "x86_64", "armv7l": "aarch64", "armv6l": "aarch64"}[k.Arch]
	if err != nil || k.Arch == "" || k.Arch == machine || also == machine {
		return err
	}
	return fmt.Errorf("%s is a kernel for %s, and this machine (%s) cannot run the tools of its headers", k.Name, k.Arch, machine)
}

// inputs is an array, since status makes one for each package and kernel.
func (f *facts) inputs(manifest, sourceDigest, release string) [9]Input {
	return [9]Input{
		{"builder", Builder},
		{"source", sourceDigest},
		{"manifest", manifest},
		{"release", release},
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
	text := make([]byte, 0, 1024)
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
	if has, err := k.Tree.Config.Has("DEBUG_INFO_BTF_MODULES"); err != nil {
		return "", err
	} else if !has {
		return "not used", nil
	}
	path, err := findProgram("pahole")
	if err != nil {
		return "not installed", nil
	}
	return tool(path)
}

// DigestFile returns the sha256 of a file in hex, a Planner's FileFact "sha256".
func DigestFile(path string) (string, error) {
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
