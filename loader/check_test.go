package loader_test

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/internal/modsig"
	"kmodctl/loader"
)

// edit changes the bytes of a module.
type edit func(t *testing.T, image []byte) []byte

// changed writes a copy of an in-tree module, without its signature and with edits.
func changed(t *testing.T, index *loader.Index, module string, edits ...edit) string {
	t.Helper()
	path, _, ok := index.Find(module)
	if !ok {
		t.Fatalf("%s has no module %s", index.Dir, module)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	image, _, err := ko.Decompress(data)
	if err != nil {
		t.Fatal(err)
	}
	if image, _, err = modsig.Split(image); err != nil {
		t.Fatal(err)
	}
	image = slices.Clone(image)
	for _, e := range edits {
		image = e(t, image)
	}
	path = filepath.Join(t.TempDir(), module+".ko")
	if err := os.WriteFile(path, image, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// swap replaces a text by one of the same length, wherever it stands between NULs.
func swap(old, new string) edit {
	return func(t *testing.T, image []byte) []byte {
		from, to := []byte("\x00"+old+"\x00"), []byte("\x00"+new+"\x00")
		if len(old) != len(new) || !bytes.Contains(image, from) {
			t.Fatalf("%q cannot become %q", old, new)
		}
		return bytes.ReplaceAll(image, from, to)
	}
}

// within replaces a text by one of the same length inside of others.
func within(old, new string) edit {
	return func(t *testing.T, image []byte) []byte {
		if len(old) != len(new) || !bytes.Contains(image, []byte(old)) {
			t.Fatalf("%q cannot become %q", old, new)
		}
		return bytes.ReplaceAll(image, []byte(old), []byte(new))
	}
}

// crc changes what the file expects of a symbol, in __versions.
func crc(symbol string) edit {
	return func(t *testing.T, image []byte) []byte {
		at := bytes.Index(image, []byte(symbol+"\x00\x00\x00\x00\x00"))
		if at < 8 {
			t.Fatalf("no CRC of %s", symbol)
		}
		image[at-8] ^= 1
		return image
	}
}

// section changes the header of a section.
func section(name string, change func(h *elf.Section64)) edit {
	return func(t *testing.T, image []byte) []byte {
		f, err := elf.NewFile(bytes.NewReader(image))
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(f.Sections, func(s *elf.Section) bool { return s.Name == name })
		if i < 0 {
			t.Fatalf("no section %s", name)
		}
		at := image[binary.LittleEndian.Uint64(image[0x28:])+uint64(i)*64:]
		var h elf.Section64
		if _, err := binary.Decode(at, binary.LittleEndian, &h); err != nil {
			t.Fatal(err)
		}
		change(&h)
		if _, err := binary.Encode(at, binary.LittleEndian, h); err != nil {
			t.Fatal(err)
		}
		return image
	}
}

// strip runs strip(1).
func strip(t *testing.T, image []byte) []byte {
	file := filepath.Join(t.TempDir(), "stripped.ko")
	if err := os.WriteFile(file, image, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("strip", "--strip-all", file).CombinedOutput(); err != nil {
		t.Fatalf("strip (apt install binutils): %v\n%s", err, out)
	}
	image, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func cut(bytes int) edit { return func(_ *testing.T, image []byte) []byte { return image[:bytes] } }

func whole(content string) edit {
	return func(*testing.T, []byte) []byte { return []byte(content) }
}

func end(content string) edit {
	return func(_ *testing.T, image []byte) []byte { return append(image, content...) }
}

// insertion is a plan of one step.
func insertion(module, path, params string) *loader.Plan {
	return &loader.Plan{Asked: []string{module}, Params: params, Steps: []loader.Step{{Action: loader.Insert, Module: module, Path: path, Params: params}}}
}

// verdict is what matters of a finding.
type verdict struct {
	Cause loader.CauseID
	Errno unix.Errno
}

// refusals are the verdicts of all that is refused.
func refusals(findings []loader.Finding) (list []verdict) {
	for _, f := range findings {
		if f.Severity == loader.Refused {
			list = append(list, verdict{f.Cause, f.Errno})
		}
	}
	return list
}

// TestCheck breaks modules that came with a kernel, one thing at a time, and holds the verdict against what finit_module(2) of
// that kernel answers (vm_test.go does it).
func TestCheck(t *testing.T) {
	type row struct {
		name   string
		module string
		edit   edit
		params string
		want   []verdict
	}
	refused := func(cause loader.CauseID, errno unix.Errno) []verdict { return []verdict{{cause, errno}} }
	rows := []row{
		{"sound", "dummy", end(""), "numdummies=2", nil},
		{"bytes behind its end", "dummy", end("junk"), "", nil},
		{"text", "dummy", whole("#!/bin/sh\n"), "", refused(loader.CauseNotELF, unix.ENOEXEC)},
		{"zeros", "dummy", whole(strings.Repeat("\x00", 4096)), "", refused(loader.CauseNotELF, unix.ENOEXEC)},
		{"empty", "dummy", whole(""), "", refused(loader.CauseTruncated, unix.EINVAL)},
		{"cut short", "dummy", cut(5000), "", refused(loader.CauseTruncated, unix.ENOEXEC)},
		{"xz cut short", "dummy", whole("\xfd7zXZ\x00"), "", refused(loader.CauseTruncated, unix.ENOEXEC)},
		{"damaged gzip", "dummy", whole("\x1f\x8bjunkjunkjunkjunk"), "", refused(loader.CauseMalformed, unix.ENOEXEC)},
		{"no file", "dummy", nil, "", refused(loader.CauseNotReadable, unix.ENOENT)},
		{"stripped", "dummy", strip, "", refused(loader.CauseStripped, unix.ENOEXEC)},
		{"no struct module", "dummy", within(".gnu.linkonce.this_module", ".gnu.linkonce.that_module"), "", refused(loader.CauseNotModule, unix.ENOEXEC)},
		{"other machine", "dummy", func(_ *testing.T, b []byte) []byte { b[0x12] = byte(elf.EM_AARCH64); return b }, "", refused(loader.CauseArch, unix.ENOEXEC)},
		{"writable code", "dummy", section(".text", func(h *elf.Section64) { h.Flags |= uint64(elf.SHF_WRITE) }), "", refused(loader.CauseWriteExec, unix.ENOEXEC)},
		{"vermagic of another release", "dummy", within("vermagic=6.1", "vermagic=9.1"), "", nil},
		{"vermagic of other options", "dummy", within(" SMP preempt ", " SMP PREEMPT "), "", refused(loader.CauseVermagic, unix.ENOEXEC)},
		{"module_layout", "dummy", crc("module_layout"), "", refused(loader.CauseModuleLayout, unix.ENOEXEC)},
		{"CRC", "dummy", crc("register_netdevice"), "", refused(loader.CauseSymbolCRC, unix.EINVAL)},
		{"no symbol", "dummy", swap("register_netdevice", "register_nothing_x"), "", refused(loader.CauseSymbolMissing, unix.ENOENT)},
		{"licence", "dummy", swap("license=GPL", "license=XYZ"), "", refused(loader.CauseGPLOnly, unix.ENOENT)},
		{"namespace", "efivarfs", swap("import_ns=EFIVAR", "import_ns=NOTHER"), "", refused(loader.CauseNamespace, unix.EINVAL)},
		{"export of the kernel's", "llc", swap("__ksymtab_llc_mac_hdr_init", "__ksymtab_alloc_netdev_mqs"), "", refused(loader.CauseDuplicateExport, unix.ENOEXEC)},
		{"dependency that is not loaded", "stp", end(""), "", refused(loader.CauseSymbolMissing, unix.ENOENT)},
		{"parameter of no name", "dummy", end(""), "numdumies=2", refused(loader.CauseParamUnknown, 0)},
		{"parameter of every module", "dummy", end(""), "dyndbg=+p async-probe", nil},
		{"parameter of another type", "dummy", end(""), "numdummies=two", refused(loader.CauseParamValue, unix.EINVAL)},
		{"parameter without a value", "dummy", end(""), "numdummies", refused(loader.CauseParamValue, unix.EINVAL)},
		{"parameter out of range", "dummy", end(""), "numdummies=99999999999", refused(loader.CauseParamValue, unix.ERANGE)},
		{"too many values", "sunhme", end(""), "macaddr=1,2,3,4,5,6,7", refused(loader.CauseParamCount, unix.EINVAL)},
		{"as many values as there can be", "sunhme", end(""), "macaddr=1,2,3,4,5,6", nil},
		{"text too long", "dell_rbu", end(""), "image_type=" + strings.Repeat("x", 80), refused(loader.CauseParamLength, unix.ENOSPC)},
		{"text", "dell_rbu", end(""), "image_type=packet", nil},
		{"name of a part of the kernel", "sunhme", swap("name=sunhme", "name=printk"), "", refused(loader.CauseBuiltinName, unix.EINVAL)},
		{"damaged signature", "dummy", end("junk\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x04" + modsig.Magic), "", refused(loader.CauseSignatureDamaged, unix.EBADMSG)},
		{"signature of no known kind", "dummy", end("junk\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\x00\x04" + modsig.Magic), "", nil},
	}
	eachRelease(t, func(t *testing.T, release string, index *loader.Index) {
		modern := strings.HasPrefix(release, "6.12.")
		target := loader.NewTarget("/", release, index, nil, nil)
		target.Thorough = true
		for _, r := range append(slices.Clone(rows),
			// A kernel says what it minds first.
			row{"size of struct module", "dummy", section(".gnu.linkonce.this_module", func(h *elf.Section64) { h.Size -= 64 }), "", map[bool][]verdict{
				true: refused(loader.CauseStructSize, unix.ENOEXEC)}[modern]},
			row{"no CRC of a symbol", "dummy", func(t *testing.T, b []byte) []byte {
				return bytes.Replace(b, []byte("register_netdevice\x00\x00\x00\x00\x00"), []byte("Register_netdevice\x00\x00\x00\x00\x00"), 1)
			}, "", refused(loader.CauseNoSymbolCRC, unix.EINVAL)}) {
			if r.name == "vermagic of another release" && modern {
				r.edit = within("vermagic=6.12", "vermagic=9.12")
			}
			t.Run(r.name, func(t *testing.T) {
				path := "/no/such/file.ko"
				if r.edit != nil {
					path = changed(t, index, r.module, r.edit)
				}
				findings := loader.Check(insertion(r.module, path, r.params), target)
				if diff := cmp.Diff(r.want, refusals(findings)); diff != "" {
					t.Errorf("(-want +got):\n%s\n%+v", diff, findings)
				}
			})
		}
	})
}

// A file that somebody writes to is none that the running kernel takes; who does is told.
func TestCheckOfFileInUse(t *testing.T) {
	release := installed(t)[0]
	path := changed(t, loader.OpenIndex("/", "/lib/modules/"+release), "dummy")
	target := loader.NewTarget("/", release, nil, nil, &loader.State{})
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	first, _ := loader.FirstRefused(loader.Check(insertion("dummy", path, ""), target))
	if who := fmt.Sprintf("process %d (", os.Getpid()); first.Cause != loader.CauseFileBusy || first.Errno != unix.ETXTBSY || len(first.Evidence) != 1 || !strings.HasPrefix(first.Evidence[0], who) {
		t.Errorf("open for writing: %+v", first)
	}
	if err := f.Truncate(1000); err != nil {
		t.Fatal(err)
	}
	if first, _ := loader.FirstRefused(loader.Check(insertion("dummy", path, ""), target)); first.Cause != loader.CauseFileBusy {
		t.Errorf("half written: %+v", first)
	}
	f.Close()
	if first, _ := loader.FirstRefused(loader.Check(insertion("dummy", path, ""), target)); first.Cause != loader.CauseTruncated {
		t.Errorf("half written, and nobody writes: %+v", first)
	}
}

// What a kernel minds first of a module of another kernel depends on its age; and it is said plainly what the matter is.
func TestCheckOfOtherKernel(t *testing.T) {
	releases := installed(t)
	for i, want := range []verdict{{loader.CauseModuleLayout, unix.ENOEXEC}, {loader.CauseStructSize, unix.ENOEXEC}} {
		here, other := releases[i], releases[1-i]
		path := changed(t, loader.OpenIndex("/", "/lib/modules/"+other), "dummy")
		findings := loader.Check(insertion("dummy", path, ""), loader.NewTarget("/", here, loader.OpenIndex("/", "/lib/modules/"+here), nil, nil))
		first, ok := loader.FirstRefused(findings)
		if !ok || first.Cause != want.Cause || first.Errno != want.Errno || first.Text != "the file was built for "+other || len(first.Evidence) == 0 {
			t.Errorf("%s on %s: %+v", other, here, first)
		}
	}
}

// Modules of one plan are checked together: who comes first has what the next one needs.
func TestCheckOfSeveral(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string, index *loader.Index) {
		step := func(module string, edits ...edit) loader.Step {
			return loader.Step{Action: loader.Insert, Module: module, Path: changed(t, index, module, edits...)}
		}
		llc, stp := step("llc"), step("stp")
		for name, c := range map[string]struct {
			steps []loader.Step
			want  []verdict
		}{
			"in order":     {[]loader.Step{llc, stp}, nil},
			"out of order": {[]loader.Step{stp, llc}, []verdict{{loader.CauseSymbolMissing, unix.ENOENT}}},
			"two of the same exports": {[]loader.Step{llc, step("llc", swap("name=llc", "name=lld"))},
				[]verdict{{loader.CauseDuplicateExport, unix.ENOEXEC}}},
			"another build of what is needed": {[]loader.Step{step("llc", func(t *testing.T, b []byte) []byte {
				f, err := elf.NewFile(bytes.NewReader(b))
				if err != nil {
					t.Fatal(err)
				}
				for i := range f.Section("__kcrctab").Size { // every CRC that it gives
					b[f.Section("__kcrctab").Offset+i] ^= 1
				}
				return b
			}), stp}, []verdict{{loader.CauseSymbolCRC, unix.EINVAL}}},
		} {
			findings := loader.Check(&loader.Plan{Steps: c.steps}, loader.NewTarget("/", release, index, nil, nil))
			if diff := cmp.Diff(c.want, refusals(findings)); diff != "" {
				t.Errorf("%s (-want +got):\n%s\n%+v", name, diff, findings)
			}
		}
	})
}

// TestCheckOfPolicy is about the running kernel: files of proc and sys, as 6.1 and 6.12 write them.
func TestCheckOfPolicy(t *testing.T) {
	index := loader.OpenIndex("/", "/lib/modules/"+installed(t)[0])
	signed, _, _ := index.Find("dummy")
	unsigned := changed(t, index, "dummy")
	info, err := ko.Open(signed)
	if err != nil {
		t.Fatal(err)
	}
	const keys = "1ae5a7c8 I------     1 perm 1f030000     0     0 asymmetri Debian Secure Boot CA: 6ccece7e4c6c0d1f6149f3dd27dfcc5cbb419ea1: X509.rsa bb419ea1 []\n" +
		"30d1a94e I--Q---     5 perm 3f030000     0 65534 keyring   _uid.0: empty\n"
	trusted := keys + "2f0c1a11 I------     1 perm 1f030000     0     0 asymmetri " + info.Signature.Signer + ": 0123456789abcdef: X509.rsa 89abcdef []\n"
	const enforce, lockdown = "sys/module/module/parameters/sig_enforce", "sys/kernel/security/lockdown"
	for name, c := range map[string]struct {
		path  string
		files map[string]string
		want  []verdict
	}{
		"nothing":                        {unsigned, map[string]string{enforce: "N\n", lockdown: "[none] integrity confidentiality\n"}, nil},
		"modules_disabled":               {signed, map[string]string{"proc/sys/kernel/modules_disabled": "1\n"}, []verdict{{loader.CauseModulesDisabled, unix.EPERM}}},
		"no capability":                  {signed, map[string]string{"proc/self/status": "Name:\tx\nCapEff:\t000001ffff7effff\n"}, []verdict{{loader.CauseNoCapability, unix.EPERM}}},
		"blacklist":                      {signed, map[string]string{"proc/cmdline": "quiet module_blacklist=floppy,dummy\n"}, []verdict{{loader.CauseBlacklisted, unix.EPERM}}},
		"blacklist of others":            {signed, map[string]string{"proc/cmdline": "module_blacklist=dummy module_blacklist=dummy2 blacklist=dummy\n"}, nil},
		"enforced, unsigned":             {unsigned, map[string]string{enforce: "Y\n", "proc/keys": trusted}, []verdict{{loader.CauseUnsigned, unix.EKEYREJECTED}}},
		"enforced, strange key":          {signed, map[string]string{enforce: "Y\n", "proc/keys": keys}, []verdict{{loader.CauseUnknownKey, unix.EKEYREJECTED}}},
		"enforced, key is there":         {signed, map[string]string{enforce: "Y\n", "proc/keys": trusted}, nil},
		"enforced, keys cannot be seen":  {signed, map[string]string{enforce: "Y\n", "proc/keys": ""}, nil},
		"locked down, unsigned":          {unsigned, map[string]string{enforce: "N\n", lockdown: "none [integrity] confidentiality\n"}, []verdict{{loader.CauseLockdown, unix.EPERM}}},
		"locked down, strange key":       {signed, map[string]string{enforce: "N\n", lockdown: "none integrity [confidentiality]\n", "proc/keys": keys}, []verdict{{loader.CauseLockdown, unix.EPERM}}},
		"Secure Boot, unsigned":          {unsigned, map[string]string{enforce: "Y\n", lockdown: "none [integrity] confidentiality\n"}, []verdict{{loader.CauseUnsigned, unix.EKEYREJECTED}}},
		"no signatures in this kernel":   {unsigned, map[string]string{lockdown: "none [integrity] confidentiality\n"}, nil},
		"IMA appraises":                  {signed, map[string]string{"proc/cmdline": "ima_policy=tcb|secure_boot quiet\n"}, []verdict{{loader.CauseIMA, unix.EACCES}}},
		"IMA only tells":                 {signed, map[string]string{"proc/cmdline": "ima_policy=secure_boot ima_appraise=log\n"}, nil},
		"a name that the kernel has":     {signed, map[string]string{"sys/module/dummy/version": "1\n"}, []verdict{{loader.CauseBuiltinName, unix.EINVAL}}},
		"a module that is there already": {signed, map[string]string{"sys/module/dummy/initstate": "live\n"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			c.files["proc/modules"] = ""
			for file, content := range c.files {
				path := filepath.Join(root, file)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			state, err := loader.ReadState(kernel.Root(root))
			if err != nil {
				t.Fatal(err)
			}
			target := loader.NewTarget(kernel.Root(root), installed(t)[0], loader.OpenIndex(kernel.Root(root), "/lib/modules/none"), nil, state)
			findings := loader.Check(insertion("dummy", c.path, ""), target)
			if diff := cmp.Diff(c.want, refusals(findings)); diff != "" {
				t.Errorf("(-want +got):\n%s\n%+v", diff, findings)
			}
		})
	}
}
