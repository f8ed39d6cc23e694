package kernel

import (
	"strings"
	"testing"
)

const sampleConfig = `#
# Automatically generated file; DO NOT EDIT.
# Linux/x86 6.1.192 Kernel Configuration
#
CONFIG_CC_VERSION_TEXT="gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0"
CONFIG_X86_64=y
CONFIG_NET=y
CONFIG_TUN=m
CONFIG_HZ=250
CONFIG_LOCALVERSION=""
CONFIG_CMDLINE="a=\"b c\" d\\e"
CONFIG_NETFILTER=y
# CONFIG_PREEMPT_RT is not set
CONFIG_LAST=y`

func parseConfig(t *testing.T, text string) Config {
	t.Helper()
	c, err := ParseConfig(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConfig(t *testing.T) {
	c := parseConfig(t, sampleConfig)
	for name, want := range map[string]string{
		"CC_VERSION_TEXT": "gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0",
		"NET":             "y",
		"TUN":             "m",
		"HZ":              "250",
		"LOCALVERSION":    "",
		"CMDLINE":         `a="b c" d\e`,
		"PREEMPT_RT":      "n",
		"NE":              "n",
		"ET":              "n",
		"LAST":            "y",
		"":                "n",
	} {
		if got, err := c.Get(name); got != want || err != nil {
			t.Errorf("Get(%q) = %q %v, want %q", name, got, err, want)
		}
	}
	for expr, want := range map[string]bool{
		"NET": true, "TUN": true, "PREEMPT_RT": false, "UNKNOWN": false,
		"!NET": false, "!TUN": false, "!PREEMPT_RT": true, "!UNKNOWN": true,
		"HZ": false,
	} {
		if got, err := c.Has(expr); got != want || err != nil {
			t.Errorf("Has(%q) = %v %v", expr, got, err)
		}
	}
	if has, _ := parseConfig(t, "CONFIG_FIRST=m").Has("FIRST"); !has {
		t.Error("the name on the first line is not found")
	}
}

func TestConfigMachine(t *testing.T) {
	for text, want := range map[string]string{
		"CONFIG_X86_64=y\nCONFIG_X86=y\nCONFIG_64BIT=y\n": "x86_64",
		"CONFIG_X86_32=y\nCONFIG_X86=y\n":                 "i686",
		"CONFIG_ARM64=y\n":                                "aarch64",
		"CONFIG_ARM=y\nCONFIG_CPU_V7=y\n":                 "armv7l",
		"CONFIG_PPC64=y\nCONFIG_CPU_LITTLE_ENDIAN=y\n":    "ppc64le",
		"CONFIG_PPC64=y\nCONFIG_CPU_BIG_ENDIAN=y\n":       "ppc64",
		"CONFIG_S390=y\nCONFIG_64BIT=y\n":                 "s390x",
		"CONFIG_RISCV=y\nCONFIG_ARCH_RV64I=y\n":           "riscv64",
		"CONFIG_LOONGARCH=y\n":                            "loongarch64",
		"CONFIG_MIPS=y\nCONFIG_64BIT=y\n":                 "mips64",
		"CONFIG_NET=y\n":                                  "",
	} {
		if got, _ := parseConfig(t, text).machine(); got != want {
			t.Errorf("machine of %q = %q, want %q", text, got, want)
		}
	}
}

// RHEL 8 is a 4.18 and names its compiler in a comment only.
func TestConfigCompilerOfOldKernel(t *testing.T) {
	c := parseConfig(t, "#\n# Compiler: gcc (GCC) 8.5.0 20210514 (Red Hat 8.5.0-22)\n#\nCONFIG_GCC_VERSION=80500\n")
	const want = "gcc (GCC) 8.5.0 20210514 (Red Hat 8.5.0-22)"
	if got, _ := c.compiler(); got != want {
		t.Errorf("compiler = %q, want %q", got, want)
	}
	if got, _ := parseConfig(t, "CONFIG_NET=y").compiler(); got != "" {
		t.Errorf("compiler = %q of a configuration that names none", got)
	}
}

func TestParseConfigRefuses(t *testing.T) {
	for _, text := range []string{"", "\x7fELF", "<html>"} {
		if _, err := ParseConfig(strings.NewReader(text)); err == nil {
			t.Errorf("%q is taken for a .config", text)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add(sampleConfig, "NET")
	f.Add("CONFIG_A=\"", "A")
	f.Add("CONFIG_=\n\nCONFIG_B=\"\\", "B")
	f.Fuzz(func(t *testing.T, text, name string) {
		c, err := ParseConfig(strings.NewReader(text))
		if err != nil {
			return
		}
		value, _ := c.Get(name)
		if strings.Contains(value, "\n") && !strings.Contains(name, "\n") {
			t.Fatalf("Get(%q) = %q leaves its line", name, value)
		}
		has, _ := c.Has(name)
		if not, _ := c.Has("!" + name); !strings.HasPrefix(name, "!") && has == not {
			t.Fatalf("%q and its opposite agree", name)
		}
		// Read in two parts it says the same.
		head := text[:strings.LastIndexByte(text[:len(text)/2], '\n')+1]
		parts := Config{head, func() (string, error) { return text, nil }}
		if got, _ := parts.Get(name); !strings.Contains(name, "\n") && got != value && head != "" {
			t.Fatalf("Get(%q) = %q of two parts, %q of one", name, got, value)
		}
		c.machine()
		c.compiler()
	})
}
