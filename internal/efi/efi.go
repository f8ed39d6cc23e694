// Package efi reads the variables of UEFI's firmware and of shim that say whether
// Secure Boot is on and whose signatures are trusted, and writes the request by
// which MokManager, at the next boot, is to enrol a Machine Owner Key (MOK).
//
// Every path goes through a kernel.Root, so that a folder with the same files will
// do for the firmware. ReadState is the place to start.
package efi

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"kmodctl/internal/kernel"
)

// GUID is a globally unique identifier as it lies in memory: its first three
// fields are little-endian (UEFI specification, appendix A).
type GUID [16]byte

// String is the usual form, "8be4df61-93ca-11d2-aa0d-00e098032b8c".
func (g GUID) String() string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(g[0:]), binary.LittleEndian.Uint16(g[4:]), binary.LittleEndian.Uint16(g[6:]), g[8:10], g[10:])
}

// guid is the reverse of String, for constants.
func guid(text string) (g GUID) {
	raw, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(raw) != len(g) {
		panic("not a GUID: " + text)
	}
	copy(g[:], raw)
	binary.LittleEndian.PutUint32(g[0:], binary.BigEndian.Uint32(raw[0:]))
	binary.LittleEndian.PutUint16(g[4:], binary.BigEndian.Uint16(raw[4:]))
	binary.LittleEndian.PutUint16(g[6:], binary.BigEndian.Uint16(raw[6:]))
	return g
}

// The owners of variables.
var (
	Global   = guid("8be4df61-93ca-11d2-aa0d-00e098032b8c") // EFI_GLOBAL_VARIABLE: SecureBoot, SetupMode, PK, KEK
	Security = guid("d719b2cb-3d3a-4596-a3bc-dad00e67656f") // EFI_IMAGE_SECURITY_DATABASE_GUID: db, dbx
	Shim     = guid("605dab50-e046-4300-abb6-3dd810dd8b23") // SHIM_LOCK_GUID: Mok...
)

// Attributes of a variable: UEFI specification, GetVariable().
const (
	NonVolatile = 1 << iota
	BootService // seen by the firmware and boot loaders
	Runtime     // seen by the operating system
)

const (
	varsDir = "/sys/firmware/efi/efivars"       // efivarfs: Documentation/filesystems/efivarfs.rst
	mokDir  = "/sys/firmware/efi/mok-variables" // since Linux 5.11: what shim has left in memory, for root
)

// Variable is one variable of the firmware.
type Variable struct {
	Name       string
	Owner      GUID
	Attributes uint32
	Data       []byte
}

func (v Variable) path() string { return varsDir + "/" + v.Name + "-" + v.Owner.String() }

// most is the size in bytes beyond which a variable is not read: a firmware's store is smaller.
const most = 4 << 20

// Read reads a variable. errors.Is(err, fs.ErrNotExist) tells one that is not set.
func Read(root kernel.Root, name string, owner GUID) (Variable, error) {
	v := Variable{Name: name, Owner: owner}
	data, err := readFile(root, v.path())
	if err != nil {
		return v, err
	}
	if len(data) < 4 {
		return v, fmt.Errorf("read %s: %d bytes, shorter than its attributes", v.path(), len(data))
	}
	v.Attributes, v.Data = binary.LittleEndian.Uint32(data), data[4:]
	return v, nil
}

func readFile(root kernel.Root, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && len(data) > most {
		err = fmt.Errorf("read %s: more than %d MiB", name, most>>20)
	}
	return data, err
}
