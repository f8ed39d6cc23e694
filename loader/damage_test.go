package loader_test

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"debug/elf"
	"encoding/binary"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"kmodctl/internal/ko"
)

// Damage is done to copies of modules that kbuild made: one thing is changed, all
// else stays as it was. damage panics when the thing is not there.
type damage func(t *testing.T, module []byte) []byte

// word replaces a text by one of the same length, wherever it stands.
func word(old, new string) damage {
	return func(t *testing.T, module []byte) []byte {
		if len(old) != len(new) || !bytes.Contains(module, []byte(old)) {
			t.Fatalf("cannot put %q in the place of %q", new, old)
		}
		return bytes.ReplaceAll(module, []byte(old), []byte(new))
	}
}

// firstBytes cuts a file short.
func firstBytes(n int) damage {
	return func(t *testing.T, module []byte) []byte { return module[:n] }
}

func half(t *testing.T, module []byte) []byte { return module[:len(module)/2] }

// only is a file of other content.
func only(content string) damage {
	return func(*testing.T, []byte) []byte { return []byte(content) }
}

// le writes a little-endian number of 2, 4 or 8 bytes at an offset.
func le(module []byte, offset uint64, size int, value uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], value)
	copy(module[offset:], b[:size])
}

// machine makes it a module of another architecture (e_machine).
func machine(m elf.Machine) damage {
	return func(t *testing.T, module []byte) []byte {
		le(module, 18, 2, uint64(m))
		return module
	}
}

// executable makes it a program (e_type).
func executable(t *testing.T, module []byte) []byte {
	le(module, 16, 2, uint64(elf.ET_EXEC))
	return module
}

func parse(t *testing.T, module []byte) *elf.File {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// header is where the section header of a section is in the file.
func header(t *testing.T, module []byte, section string) uint64 {
	t.Helper()
	for i, s := range parse(t, module).Sections {
		if s.Name == section {
			return binary.LittleEndian.Uint64(module[40:]) + 64*uint64(i) // e_shoff, Elf64_Shdr
		}
	}
	t.Fatalf("no section %s", section)
	return 0
}

// writable sets SHF_WRITE of a section.
func writable(section string) damage {
	return func(t *testing.T, module []byte) []byte {
		module[header(t, module, section)+8] |= byte(elf.SHF_WRITE)
		return module
	}
}

// larger adds to the size of a section.
func larger(section string, by uint64) damage {
	return func(t *testing.T, module []byte) []byte {
		at := header(t, module, section) + 32
		le(module, at, 8, binary.LittleEndian.Uint64(module[at:])+by)
		return module
	}
}

// otherCRC changes what the module expects the CRC of a symbol to be.
func otherCRC(symbol string) damage {
	return func(t *testing.T, module []byte) []byte {
		module[versionOf(t, module, symbol)] ^= 0xff
		return module
	}
}

// noCRC takes a symbol out of the module's table of CRCs.
func noCRC(symbol string) damage {
	return func(t *testing.T, module []byte) []byte {
		module[versionOf(t, module, symbol)+8] = '-'
		return module
	}
}

// versionOf is where the entry of a symbol is: 8 bytes of CRC, 56 of name.
func versionOf(t *testing.T, module []byte, symbol string) uint64 {
	t.Helper()
	s := parse(t, module).Section("__versions")
	data, err := s.Data()
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at+64 <= len(data); at += 64 {
		if name, _, _ := bytes.Cut(data[at+8:at+64], []byte{0}); string(name) == symbol {
			return s.Offset + uint64(at)
		}
	}
	t.Fatalf("no CRC of %s", symbol)
	return 0
}

// linkedTwice fills in the place of the first relocation of init, as a linker does.
func linkedTwice(t *testing.T, module []byte) []byte {
	f := parse(t, module)
	relocations, err := f.Section(".rela.init.text").Data()
	if err != nil {
		t.Fatal(err)
	}
	for len(relocations) >= 24 { // Elf64_Rela
		at, kind := binary.LittleEndian.Uint64(relocations), elf.R_X86_64(binary.LittleEndian.Uint32(relocations[8:]))
		if kind != elf.R_X86_64_NONE {
			module[f.Section(".init.text").Offset+at] = 1
			return module
		}
		relocations = relocations[24:]
	}
	t.Fatal("init has no relocation")
	return nil
}

// program runs a program over a file with the module's content, which it changes.
func program(command ...string) damage {
	return func(t *testing.T, module []byte) []byte {
		t.Helper()
		path := filepath.Join(t.TempDir(), "module.ko")
		if err := os.WriteFile(path, module, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(command[0], append(command[1:], path)...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", command, err, out)
		}
		changed, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return changed
	}
}

// filter is what a program writes when it reads the module.
func filter(command ...string) damage {
	return func(t *testing.T, module []byte) []byte {
		t.Helper()
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Stdin = bytes.NewReader(module)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%q: %v", command, err)
		}
		return out
	}
}

func gzipped(t *testing.T, module []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(module)
	w.Close()
	return out.Bytes()
}

func unpacked(t *testing.T, module []byte) []byte {
	plain, _, err := ko.Decompress(module)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

// The end of a signed file: PKCS#7, struct module_signature, the marker
// (kernel/module_signature.c, scripts/sign-file.c).
const marker = "~Module signature appended~\n"

// trailer is where struct module_signature is in a signed module.
func trailer(t *testing.T, module []byte) int {
	t.Helper()
	if !bytes.HasSuffix(module, []byte(marker)) {
		t.Fatal("the module is not signed")
	}
	return len(module) - len(marker) - 12
}

// trailerByte sets a byte of struct module_signature.
func trailerByte(offset int, value byte) damage {
	return func(t *testing.T, module []byte) []byte {
		module[trailer(t, module)+offset] = value
		return module
	}
}

// badPKCS7 spoils the signature itself.
func badPKCS7(t *testing.T, module []byte) []byte {
	at := trailer(t, module)
	size := int(binary.BigEndian.Uint32(module[at+8:]))
	clear(module[at-size : at])
	return module
}

// unsigned takes the signature off.
func unsigned(t *testing.T, module []byte) []byte {
	at := trailer(t, module)
	return module[:at-int(binary.BigEndian.Uint32(module[at+8:]))]
}

// signed signs with a key that no kernel knows.
func signed(signFile, key, cert string) damage {
	return program(signFile, "sha256", key, cert)
}

// stranger is an RSA key that no kernel knows, and its certificate.
func stranger(t *testing.T, name string) (*rsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(0x6b6d6f64), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return private, public
}

// strangersKey makes the files of such a key.
func strangersKey(t *testing.T) (key, cert string) {
	t.Helper()
	private, public := stranger(t, "a stranger")
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	key, cert = filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.der")
	if err := os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cert, public.Raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return key, cert
}
