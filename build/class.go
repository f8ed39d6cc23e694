package build

import (
	"errors"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// Class is the kind of cause that a failed build has; "" when it is none of these. The
// words are for programs (--json, the registry): they do not change.
type Class string

// The classes, in the order in which they are looked for.
const (
	ClassTime      Class = "time"      // the time limit was reached: a *TimeLimitError is in the chain
	ClassDisk      Class = "disk"      // no space left: syscall.ENOSPC is in the chain
	ClassNetwork   Class = "network"   // something was looked for elsewhere: ErrNoNetwork is in the chain
	ClassMemory    Class = "memory"    // a compiler got none, or was killed
	ClassPatch     Class = "patch"     // a patch of the manifest does not fit the source
	ClassConfig    Class = "config"    // the source wants an option that the kernel was built without
	ClassSymbol    Class = "symbol"    // the kernel exports no such symbol
	ClassLicense   Class = "license"   // the symbol is for modules under the GPL
	ClassNamespace Class = "namespace" // the symbol's namespace is not imported
	ClassBTF       Class = "btf"       // pahole, or the BTF of the kernel that it reads
	ClassCompiler  Class = "compiler"  // it is missing, or does not know what the kernel's was told
	ClassHeader    Class = "header"    // a header of another package is missing: Error.Header
	ClassAPI       Class = "api"       // the kernel's interface is another one
	ClassWerror    Class = "werror"    // a warning, which -Werror makes an error
	ClassSource    Class = "source"    // the source lacks a file that it names
	ClassProgram   Class = "program"   // a program is not installed
)

// classes lead from the telling line of a log to a class: the first one wins. What has no
// pattern is not told by one.
var classes = []struct {
	class Class
	words string
	says  func() *regexp.Regexp
}{
	{ClassTime, "the build took longer than it may", nil},
	{ClassDisk, "the disk is full", anyOf(noSpace)},
	{ClassNetwork, "the source is not complete: a build reaches no network", nil},
	{ClassMemory, "the machine has too little memory for it", anyOf(
		`virtual memory exhausted`, `out of memory allocating`, `Cannot allocate memory`,
		`Killed signal terminated program`, `signal: killed`, `\*\*\* .* (Killed|Error 137)$`)},
	{ClassPatch, "a patch of the manifest was made for another source", nil},
	{ClassConfig, "the source needs an option that this kernel was built without", anyOf(
		`(#error|\*\*\*|configure: error:).*CONFIG_[A-Z0-9]`, `depends on CONFIG_`)},
	{ClassSymbol, "this kernel exports no such symbol: it never did, does no more, was built without it, or another module does", anyOf(
		`^ERROR: (modpost: )?".+" \[.+\] undefined!`)},
	{ClassLicense, "the kernel gives this symbol to modules under the GPL only", anyOf(`GPL-incompatible module .* uses GPL-only symbol`)},
	{ClassNamespace, "this kernel has the symbol in a namespace, which the source does not import", anyOf(`from namespace .+, but does not import it`)},
	{ClassBTF, "the type information of the kernel (BTF) could not be read, or pahole not be run", anyOf(
		`base BTF`, `load BTF`, `\bpahole: `, `resolve_btfids`, `^btf_encoder`)},
	{ClassCompiler, "the compiler is missing or another one than the kernel was built with", anyOf(
		`unrecognized command[- ]line option`, `unknown argument|(unknown|unsupported) (warning )?option`, `bad value .* for .* switch`,
		`cannot load plugin`, `incompatible gcc/plugin versions`, `fail to initialize plugin`,
		`Compiler (is too old|lacks )`, `\b(gcc|clang|ld|ld\.lld)(-\d+)?: .*not found$`)},
	{ClassHeader, "a header or library of another package is not installed", nil}, // missing finds it
	{ClassAPI, "this kernel's headers do not declare what the source uses, or declare it otherwise", anyOf(
		`implicit declaration of function`, `call to undeclared function`, `undeclared( here)? \(`, `undeclared identifier`,
		`no member named`, `does not refer to any field`, `unknown type name`, `incomplete (definition of )?type`, `storage size of .* isn't known`,
		`too (few|many) arguments`, `macro ".*" (requires|passed) \d+ arguments`,
		`incompatible (function )?pointer type`, `incompatible types? `, `makes (integer|pointer) from (integer|pointer)`,
		`void value not ignored`, `conflicting types for`, `redefinition of`, `static declaration of .* follows non-static`,
		`#error .*([Kk]ernel|KERNEL|LINUX|[Vv]ersion)`)},
	{ClassWerror, "a warning, which the source or the kernel's configuration makes an error", anyOf(`\[-Werror\b.*\]$`, `warnings? being treated as errors?`)},
	{ClassSource, "the source lacks a file that it names", anyOf(`but there is no \S+\.c \(or `, `No rule to make target`)},
	{ClassProgram, "a program that the build starts is not installed", anyOf(
		`: .*not found$`, `command not found`, `make(\[\d+\])?: \S+: No such file or directory$`, `\*\*\* .* Error 127$`,
		`exec: no such file or directory$`, `is not on the build's PATH`)},
}

// Words says what a class means, in a sentence.
func (c Class) Words() string {
	for _, known := range classes {
		if known.class == c {
			return known.words
		}
	}
	return ""
}

// ClassOf is the class of what Run or Planner.Decide returned.
func ClassOf(err error) Class {
	var failed *Error
	var program *exec.Error
	var late *TimeLimitError
	switch {
	case errors.As(err, &late):
		return ClassTime
	case errors.Is(err, syscall.ENOSPC):
		return ClassDisk
	case errors.Is(err, ErrNoNetwork):
		return ClassNetwork
	case errors.As(err, &failed):
		return failed.Class
	case errors.As(err, &program) && (strings.Contains(program.Name, "gcc") || strings.Contains(program.Name, "clang")):
		return ClassCompiler
	case errors.As(err, &program):
		return ClassProgram
	}
	return ""
}

// classify finds the class of a telling line, and the header (or library, "-lelf") that it misses.
func classify(line string) (c Class, header string) {
	if found := missing().FindStringSubmatch(line); found != nil {
		header = strings.Join(found[1:], "") // one of them
		if _, ok := ProviderOf(header); ok {
			return ClassHeader, header
		} else if kernelHeader().MatchString(header) {
			return ClassAPI, ""
		}
		return ClassSource, ""
	}
	for _, known := range classes {
		if known.says != nil && known.says().MatchString(line) {
			return known.class, ""
		}
	}
	return "", ""
}

// missing is said of a header by gcc and clang, of a library by ld.
var missing = anyOf(`fatal error: (\S+): No such file or directory$`, `fatal error: '(\S+)' file not found$`, `cannot find (-l[^:\s]+)`)

// kernelHeader is the name of a header that the kernel has, or once had: include/ and arch/*/include/ of its tree.
var kernelHeader = anyOf(`^(acpi|asm|asm-generic|clocksource|crypto|drm|dt-bindings|generated|keys|kunit|kvm|linux|math-emu|media|memory|misc|net|pcmcia|ras|rdma|rv|scsi|soc|sound|target|trace|uapi|ufs|vdso|video|xen)/`)

// Provider is the package that has a header or a library, by the name it has in each family
// of distributions.
type Provider struct {
	Debian string
	Fedora string // RHEL, openSUSE for the most part
}

// CLibrary is what a host program has and a module has not.
var CLibrary = Provider{"libc6-dev", "glibc-devel"}

// providers have what a module's configure script or host program wants most: headers,
// folders of headers, libraries.
var providers = map[Provider][]string{
	CLibrary: {"assert.h", "ctype.h", "errno.h", "fcntl.h", "inttypes.h", "math.h", "pthread.h", "signal.h", "stdint.h", "stdio.h",
		"stdlib.h", "string.h", "sys/", "time.h", "unistd.h", "-lc"},
	{"libelf-dev", "elfutils-libelf-devel"}: {"libelf.h", "gelf.h", "-lelf"},
	{"libdw-dev", "elfutils-devel"}:         {"dwarf.h", "elfutils/", "-ldw"},
	{"libssl-dev", "openssl-devel"}:         {"openssl/", "-lcrypto", "-lssl"},
	{"zlib1g-dev", "zlib-devel"}:            {"zlib.h", "-lz"},
	{"liblzma-dev", "xz-devel"}:             {"lzma.h", "-llzma"},
	{"libzstd-dev", "libzstd-devel"}:        {"zstd.h", "-lzstd"},
	{"libncurses-dev", "ncurses-devel"}:     {"curses.h", "ncurses.h", "-lncurses"},
	{"libudev-dev", "systemd-devel"}:        {"libudev.h", "-ludev"},
	{"libkmod-dev", "kmod-devel"}:           {"libkmod.h", "-lkmod"},
	{"libbpf-dev", "libbpf-devel"}:          {"bpf/", "-lbpf"},
	{"libpci-dev", "pciutils-devel"}:        {"pci/", "-lpci"},
	{"libnuma-dev", "numactl-devel"}:        {"numa.h", "-lnuma"},
	{"libmnl-dev", "libmnl-devel"}:          {"libmnl/", "-lmnl"},
	{"libnl-3-dev", "libnl3-devel"}:         {"netlink/", "-lnl-3"},
	{"libdrm-dev", "libdrm-devel"}:          {"xf86drm.h", "libdrm/", "-ldrm"},
}

// ProviderOf is the package that has a header or a library; ok is false when it is not known.
func ProviderOf(header string) (p Provider, ok bool) {
	folder, _, _ := strings.Cut(header, "/")
	for p, has := range providers {
		if slices.Contains(has, header) || slices.Contains(has, folder+"/") {
			return p, true
		}
	}
	return Provider{}, false
}
