package efi

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"kmodctl/internal/kernel"
)

// firmware makes a folder that holds variables, by the names of their files, as a machine's root does.
func firmware(t *testing.T, variables map[string][]byte) kernel.Root {
	t.Helper()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, varsDir), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range variables {
		if err := os.WriteFile(filepath.Join(root, varsDir, name), append([]byte{6, 0, 0, 0}, data...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return kernel.Root(root)
}

var privateKey = func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
}()

func certificate(t testing.TB, name string) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, privateKey.Public(), privateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func entry(cert *x509.Certificate) Entry { return Entry{Kind: X509, Owner: Shim, Data: cert.Raw} }

const (
	secureBootFile = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	setupModeFile  = "SetupMode-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	mokSBFile      = "MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23"
	dbFile         = "db-d719b2cb-3d3a-4596-a3bc-dad00e67656f"
	dbxFile        = "dbx-d719b2cb-3d3a-4596-a3bc-dad00e67656f"
)

func shimFile(name string) string { return name + "-605dab50-e046-4300-abb6-3dd810dd8b23" }

func TestSwitches(t *testing.T) {
	for _, c := range []struct {
		name      string
		variables map[string][]byte
		enforced  Switch
		errors    int
	}{
		{"on", map[string][]byte{secureBootFile: {1}, setupModeFile: {0}}, On, 0},
		{"off", map[string][]byte{secureBootFile: {0}, setupModeFile: {0}}, Off, 0},
		{"setup mode", map[string][]byte{secureBootFile: {1}, setupModeFile: {1}}, Off, 0},
		{"shim verifies nothing", map[string][]byte{secureBootFile: {1}, mokSBFile: {1}}, Off, 0},
		{"shim verifies", map[string][]byte{secureBootFile: {1}, mokSBFile: {0}}, On, 0},
		{"no such variable", map[string][]byte{setupModeFile: {0}}, Off, 0},
		{"too long", map[string][]byte{secureBootFile: {1, 0}}, Unknown, 1},
		{"no number of a switch", map[string][]byte{secureBootFile: {2}}, Unknown, 1},
	} {
		s := ReadState(firmware(t, c.variables))
		if s.Enforced() != c.enforced || len(s.Errors) != c.errors || !s.UEFI {
			t.Errorf("%s: %s, %v, want %s", c.name, s.Enforced(), s.Errors, c.enforced)
		}
	}
	if s := ReadState(kernel.Root(t.TempDir())); s.UEFI || s.Enforced() != Off || s.Errors != nil {
		t.Errorf("a machine of a BIOS: %+v", s)
	}
	if s := ReadState(firmware(t, nil)); s.Enforced() != Unknown || len(s.Errors) != 1 || !errors.Is(s.Errors[0], ErrNotMounted) {
		t.Errorf("nothing mounted: %+v", s)
	}
}

// TestEnrolment: a certificate is found in each list, by itself or by its hash, and in parts of a list too.
func TestEnrolment(t *testing.T) {
	ours, other := certificate(t, "ours"), certificate(t, "another")
	hash := sha256.Sum256(ours.RawTBSCertificate)
	revoked := FormatLists([]Entry{{Kind: X509SHA256, Owner: Global, Data: append(hash[:], make([]byte, 16)...)}})
	both := FormatLists([]Entry{entry(other), entry(ours)})
	for _, c := range []struct {
		file string
		data []byte
		want Enrolment
	}{
		{dbFile, both, Enrolment{In: []string{"db"}}},
		{shimFile("MokListRT"), both, Enrolment{In: []string{"MokListRT"}}},
		{shimFile("MokNew"), both, Enrolment{Pending: true}},
		{shimFile("MokDel"), both, Enrolment{Leaving: true}},
		{dbxFile, revoked, Enrolment{Revoked: []string{"dbx"}}},
		{shimFile("MokListXRT"), both, Enrolment{Revoked: []string{"MokListXRT"}}},
		{"PK-8be4df61-93ca-11d2-aa0d-00e098032b8c", both, Enrolment{}},
		{dbFile, FormatLists([]Entry{entry(other)}), Enrolment{}},
	} {
		s := ReadState(firmware(t, map[string][]byte{secureBootFile: {1}, c.file: c.data}))
		got := s.EnrolmentOf(ours)
		if !slices.Equal(got.In, c.want.In) || !slices.Equal(got.Revoked, c.want.Revoked) || got.Pending != c.want.Pending || got.Leaving != c.want.Leaving {
			t.Errorf("%s: %+v, want %+v", c.file, got, c.want)
		}
	}

	root := firmware(t, map[string][]byte{
		shimFile("MokListRT"):  FormatLists([]Entry{entry(other)}),
		shimFile("MokListRT1"): FormatLists([]Entry{entry(ours)}),
	})
	if l := ReadState(root).List("MokListRT"); len(l.Certificates()) != 2 || !l.Has(ours) || l.Err != nil {
		t.Errorf("a list in two parts: %+v", l)
	}
	memory := filepath.Join(string(root), mokDir)
	if err := errors.Join(os.Mkdir(memory, 0o755), os.WriteFile(filepath.Join(memory, "MokListRT"), FormatLists([]Entry{entry(ours)}), 0o600)); err != nil {
		t.Fatal(err)
	}
	if l := ReadState(root).List("MokListRT"); len(l.Entries) != 1 || !l.Has(ours) {
		t.Errorf("shim's memory does not come first: %+v", l)
	}
}

func TestDamagedLists(t *testing.T) {
	whole := FormatLists([]Entry{entry(certificate(t, "one"))})
	put := func(at int, n uint32) []byte {
		data := bytes.Clone(whole)
		binary.LittleEndian.PutUint32(data[at:], n)
		return slices.Concat(whole, data)
	}
	for name, data := range map[string][]byte{
		"cut in its header":      slices.Concat(whole, whole[:20]),
		"cut in its certificate": slices.Concat(whole, whole[:len(whole)-1]),
		"larger than the rest":   put(16, uint32(len(whole))+1),
		"smaller than a header":  put(16, 27),
		"size of zero":           put(16, 0),
		"header beyond its end":  put(20, 0xffffffff),
		"entries of zero":        put(24, 0),
		"entries too small":      put(24, 15),
		"entries that do not go": put(24, 17),
		"entries too large":      put(24, uint32(len(whole))),
	} {
		entries, err := ParseLists(data)
		var bad *FormatError
		if !errors.As(err, &bad) || bad.Offset != int64(len(whole)) || len(entries) != 1 {
			t.Errorf("%s: %d entries, %v", name, len(entries), err)
		}
		root := firmware(t, map[string][]byte{dbFile: data})
		if l := ReadState(root).List("db"); l.Err == nil || len(l.Entries) != 1 {
			t.Errorf("%s: %+v", name, l)
		}
	}
}

func TestVariableWithoutAttributes(t *testing.T) {
	root := firmware(t, nil)
	if err := os.WriteFile(filepath.Join(string(root), varsDir, dbFile), []byte{6, 0, 0}, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(root, "db", Security); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read: %v", err)
	}
	if l := ReadState(root).List("db"); l.Err == nil {
		t.Error("a list that cannot be read is none")
	}
}

// FuzzLists: whatever the bytes, there are entries, none beyond the data, or a *FormatError; what was read is written again
// as it would be read.
func FuzzLists(f *testing.F) {
	one := FormatLists([]Entry{entry(certificate(f, "one"))})
	f.Add([]byte(nil))
	f.Add(one)
	f.Add(append(one, one[:30]...))
	f.Add(FormatLists([]Entry{{Kind: SHA256, Owner: Global, Data: make([]byte, 32)}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := ParseLists(data)
		var bad *FormatError
		if err != nil && (!errors.As(err, &bad) || bad.Offset < 0 || bad.Offset >= int64(len(data))) {
			t.Errorf("%#v", err)
		}
		again, err := ParseLists(FormatLists(entries))
		if err != nil || !slices.EqualFunc(entries, again, func(a, b Entry) bool {
			return a.Kind == b.Kind && a.Owner == b.Owner && bytes.Equal(a.Data, b.Data)
		}) {
			t.Errorf("%d entries, %d when written and read again, %v", len(entries), len(again), err)
		}
		List{Entries: entries}.Certificates()
	})
}
