package kernel

import (
	"errors"
	"io"
	"os"
	"strings"
)

// Config is the configuration a kernel was built with: the text of its .config
// (or include/config/auto.conf), as Kconfig writes it. Its bytes are the
// file's, so it can be hashed instead of reading the file again.
//
// It is searched, not parsed: a search costs 0.1 ms at most, a map of all
// 7,000 names costs 0.5 ms for each kernel of each command.
type Config string

// ParseConfig reads a .config. It is an error when there is no CONFIG_ name in
// it; other lines than Kconfig's are ignored, as Kconfig does.
func ParseConfig(r io.Reader) (Config, error) {
	var text strings.Builder
	if f, ok := r.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			text.Grow(int(info.Size()))
		}
	}
	if _, err := io.Copy(&text, r); err != nil {
		return "", err
	}
	if !strings.Contains(text.String(), "CONFIG_") {
		return "", errors.New("no CONFIG_ line")
	}
	return Config(text.String()), nil
}

// Get returns the value of a name without CONFIG_, for instance Get("NET"):
// "y", "m", a number, or a string without its quotes. A name that is not set,
// or that this kernel does not know, is "n".
func (c Config) Get(name string) string {
	line := "CONFIG_" + name + "="
	text, ok := strings.CutPrefix(string(c), line)
	if !ok {
		if _, text, ok = strings.Cut(string(c), "\n"+line); !ok {
			return "n"
		}
	}
	value, _, _ := strings.Cut(text, "\n")
	return unquote(value)
}

// Has reports whether an expression holds: "NET" that the name is y or m,
// "!PREEMPT_RT" that it is neither.
func (c Config) Has(expr string) bool {
	name, not := strings.CutPrefix(expr, "!")
	value := c.Get(name)
	return (value == "y" || value == "m") != not
}

// compiler returns the version line of the compiler that built the kernel, or "".
func (c Config) compiler() string {
	if cc := c.Get("CC_VERSION_TEXT"); cc != "n" { // since 5.8, 8b59cd81dc5e
		return cc
	}
	_, text, _ := strings.Cut(string(c), "\n# Compiler: ") // 4.18 of RHEL 8 has it as a comment
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// unquote takes off the quotes and backslashes of scripts/kconfig/symbol.c,
// escape_string_value; other values stay as they are.
func unquote(value string) string {
	inner, ok := strings.CutPrefix(value, `"`)
	if !ok {
		return value
	}
	inner = strings.TrimSuffix(inner, `"`)
	return strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(inner)
}

// machines maps configuration names to what uname -m says on such a kernel;
// the first that is set counts.
var machines = []struct{ name, machine string }{
	{"X86_64", "x86_64"},
	{"X86_32", "i686"},
	{"ARM64", "aarch64"},
	{"CPU_V7", "armv7l"},
	{"CPU_V6", "armv6l"},
	{"PPC64", "ppc64"}, // ppc64le with CPU_LITTLE_ENDIAN
	{"PPC32", "ppc"},
	{"S390", "s390x"},
	{"ARCH_RV64I", "riscv64"},
	{"ARCH_RV32I", "riscv32"},
	{"LOONGARCH", "loongarch64"},
	{"MIPS", "mips"}, // mips64 with 64BIT
}

// machine returns the uname -m name of the kernel's processor, or "".
func (c Config) machine() string {
	for _, m := range machines {
		if !c.Has(m.name) {
			continue
		}
		if m.name == "PPC64" && c.Has("CPU_LITTLE_ENDIAN") {
			return "ppc64le"
		}
		if m.name == "MIPS" && c.Has("64BIT") {
			return "mips64"
		}
		return m.machine
	}
	return ""
}
