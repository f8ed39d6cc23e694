package efi

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Kinds of entries of a signature list: UEFI specification, "Signature Database".
var (
	X509       = guid("a5c059a1-94e4-4aa7-87b5-ab155c2bf072") // a certificate in DER
	X509SHA256 = guid("3bd2a492-96c0-4079-b420-fcf98ef103ed") // SHA-256 of the signed part of a certificate, then the time from which it is revoked
	SHA256     = guid("c1c41626-504c-4092-aca9-41f936934328") // SHA-256 of a boot loader or kernel
)

// Entry is one certificate or hash of a list.
type Entry struct {
	Kind  GUID
	Owner GUID // who put it there, as he says
	Data  []byte
}

// FormatError is a list that is damaged.
type FormatError struct {
	Offset int64 // in bytes, of the signature list in the variable's data
	Reason string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("signature list at byte %d: %s", e.Offset, e.Reason)
}

const (
	listHeader = 16 + 3*4 // EFI_SIGNATURE_LIST: kind, size of all, size of a header, size of each entry
	ownerSize  = 16       // EFI_SIGNATURE_DATA begins with its owner
)

// ParseLists reads EFI_SIGNATURE_LISTs that follow one another, what db, dbx, MokListRT and the like hold. It takes
// what the kernel takes (parse_efi_signature_list, security/integrity/platform_certs/efi_parser.c). Of damaged data
// come the entries before the damage, and a *FormatError. Entries share data's memory.
func ParseLists(data []byte) (all []Entry, err error) {
	for at := 0; at < len(data); {
		rest := data[at:]
		if len(rest) < listHeader {
			return all, &FormatError{int64(at), fmt.Sprintf("%d bytes, a header has %d", len(rest), listHeader)}
		}
		size, header, entry := uint64(binary.LittleEndian.Uint32(rest[16:])), uint64(binary.LittleEndian.Uint32(rest[20:])), uint64(binary.LittleEndian.Uint32(rest[24:]))
		switch {
		case size > uint64(len(rest)):
			return all, &FormatError{int64(at), fmt.Sprintf("says %d bytes, %d are left", size, len(rest))}
		case size < listHeader+header:
			return all, &FormatError{int64(at), fmt.Sprintf("says %d bytes, its headers have %d", size, listHeader+header)}
		case entry < ownerSize:
			return all, &FormatError{int64(at), fmt.Sprintf("entries of %d bytes, their owner alone has %d", entry, ownerSize)}
		}
		body := rest[listHeader+header : size]
		if uint64(len(body)) < entry || uint64(len(body))%entry != 0 {
			return all, &FormatError{int64(at), fmt.Sprintf("%d bytes are no number of entries of %d bytes", len(body), entry)}
		}
		for e := range slices.Chunk(body, int(entry)) {
			all = append(all, Entry{Kind: GUID(rest[:16]), Owner: GUID(e[:ownerSize]), Data: e[ownerSize:]})
		}
		at += int(size)
	}
	return all, nil
}

// FormatLists is the reverse of ParseLists, with a list for each entry, as mokutil makes them.
func FormatLists(entries []Entry) (data []byte) {
	for _, e := range entries {
		data = append(data, e.Kind[:]...)
		data = binary.LittleEndian.AppendUint32(data, uint32(listHeader+ownerSize+len(e.Data)))
		data = binary.LittleEndian.AppendUint32(data, 0)
		data = binary.LittleEndian.AppendUint32(data, uint32(ownerSize+len(e.Data)))
		data = append(append(data, e.Owner[:]...), e.Data...)
	}
	return data
}
