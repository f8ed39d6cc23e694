package build

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Toolchain is the compiler that modules for one kernel are built with.
type Toolchain struct {
	CC       string `json:"cc"`             // its program, "gcc-12"
	Path     string `json:"path"`           // absolute
	Identity string `json:"identity"`       // first line of --version
	Note     string `json:"note,omitempty"` // says that it is not the one the kernel was built with; "" when it is
}

// searchPath is where the programs of a build are looked for. It is fixed: who
// calls (a hook of dpkg, a user with an own PATH) must not change the artifact.
var searchPath = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// findProgram returns the path of a program; the error is an *exec.Error.
func findProgram(name string) (string, error) {
	for _, dir := range searchPath {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return path, nil
		}
	}
	return "", &exec.Error{Name: name, Err: errors.New("not installed")}
}

// toolIdentity runs path --version and returns the first line of its output.
func toolIdentity(path string) (string, error) {
	cmd := exec.Command(path, "--version")
	cmd.Env = cleanEnv
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("run %s --version: %w", path, err)
	}
	line, _, _ := bytes.Cut(out, []byte("\n"))
	return string(bytes.TrimSpace(line)), nil
}

var (
	compilerName  = anyOf(`^[A-Za-z0-9_.+-]+$`)
	inParentheses = anyOf(`\([^()]*\)`)
	versionNumber = anyOf(`(?:^|\s)(\d+)\.[\d.]+`)
)

// findToolchain picks the compiler that built the kernel, as its
// CONFIG_CC_VERSION_TEXT names it ("gcc-12 (Debian 12.2.0-14) 12.2.0"): by that
// name, by its major version, else the one that the machine has, with a note.
func findToolchain(text string, tool func(string) (string, error)) (*Toolchain, error) {
	major := majorOf(text)
	var chain *Toolchain
	for _, name := range candidates(text, major) {
		path, err := findProgram(name)
		if err != nil {
			continue
		}
		identity, err := tool(path)
		if err != nil {
			return nil, err
		}
		found := &Toolchain{CC: name, Path: path, Identity: identity}
		if major == "" || majorOf(identity) == major {
			return found, nil
		}
		if chain == nil {
			chain = found
		}
	}
	switch {
	case chain != nil:
		chain.Note = fmt.Sprintf("kernel built with %s, which is not installed; building with %s", text, chain.Identity)
		return chain, nil
	case isClang(text):
		return nil, fmt.Errorf("find a compiler: the kernel was built with %s: %w", text, &exec.Error{Name: "clang", Err: errors.New("not installed")})
	}
	return nil, fmt.Errorf("find a compiler: %w", &exec.Error{Name: "gcc", Err: errors.New("not installed")})
}

// candidates are the programs to try, best first. gcc cannot build for a clang
// kernel: the options of its configuration are clang's.
func candidates(text, major string) (names []string) {
	if isClang(text) {
		return []string{"clang-" + major, "clang"}
	}
	if first, _, _ := strings.Cut(text, " "); compilerName().MatchString(first) {
		names = append(names, first)
		if i := strings.LastIndex(first, "gcc"); i > 0 {
			names = append(names, first[i:]) // without x86_64-linux-gnu-
		}
	}
	if major != "" {
		names = append(names, "gcc-"+major)
	}
	return append(names, "gcc", "cc")
}

func isClang(text string) bool { return strings.Contains(text, "clang version") }

func majorOf(text string) string {
	if m := versionNumber().FindStringSubmatch(inParentheses().ReplaceAllString(text, "")); m != nil {
		return m[1]
	}
	return ""
}

// llvm is the suffix of a clang toolchain's programs ("-18" for clang-18).
func (t *Toolchain) llvm() (suffix string, ok bool) { return strings.CutPrefix(t.CC, "clang") }

// flags are the arguments of make that follow from the compiler.
// Documentation/kbuild/llvm.rst: LLVM=1, and LLVM=-18 since 5.18.
func (t *Toolchain) flags() []string {
	suffix, ok := t.llvm()
	switch {
	case !ok:
		return nil
	case suffix == "":
		return []string{"LLVM=1"}
	}
	return []string{"LLVM=" + suffix}
}

// strip is the program that removes debug sections from what it compiled.
func (t *Toolchain) strip() string {
	if suffix, ok := t.llvm(); ok {
		return "llvm-strip" + suffix
	}
	return "strip"
}
