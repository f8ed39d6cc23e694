package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"debug/pe"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kmodctl/internal/efi"
	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/internal/modsig"
	"kmodctl/internal/vm"
)

// The ways by which a kernel comes to trust our key.
const (
	byDB   = "db"   // the firmware's own list
	byMOK  = "mok"  // shim's list, as it leaves it to the kernel, without shim
	byShim = "shim" // the firmware starts shim, shim a kernel that is signed, and leaves its list; somebody sits at its blue screen
)

// What the guest is told.
const (
	guestSecureBoot = "secureboot"
	guestWay        = "KMODCTL_TEST_WAY"
	guestOn         = "KMODCTL_TEST_ON"
)

// TestSecureBoot boots both kernels with firmware that trusts our key: by one way each, in full by every way, with Secure Boot
// on and off.
func TestSecureBoot(t *testing.T) {
	rels := releases(t)
	root := newRoot(t, rels...)
	k := inRoot(t, root)
	k(0, "key", "new")
	k(0, "key", "rotate") // makes the next key, mok2, which nobody trusts
	dir, _ := examplePaths(t)
	k(0, "build", filepath.Join(dir, "hello"))
	type boot struct {
		release, way string
		on           bool
	}
	boots := []boot{{rels[0], byMOK, true}, {rels[1], byShim, true}}
	if os.Getenv("KMODCTL_SECUREBOOT") == "full" {
		boots = nil
		for _, release := range rels {
			for _, way := range []string{byDB, byMOK, byShim} {
				boots = append(boots, boot{release, way, true}, boot{release, way, false})
			}
		}
	}
	for _, b := range boots {
		t.Run(fmt.Sprintf("%s/%s/%v", b.release, b.way, b.on), func(t *testing.T) {
			bootSecurely(t, root, b.release, b.way, b.on)
		})
	}
}

func bootSecurely(t *testing.T, root, release, way string, on bool) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	efivarfs, _ := filepath.Glob("/lib/modules/" + release + "/kernel/fs/efivarfs/efivarfs.ko*")
	if len(efivarfs) != 1 {
		t.Fatalf("%s has no efivarfs", release)
	}
	owner, loader := newSigner(t, "test owner"), newSigner(t, "test loader")
	ec := ellipticSigner(t)
	files := append(signedFiles(t, root, release, ec),
		vm.File{Guest: guestBinary, Link: "/init"}, // the test binary is kmodctl by that name
		vm.File{Guest: "/mod/" + filepath.Base(efivarfs[0]), Host: efivarfs[0]},
		vm.File{Guest: "/etc/kmodctl/keys", Host: filepath.Join(root, "etc/kmodctl/keys")},
		vm.File{Guest: "/lib/modules/" + release, Host: filepath.Join(root, "lib/modules", release)})
	files = append(files, program(t, "mokutil")...)
	var out bytes.Buffer
	p, keyboard := newPerson(t)
	if way == byShim {
		p.todo = enrolling(signerIn(t, root, "mok2").cert)
		if !on { // the first time nobody is there: the request is forgotten, and made again
			p.todo = append([]glance{{"Booting in 1 second", ""}}, p.todo...)
		}
	}
	code, err := vm.Run(t.Context(), vm.Config{
		Image: filepath.Join(root, "boot/vmlinuz-"+release),
		UEFI:  firmwareFor(t, root, way, on, owner, loader, ec),
		Init:  self, Env: map[string]string{guestEnv: guestSecureBoot, guestWay: way, guestOn: fmt.Sprint(on)},
		Files: files, Timeout: 6 * time.Minute, Input: keyboard, Output: &out, Console: p,
	})
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out.String(), p.screen.String())
	}
	t.Logf("%s", out.String())
	for line := range strings.Lines(out.String()) {
		if doc, ok := strings.CutPrefix(line, jsonMark); ok {
			checkDocumented(t, doc)
		}
	}
	if code != 0 || len(p.todo) != 0 {
		t.Errorf("exit %d, not seen on the console: %q\n%s", code, p.todo, p.screen.String())
	}
}

// ellipticSigner has a key on P-256, which Debian's 6.12 verifies and its 6.1 does not.
func ellipticSigner(t *testing.T) signerOf {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signerWith(t, "test elliptic", key)
}

// firmwareFor is firmware that trusts our active key, and one on an elliptic curve, by one way.
func firmwareFor(t *testing.T, root, way string, on bool, owner, loader, ec signerOf) *vm.UEFI {
	mok := read(t, root, "etc/kmodctl/keys/mok1/cert.der")
	const secured = 0x20 | efi.NonVolatile | efi.BootService | efi.Runtime // written with a signature
	variable := func(name string, of efi.GUID, attributes uint32, certs ...[]byte) vm.Variable {
		return vm.Variable{Name: name, Owner: of, Attributes: attributes, Data: certificates(name, of, certs...).Data}
	}
	u := &vm.UEFI{}
	if on {
		u.Variables = append(u.Variables, variable("PK", efi.Global, secured, owner.cert.Raw), variable("KEK", efi.Global, secured, owner.cert.Raw))
	}
	switch way {
	case byDB:
		u.Variables = append(u.Variables, variable("db", efi.Security, secured, owner.cert.Raw, mok, ec.cert.Raw))
	case byMOK:
		u.Variables = append(u.Variables, variable("db", efi.Security, secured, owner.cert.Raw), variable("MokListRT", efi.Shim, efi.NonVolatile|efi.BootService|efi.Runtime, mok, ec.cert.Raw))
	case byShim:
		u.Variables = append(u.Variables, variable("db", efi.Security, secured, owner.cert.Raw), variable("MokList", efi.Shim, efi.NonVolatile|efi.BootService, loader.cert.Raw, mok, ec.cert.Raw))
		u.Disk = func(kernel, initramfs, cmdline string) (string, error) {
			return shimDisk(t, kernel, initramfs, cmdline, owner, loader)
		}
	}
	return u
}

// shimDisk makes a disk with shim, signed for the firmware, and a kernel, signed for shim.
func shimDisk(t *testing.T, kernel, initramfs, cmdline string, owner, loader signerOf) (string, error) {
	disk, work := t.TempDir(), t.TempDir()
	boot := filepath.Join(disk, "EFI", "BOOT")
	if err := os.MkdirAll(boot, 0o755); err != nil {
		return "", err
	}
	const stub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
	image, err := pe.Open(stub)
	if err != nil {
		return "", err
	}
	defer image.Close()
	last := image.Sections[len(image.Sections)-1]
	at := last.VirtualAddress + last.VirtualSize
	if err := os.WriteFile(filepath.Join(work, "cmdline"), []byte(cmdline), 0o644); err != nil {
		return "", err
	}
	var args []string
	for _, part := range []struct{ name, file string }{{".osrel", "/usr/lib/os-release"}, {".cmdline", filepath.Join(work, "cmdline")}, {".initrd", initramfs}, {".linux", kernel}} {
		info, err := os.Stat(part.file)
		if err != nil {
			return "", err
		}
		at = (at + 0xfff) &^ 0xfff
		args = append(args, "--add-section", part.name+"="+part.file, "--change-section-vma", fmt.Sprintf("%s=%#x", part.name, image.OptionalHeader.(*pe.OptionalHeader64).ImageBase+uint64(at)))
		at += uint32(info.Size())
	}
	uki := filepath.Join(work, "uki.efi")
	if out, err := exec.Command("objcopy", append(args, stub, uki)...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("objcopy: %w: %s", err, out)
	}
	for _, s := range []struct {
		by       signerOf
		from, to string
	}{{owner, "/usr/lib/shim/shimx64.efi.signed", "BOOTX64.EFI"}, {loader, uki, "grubx64.efi"}} {
		key, cert := filepath.Join(work, "key.pem"), filepath.Join(work, "cert.pem")
		der, err := x509.MarshalPKCS8PrivateKey(s.by.key)
		if err != nil {
			return "", err
		}
		writePEM(t, key, "PRIVATE KEY", der)
		writePEM(t, cert, "CERTIFICATE", s.by.cert.Raw)
		if out, err := exec.Command("sbsign", "--key", key, "--cert", cert, "--output", filepath.Join(boot, s.to), s.from).CombinedOutput(); err != nil {
			return "", fmt.Errorf("sbsign: %w: %s", err, out)
		}
	}
	mokManager, err := os.ReadFile("/usr/lib/shim/mmx64.efi.signed") // by Debian, whom its shim trusts
	if err != nil {
		return "", err
	}
	return disk, os.WriteFile(filepath.Join(boot, "mmx64.efi"), mokManager, 0o644)
}

func writePEM(t *testing.T, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// signedFiles are hello for a release, signed in every way, in /mod of the guest.
func signedFiles(t *testing.T, root, release string, ec signerOf) (files []vm.File) {
	t.Helper()
	installed, _ := filepath.Glob(filepath.Join(root, "lib/modules", release, "updates/kmodctl/hello.ko*"))
	if len(installed) != 1 {
		t.Fatalf("hello is not installed: %q", installed)
	}
	file, _, err := ko.Decompress(read(t, installed[0]))
	if err != nil {
		t.Fatal(err)
	}
	image, _, err := modsig.Split(file)
	if err != nil {
		t.Fatal(err)
	}
	ours := signerIn(t, root, "mok1")
	signed := ours.sign(t, image)
	at := bytes.Index(signed, []byte("module loaded"))
	if at < 0 {
		t.Fatal("hello does not say that it is loaded")
	}
	tampered := slices.Clone(signed)
	tampered[at] = 'M'
	for name, data := range map[string][]byte{
		"unsigned": image, "signed": signed, "tampered": tampered,
		"sha512": ours.signOver(t, image, crypto.SHA512), "ecdsa": ec.sign(t, image),
		"foreign": newSigner(t, "stranger").sign(t, image), "untrusted": signerIn(t, root, "mok2").sign(t, image),
	} {
		files = append(files, vm.File{Guest: "/mod/" + name + "/hello.ko", Data: data})
	}
	return append(files, vm.File{Guest: "/mod/hash", Data: []byte("$6$abcdefghijklmnop$G.RGuRCg9jWEuTZtHrjztnC2bI.d5jbB0UGnBwhtU/wBlya0Tdnu10UlmnavunHH.rPhvs2QBAUxGQfF5BoNF1\n"), Mode: 0o600})
}

// signerIn is a key of a machine's store.
func signerIn(t testing.TB, root, name string) signerOf {
	t.Helper()
	dir := filepath.Join(root, "etc/kmodctl/keys", name)
	block, _ := pem.Decode(read(t, dir, "key.pem"))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(read(t, dir, "cert.der"))
	if err != nil {
		t.Fatal(err)
	}
	return signerOf{cert, key.(crypto.Signer)}
}

// secureBootChecks runs in the guest.
func secureBootChecks() int {
	g := &guest{}
	way, on := os.Getenv(guestWay), os.Getenv(guestOn) == "true"
	g.mountVariables()
	doc := g.page()
	if slices.ContainsFunc(doc.Keys, func(k keyTrust) bool { return k.Name == "mok2" && k.Trust == trustEnrolled }) {
		g.enrolled()
	} else {
		g.secureBootPage(doc, way, on)
		g.signatures(way, on)
		g.enrolment()
		if way == byShim && g.failed == 0 {
			g.errorf("reboot: %v", unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
		}
	}
	if g.failed > 0 {
		fmt.Printf("%d failed\n", g.failed)
		return 1
	}
	return 0
}

// page is what secureboot says.
func (g *guest) page() (doc secureBootFacts) {
	if err := json.Unmarshal([]byte(g.run(0, "secureboot", "--json").out), &doc); err != nil {
		g.errorf("%v", err)
	}
	return doc
}

// mountVariables has the firmware's variables at their place.
func (g *guest) mountVariables() {
	if doc := g.page(); doc.Firmware.SecureBoot != efi.Unknown || len(doc.Unread) == 0 {
		g.errorf("efivarfs is not mounted, and Secure Boot is %s", doc.Firmware.SecureBoot)
	}
	module, _ := filepath.Glob("/mod/efivarfs.ko*")
	g.run(0, "load", module[0])
	if err := unix.Mount("efivarfs", "/sys/firmware/efi/efivars", "efivarfs", 0, ""); err != nil {
		g.errorf("mount efivarfs: %v", err)
	}
}

// secureBootPage holds what secureboot says against what the test has set up.
func (g *guest) secureBootPage(doc secureBootFacts, way string, on bool) {
	state, only, lockdown := efi.Off, no, "none"
	if on {
		state, only, lockdown = efi.On, yes, "integrity"
	}
	if doc.Firmware.Enforced != state || doc.Firmware.SecureBoot != state {
		g.errorf("Secure Boot is %s, enforced %s, want %s", doc.Firmware.SecureBoot, doc.Firmware.Enforced, state)
	}
	for _, k := range doc.Kernels {
		if !k.Running || k.SignedOnly != only || k.SigEnforce != on || k.Lockdown != lockdown {
			g.errorf("kernel %+v, want signed modules only: %s", k, only)
		}
	}
	list := map[string]string{byDB: "db", byMOK: "MokListRT", byShim: "MokListRT"}[way]
	for _, k := range doc.Keys {
		in := []string{list}
		want := trustEnrolled
		if k.Name != "mok1" {
			in, want = nil, trustAbsent
		}
		if k.Trust != want || !slices.Equal(k.In, in) {
			g.errorf("key %+v, want %s in %q", k, want, in)
		}
	}
	ring := ""
	for _, r := range doc.Keyrings {
		if slices.ContainsFunc(r.Keys, func(key string) bool { return strings.HasPrefix(key, "kmodctl module signing key mok1 ") }) {
			ring = r.Name
		}
	}
	want := map[string]string{byDB: ".platform", byMOK: ".machine", byShim: ".machine"}[way]
	if way != byDB && !on {
		want = ""
	}
	if ring != want {
		g.errorf("the key is in keyring %q, want %q: %+v", ring, want, doc.Keyrings)
	}
	for _, m := range doc.Modules {
		g.errorf("%+v: there is no registry", m)
	}
	if len(doc.Next) != 0 {
		g.errorf("next: %+v", doc.Next)
	}
	g.run(0, "secureboot")
}

// signatures loads each file, after the check and without it: both come to the same.
func (g *guest) signatures(way string, on bool) {
	known := on || way == byDB
	release, err := kernel.Running()
	if err != nil {
		g.errorf("%v", err)
	}
	verifiesAll := !strings.HasPrefix(release, "6.1.") // and not RSA with sha256 alone
	for _, c := range []struct {
		file, why string
		loads     bool
	}{
		{"signed", "", true},
		{"sha512", "cannot check this kind of signature", !on || verifiesAll},
		{"ecdsa", "does not have the key that signed the file", !on || verifiesAll},
		{"unsigned", "the file is unsigned", !on},
		{"foreign", "does not have the key that signed the file", !on},
		{"untrusted", "does not have the key that signed the file", !on},
		{"tampered", "the file has changed since it was signed by a key that the kernel has", !known},
	} {
		path := "/mod/" + c.file + "/hello.ko"
		for _, args := range [][]string{{"load", path}, {"load", "--unchecked", path}} {
			if c.loads {
				g.run(0, args...)
				g.run(0, "unload", "hello")
				continue
			}
			g.says(g.run(exitRefused, args...), c.why)
		}
		if c.loads {
			continue
		}
		if err := loadByHand(path); err != unix.EKEYREJECTED {
			g.errorf("%s: the kernel says %v", c.file, err)
		}
	}
}

// loadByHand makes the system call that loads a file.
func loadByHand(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// enrolment asks for the next key by ourselves, then by mokutil: the firmware holds the same.
func (g *guest) enrolment() {
	variables := func() (all [][]byte) {
		for _, name := range []string{"MokNew", "MokAuth"} {
			text, err := os.ReadFile("/sys/firmware/efi/efivars/" + name + "-" + efi.Shim.String())
			if err != nil {
				g.errorf("%v", err)
			}
			all = append(all, text)
		}
		return all
	}
	alone := exec.Command(guestBinary, "key", "enroll", "mok2", "--hash-file", "/mod/hash")
	alone.Env = []string{"PATH=/bin"} // no mokutil there
	g.says(g.command(0, alone), `Choose "Enroll MOK"`)
	ours := variables()
	g.command(0, exec.Command("mokutil", "--list-new"))
	g.command(0, exec.Command("mokutil", "--revoke-import"))
	g.run(0, "key", "enroll", "mok2", "--hash-file", "/mod/hash")
	if theirs := variables(); !slices.EqualFunc(ours, theirs, bytes.Equal) {
		g.errorf("MokNew and MokAuth are\n%x\nmokutil's\n%x", ours, theirs)
	}
	if r := g.run(0, "key", "enroll", "mok2"); !strings.Contains(r.stderr, "asked for already") {
		g.errorf("a second time: %s", r.stderr)
	}
}
