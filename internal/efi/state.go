package efi

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"

	"kmodctl/internal/kernel"
)

// Switch is whether something is on.
type Switch string

const (
	On      Switch = "on"
	Off     Switch = "off"
	Unknown Switch = "unknown" // it cannot be read: State.Errors say why
)

// List is one list of certificates and hashes.
type List struct {
	Name    string
	Entries []Entry
	Err     error // why it is not all there: cannot be read, or a *FormatError
}

// State is what firmware and shim say of Secure Boot.
type State struct {
	UEFI       bool   // the machine was booted by UEFI's firmware, and not by a BIOS
	SecureBoot Switch // the firmware starts signed programs only
	SetupMode  Switch // the firmware has no owner: anyone may set its keys, and nothing is enforced
	ShimOff    bool   // mokutil --disable-validation: shim starts anything, and the kernel takes Secure Boot for off
	MokTrusted bool   // shim says that MOKs are for the kernel too (MokListTrustedRT, since shim 15.5)

	Lists  []List  // PK, KEK, db, dbx, MokListRT, MokListXRT, MokNew, MokDel: those that are set
	Errors []error // what could not be read
}

// lists are the variables that hold signature lists. Those of shim that end in RT are copies, made at boot, of lists that
// only boot loaders see.
var lists = []struct {
	name  string
	owner GUID
}{
	{"PK", Global}, {"KEK", Global}, {"db", Security}, {"dbx", Security},
	{"MokListRT", Shim}, {"MokListXRT", Shim}, {"MokNew", Shim}, {"MokDel", Shim},
}

// ErrNotMounted says: the machine has UEFI variables, and nothing shows them.
var ErrNotMounted = errors.New("efivarfs is not mounted on " + varsDir)

// ReadState reads what this user may read. It has no error of its own: State.Errors and List.Err say what is not known.
func ReadState(root kernel.Root) State {
	s := State{SecureBoot: Off, SetupMode: Off}
	if _, err := root.Path("/sys/firmware/efi"); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.Errors = append(s.Errors, err)
		}
		return s
	}
	s.UEFI = true
	if entries, err := root.ReadDir(varsDir); err != nil || len(entries) == 0 {
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			err = ErrNotMounted
		}
		s.Errors, s.SecureBoot, s.SetupMode = append(s.Errors, err), Unknown, Unknown
	} else {
		s.SecureBoot, s.SetupMode = s.read(root, "SecureBoot", Global), s.read(root, "SetupMode", Global)
		s.ShimOff = s.read(root, "MokSBStateRT", Shim) == On
		s.MokTrusted = s.read(root, "MokListTrustedRT", Shim) == On
	}
	for _, l := range lists {
		if list, ok := readList(root, l.name, l.owner); ok {
			s.Lists = append(s.Lists, list)
		}
	}
	return s
}

// read reads a variable of one byte; one that is not set is off.
func (s *State) read(root kernel.Root, name string, owner GUID) Switch {
	v, err := Read(root, name, owner)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Off
	case err == nil && len(v.Data) == 1 && v.Data[0] <= 1:
		return map[byte]Switch{0: Off, 1: On}[v.Data[0]]
	case err == nil:
		err = fmt.Errorf("read %s: %x is neither 0 nor 1", v.path(), v.Data)
	}
	s.Errors = append(s.Errors, err)
	return Unknown
}

// readList reads a list; ok is false when there is none. The kernel prefers what shim has left in memory to variables
// (load_moklist_certs, security/integrity/platform_certs/load_uefi.c), which only root may read.
func readList(root kernel.Root, name string, owner GUID) (l List, ok bool) {
	l.Name = name
	var data []byte
	if owner == Shim {
		data, l.Err = readFile(root, mokDir+"/"+name)
	}
	if owner != Shim || l.Err != nil {
		data, l.Err = readParts(root, name, owner)
	}
	if errors.Is(l.Err, fs.ErrNotExist) {
		return l, false
	}
	entries, err := ParseLists(data)
	if l.Entries = entries; err != nil {
		l.Err = fmt.Errorf("read %s: %w", name, err)
	}
	return l, true
}

// readParts reads a list of the firmware. Where shim's is too large for one variable it goes on in NAME1, NAME2 and so on
// (mirror_mok_db, mok.c, since shim 15.3), each of whole lists.
func readParts(root kernel.Root, name string, owner GUID) (data []byte, err error) {
	v, err := Read(root, name, owner)
	data = v.Data
	for i := 1; err == nil && owner == Shim; i++ {
		if v, err = Read(root, fmt.Sprint(name, i), owner); errors.Is(err, fs.ErrNotExist) {
			return data, nil
		}
		data = append(data, v.Data...)
	}
	return data, err
}

// Enforced reports what the kernel makes of the firmware's state (efi_get_secureboot, drivers/firmware/efi/libstub/secureboot.c):
// with Secure Boot on, a distribution's kernel locks itself down and takes signed modules only.
func (s State) Enforced() Switch {
	switch {
	case s.SecureBoot == Off || s.SetupMode == On || s.ShimOff:
		return Off
	case s.SecureBoot == Unknown || s.SetupMode == Unknown:
		return Unknown
	}
	return On
}

// List is the list of a name; one without entries when it is not set.
func (s State) List(name string) List {
	for _, l := range s.Lists {
		if l.Name == name {
			return l
		}
	}
	return List{Name: name}
}

// Trusted are the lists whose certificates a kernel verifies modules with: shim's is read under Secure Boot only
// (load_uefi_certs, security/integrity/platform_certs/load_uefi.c; measured: docs/signing.md).
func (s State) Trusted() []List {
	all := []List{s.List("db")}
	if s.Enforced() != Off {
		all = append(all, s.List("MokListRT"))
	}
	return all
}

// Certificates are those of a list that can be read.
func (l List) Certificates() (certs []*x509.Certificate) {
	for _, e := range l.Entries {
		if e.Kind != X509 {
			continue
		}
		if cert, err := x509.ParseCertificate(e.Data); err == nil {
			certs = append(certs, cert)
		}
	}
	return certs
}

// Has reports whether a certificate is in the list, itself or by the hash of its signed part.
func (l List) Has(cert *x509.Certificate) bool {
	hash := sha256.Sum256(cert.RawTBSCertificate)
	for _, e := range l.Entries {
		if e.Kind == X509 && bytes.Equal(e.Data, cert.Raw) || e.Kind == X509SHA256 && bytes.HasPrefix(e.Data, hash[:]) {
			return true
		}
	}
	return false
}

// Enrolment is where a certificate stands.
type Enrolment struct {
	In      []string `json:"in,omitempty"`      // lists whose signatures the kernel takes: db, MokListRT
	Pending bool     `json:"pending,omitempty"` // MokManager will ask for it at the next boot
	Leaving bool     `json:"leaving,omitempty"` // MokManager will ask to delete it at the next boot
	Revoked []string `json:"revoked,omitempty"` // lists of what is not to be trusted: dbx, MokListXRT
}

// EnrolmentOf says where a certificate stands.
func (s State) EnrolmentOf(cert *x509.Certificate) (e Enrolment) {
	for _, name := range []string{"db", "MokListRT"} {
		if s.List(name).Has(cert) {
			e.In = append(e.In, name)
		}
	}
	for _, name := range []string{"dbx", "MokListXRT"} {
		if s.List(name).Has(cert) {
			e.Revoked = append(e.Revoked, name)
		}
	}
	e.Pending, e.Leaving = s.List("MokNew").Has(cert), s.List("MokDel").Has(cert)
	return e
}
