package efi

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
)

// Why nothing is asked of MokManager.
var (
	ErrEnrolled = errors.New("it is enrolled")
	ErrPending  = errors.New("MokManager will ask for it at the next boot")
	ErrLeaving  = errors.New("MokManager will ask to delete it at the next boot")
)

// Request is what MokManager is to ask at the next boot: MokNew, certificates, and MokAuth, the password to enrol them.
type Request struct {
	New, Auth Variable
	old       Variable // MokNew before it; without Data when there was none
}

// NewRequest adds a certificate to what MokManager is to ask for, as mokutil --import does: what was asked before stays, and all
// of it gets the password of hash. The variables are mokutil's, byte for byte. Nothing is written yet. Errors: ErrEnrolled, ErrPending,
// ErrLeaving.
func NewRequest(root kernel.Root, cert *x509.Certificate, hash Crypt) (Request, error) {
	s := ReadState(root)
	switch at := s.EnrolmentOf(cert); {
	case at.Pending:
		return Request{}, ErrPending
	case at.Leaving:
		return Request{}, ErrLeaving
	case len(at.In) > 0:
		return Request{}, ErrEnrolled
	}
	old, err := Read(root, "MokNew", Shim)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Request{}, err
	}
	const attributes = NonVolatile | BootService | Runtime
	data := append(FormatLists([]Entry{{Kind: X509, Owner: Shim, Data: cert.Raw}}), old.Data...)
	return Request{
		New:  Variable{Name: "MokNew", Owner: Shim, Attributes: attributes, Data: data},
		Auth: Variable{Name: "MokAuth", Owner: Shim, Attributes: attributes, Data: hash.auth()},
		old:  old,
	}, nil
}

// Write leaves the request in the firmware's store. MokNew is taken back when MokAuth cannot be written: without it MokManager
// enrols nothing.
func (r Request) Write(root kernel.Root) error {
	err := write(root, r.New)
	if err != nil {
		return err
	}
	if err = write(root, r.Auth); err == nil {
		return nil
	}
	err = errors.Join(err, remove(root, r.New))
	if r.old.Data != nil {
		err = errors.Join(err, write(root, r.old))
	}
	return err
}

// write sets a variable by one write(2), which efivarfs makes SetVariable() of, and reads it again: there is firmware that
// says that it has kept what it has not.
func write(root kernel.Root, v Variable) (err error) {
	name, err := v.host(root)
	if err != nil {
		return fmt.Errorf("set %s: %w", v.Name, err)
	}
	if err := unlock(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set %s: %w", v.Name, err)
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("set %s: %w", v.Name, err)
	}
	unlock(name) // one that is new is immutable already; when that cannot be changed, the write says so
	_, err = f.Write(append(binary.LittleEndian.AppendUint32(nil, v.Attributes), v.Data...))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("set %s: %w", v.Name, err)
	}
	kept, err := Read(root, v.Name, v.Owner)
	if err == nil && (kept.Attributes != v.Attributes || !bytes.Equal(kept.Data, v.Data)) {
		err = errors.New("the firmware has not kept what was written")
	}
	if err != nil {
		return fmt.Errorf("set %s: %w", v.Name, err)
	}
	return nil
}

func remove(root kernel.Root, v Variable) error {
	name, err := v.host(root)
	if err == nil {
		err = unlock(name)
	}
	if err == nil {
		err = os.Remove(name)
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", v.Name, err)
	}
	return nil
}

// host is the path of a variable's file, as this process opens it.
func (v Variable) host(root kernel.Root) (string, error) {
	dir, err := root.Path(varsDir)
	return filepath.Join(dir, filepath.Base(v.path())), err
}

// unlock takes the immutable flag off a file. efivarfs sets it on what it does not know, so that rm -r breaks no machine
// (Documentation/filesystems/efivarfs.rst). A file of another filesystem may have no flags.
func unlock(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	const immutable = 0x10 // FS_IMMUTABLE_FL, include/uapi/linux/fs.h
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&immutable == 0 {
		return nil
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable); err != nil {
		return fmt.Errorf("take the immutable flag off: %w", err)
	}
	return nil
}
