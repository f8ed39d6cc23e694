package loader

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"kmodctl/internal/ko"
)

// versions judges which kernel a file was built for. It reports whether that is surely another one.
func (c *check) versions(info *ko.Info) (other bool) {
	t := c.target
	// Of another kernel, that is the answer, and what differs is the evidence.
	because := func(text string) string {
		if built := info.Release(); built != "" && built != t.release {
			return "the file was built for " + built
		}
		return text
	}
	ref := t.reference()
	if ref != nil && info.StructSize != ref.StructSize {
		text := because("the file was built against another kernel configuration (size of struct module)")
		evidence := fmt.Sprintf("struct module has %d bytes in the file, %d in the kernel", info.StructSize, ref.StructSize)
		if t.checksStructSize() {
			c.refuse(CauseStructSize, unix.ENOEXEC, text, evidence)
			other = true
		} else {
			c.warn(CauseStructSize, text, evidence, "kernels before 6.4 do not compare it")
		}
	}
	if t.modversions() {
		other = c.layout(info, because) || other
	}
	if ref == nil {
		return other
	}
	file, kernel := info.Vermagic, ref.Vermagic
	if info.Modversions && t.modversions() {
		// same_magic of kernel/module/version.c: CRCs are the better answer than the release.
		_, file, _ = strings.Cut(file, " ")
		_, kernel, _ = strings.Cut(kernel, " ")
	}
	switch {
	case info.Vermagic == "" && t.option("MODULE_FORCE_LOAD") == "n":
		c.refuse(CauseVermagic, unix.ENOEXEC, "the file has no vermagic")
	case info.Vermagic == "": // the kernel takes it as one that is forced
	case file != kernel:
		c.refuse(CauseVermagic, unix.ENOEXEC,
			because(fmt.Sprintf("the file's vermagic is %q, the kernel's is %q", strings.TrimSpace(info.Vermagic), strings.TrimSpace(ref.Vermagic))),
			fmt.Sprintf("vermagic %q, the kernel's is %q", strings.TrimSpace(info.Vermagic), strings.TrimSpace(ref.Vermagic)))
	}
	return other
}

// layout judges the CRC of module_layout, the first one that a kernel compares.
func (c *check) layout(info *ko.Info, because func(string) string) (other bool) {
	want, known := c.offered["module_layout"]
	got, has := info.ModuleLayoutCRC()
	switch {
	case !info.Modversions && c.target.option("MODULE_FORCE_LOAD") == "n":
		c.refuse(CauseNoModversions, unix.ENOEXEC, "the file has no CRCs of symbols, and this kernel compares them")
	case known && want.hasCRC && has && got != want.crc:
		c.refuse(CauseModuleLayout, unix.ENOEXEC, because("the file was built against another kernel configuration (CRC of module_layout)"),
			fmt.Sprintf("module_layout: CRC 0x%08x in the file, 0x%08x in the kernel", got, want.crc))
		return true
	}
	return false
}

// gplLicences are those of license_is_gpl_compatible, include/linux/license.h.
var gplLicences = []string{"GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL"}

// taints are the letters that a module will have in /sys/module/NAME/taint, as far as the file and the kernel's keys tell:
// Documentation/admin-guide/tainted-kernels.rst. E is left out when this user may not see the keys.
func (t *Target) taints(info *ko.Info) string {
	p := t.policy()
	unsigned := info.Signature == nil || info.Signature.IDType != "PKCS#7"
	if p != nil && !unsigned {
		known, visible := p.knows(info.Signature)
		unsigned = visible && !known
	}
	verified := t.option("MODULE_SIG")
	if p != nil && p.signatures {
		verified = "y"
	}
	var letters strings.Builder
	for _, taint := range []struct {
		letter byte
		is     bool
	}{
		{'P', !slices.Contains(gplLicences, info.License)},
		{'F', info.Vermagic == "" || !info.Modversions && t.modversions()},
		{'C', info.Field("staging") != ""},
		{'O', info.Field("intree") == ""},
		{'E', unsigned && verified == "y"},
	} {
		if taint.is {
			letters.WriteByte(taint.letter)
		}
	}
	return letters.String()
}

// explainTaints say what letters mean.
func explainTaints(letters string) (words []string) {
	for _, l := range letters {
		words = append(words, map[rune]string{
			'P': "P: its licence is not compatible with the GPL",
			'F': "F: it has no vermagic or no CRCs of symbols, as if it were forced",
			'C': "C: it comes from the kernel's staging tree",
			'O': "O: it was built outside the kernel's tree",
			'E': "E: it has no signature of a key that the kernel trusts",
		}[l])
	}
	return words
}
