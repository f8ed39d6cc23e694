package kernel

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
)

// Config is the configuration a kernel was built with: the text of its .config
// (or include/config/auto.conf), as Kconfig writes it. Its head, where the compiler and the
// processor stand, is read at once, the rest of some 250 kB when something else is asked for.
//
// It is searched, not parsed: a search costs 0.1 ms at most, a map of all
// 7,000 names costs 0.5 ms for each kernel of each command.
type Config struct {
	head  string                 // whole lines
	whole func() (string, error) // nil when head is all
}

const configHead = 16 << 10 // bytes; CONFIG_X86_64 of Debian's 6.12 is at 7,756

// ParseConfig reads a .config. It is an error when there is no CONFIG_ name in
// it; other lines than Kconfig's are ignored, as Kconfig does.
func ParseConfig(r io.Reader) (Config, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return Config{}, err
	}
	return newConfig(string(text), nil)
}

func newConfig(head string, whole func() (string, error)) (Config, error) {
	if !strings.Contains(head, "CONFIG_") {
		return Config{}, errors.New("no CONFIG_ line")
	}
	return Config{head, whole}, nil
}

// readConfig is ParseConfig of a file inside a root.
func readConfig(root Root, name string) (Config, error) {
	f, err := root.Open(name)
	if err != nil {
		return Config{}, err
	}
	defer f.Close()
	head := make([]byte, configHead)
	n, err := io.ReadFull(f, head)
	switch {
	case err == io.ErrUnexpectedEOF || err == io.EOF:
		return newConfig(string(head[:n]), nil)
	case err != nil:
		return Config{}, err
	}
	head = head[:bytes.LastIndexByte(head, '\n')+1]
	return newConfig(string(head), sync.OnceValues(func() (string, error) {
		text, err := root.ReadFile(name)
		return string(text), err
	}))
}

// Get returns the value of a name without CONFIG_, for instance Get("NET"):
// "y", "m", a number, or a string without its quotes. A name that is not set,
// or that this kernel does not know, is "n". The error is that of reading the file.
func (c Config) Get(name string) (string, error) {
	line := "CONFIG_" + name + "="
	text, ok := strings.CutPrefix(c.head, line)
	if !ok {
		_, text, ok = strings.Cut(c.head, "\n"+line)
	}
	if !ok && c.whole != nil {
		whole, err := c.whole()
		if err != nil {
			return "", err
		}
		_, text, ok = strings.Cut(whole, "\n"+line)
	}
	if !ok {
		return "n", nil
	}
	value, _, _ := strings.Cut(text, "\n")
	return unquote(value), nil
}

// Has reports whether an expression holds: "NET" that the name is y or m,
// "!PREEMPT_RT" that it is neither. The error is Get's.
func (c Config) Has(expr string) (bool, error) {
	name, not := strings.CutPrefix(expr, "!")
	value, err := c.Get(name)
	return (value == "y" || value == "m") != not, err
}

// compiler returns the version line of the compiler that built the kernel, or "".
func (c Config) compiler() (string, error) {
	_, text, ok := strings.Cut(c.head, "\n# Compiler: ") // 4.18 of RHEL 8 has it as a comment
	if line, _, _ := strings.Cut(text, "\n"); ok {
		return line, nil
	}
	cc, err := c.Get("CC_VERSION_TEXT") // since 5.8, 8b59cd81dc5e
	if cc == "n" {
		cc = ""
	}
	return cc, err
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

// machines are what uname -m says on a kernel of whose configuration all these names are
// set; the first counts.
var machines = []struct {
	machine string
	names   []string
}{
	{"x86_64", []string{"X86_64"}},
	{"i686", []string{"X86_32"}},
	{"aarch64", []string{"ARM64"}},
	{"armv7l", []string{"CPU_V7"}},
	{"armv6l", []string{"CPU_V6"}},
	{"ppc64le", []string{"PPC64", "CPU_LITTLE_ENDIAN"}},
	{"ppc64", []string{"PPC64"}},
	{"ppc", []string{"PPC32"}},
	{"s390x", []string{"S390"}},
	{"riscv64", []string{"ARCH_RV64I"}},
	{"riscv32", []string{"ARCH_RV32I"}},
	{"loongarch64", []string{"LOONGARCH"}},
	{"mips64", []string{"MIPS", "64BIT"}},
	{"mips", []string{"MIPS"}},
}

// machine returns the uname -m name of the kernel's processor, or "".
func (c Config) machine() (string, error) {
	for _, m := range machines {
		if all, err := c.hasAll(m.names); all || err != nil {
			return m.machine, err
		}
	}
	return "", nil
}

func (c Config) hasAll(exprs []string) (bool, error) {
	for _, expr := range exprs {
		if has, err := c.Has(expr); !has || err != nil {
			return false, err
		}
	}
	return true, nil
}

// Option is the value of a name of the kernel's configuration, without CONFIG_, from its build tree or else /boot; "" when
// neither is here.
func (r Release) Option(name string) string {
	if r.Tree != nil {
		if value, err := r.Tree.Config.Get(name); err == nil {
			return value
		}
	}
	config, err := readConfig(r.Root, "/boot/config-"+r.Name)
	if err != nil {
		return ""
	}
	value, _ := config.Get(name)
	return value
}
