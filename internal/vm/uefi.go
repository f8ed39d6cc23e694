package vm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unicode/utf16"
)

// UEFI gives a guest the firmware OVMF (Debian's package ovmf), for a machine with Secure Boot. A boot takes 4 to 6 s
// longer under emulation.
type UEFI struct {
	// Variables are in the firmware's store. Secure Boot is on when there is a PK among them; what the firmware starts
	// is then to be signed, but for Config.Image, which it hands over as it is.
	Variables []Variable

	// Disk makes the EFI system partition, a folder that begins with EFI/BOOT/BOOTX64.EFI, which the firmware starts in
	// place of Config.Image. It is given what QEMU would have been: the files of the kernel and of its initramfs, and
	// the kernel's command line. A machine that reboots before its program has ended starts from it again, with what is in
	// the variables by then. nil means that Config.Image is started.
	Disk func(kernel, initramfs, cmdline string) (folder string, err error)
}

// Variable is one variable of the firmware.
type Variable struct {
	Name       string
	Owner      [16]byte // as it lies in memory
	Attributes uint32
	Data       []byte
}

// The files of Debian's package. This OVMF enforces Secure Boot without a trusted part of its own (SMM), which emulation would
// pay for.
const (
	ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// store makes the flash memory that holds variables, a file without a name.
func (u *UEFI) store() (*os.File, error) {
	flash, err := os.ReadFile(ovmfVars)
	if err != nil {
		return nil, err
	}
	if err := fill(flash, u.Variables); err != nil {
		return nil, fmt.Errorf("fill %s: %w", ovmfVars, err)
	}
	f, err := unnamed()
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(flash); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// fill writes variables into an empty store: a firmware volume (UEFI PI specification, volume 3) whose header is followed
// by that of the store, and by variables, each with AUTHENTICATED_VARIABLE_HEADER (edk2, MdeModulePkg/Include/Guid/VariableFormat.h).
func fill(flash []byte, variables []Variable) error {
	const headerLength, storeHeader, erased = 48, 28, 0xff
	if len(flash) < headerLength+2 {
		return errors.New("too short for a firmware volume")
	}
	at := int(binary.LittleEndian.Uint16(flash[headerLength:])) + storeHeader
	if at+4 > len(flash) || binary.LittleEndian.Uint32(flash[at:]) != erased<<24|erased<<16|erased<<8|erased {
		return errors.New("not an empty store of variables")
	}
	for _, v := range variables {
		name := utf16.Encode([]rune(v.Name + "\x00"))
		head := []any{
			uint16(0x55aa), uint8(0x3f), uint8(0), v.Attributes, // start, state "added"
			uint64(0), [16]byte{}, uint32(0), // counter, time and key of authenticated variables
			uint32(2 * len(name)), uint32(len(v.Data)), v.Owner, name, v.Data,
		}
		var text []byte
		for _, field := range head {
			var err error
			if text, err = binary.Append(text, binary.LittleEndian, field); err != nil {
				return err
			}
		}
		if at+len(text) > len(flash) {
			return fmt.Errorf("%s does not fit", v.Name)
		}
		at += copy(flash[at:], text)
		at = int(align4(int64(at)))
	}
	return nil
}

// firmware are QEMU's arguments for OVMF, and for the disk that it starts from.
func (m *machine) firmware(vars string) []string {
	args := []string{
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + ovmfCode,
		"-drive", "if=pflash,format=raw,unit=1,file=" + vars,
	}
	if m.disk != "" {
		args = append(args, "-drive", "if=none,id=esp,format=raw,readonly=on,file=fat:"+m.disk, "-device", "virtio-blk-pci,drive=esp,bootindex=1")
	}
	return args
}
