package ko

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"testing"
)

// FuzzRead: whatever the bytes, there is a module with a name or a *FormatError.
func FuzzRead(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(complete(elf.EM_S390, elf.ELFCLASS64, binary.BigEndian).bytes())
	f.Add(complete(elf.EM_ARM, elf.ELFCLASS32, binary.LittleEndian).bytes())
	extended := x86()
	extended.extendedVersions(crcs, "module_layout", "_printk")
	f.Add(extended.bytes())
	f.Add(append(x86().bytes(), trailer(1, 10)...))
	f.Add(append(append(x86().bytes(), smallPKCS7...), trailer(2, len(smallPKCS7))...))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, compression, _ := decompress(data, 1<<16); compression != "" {
			return // FuzzDecompress does those
		}
		info, err := Read(data)
		var bad *FormatError
		if err != nil && (!errors.As(err, &bad) || bad.Err == nil || bad.Offset < 0) {
			t.Errorf("%#v", err)
		}
		if err == nil && info.Name == "" {
			t.Error("a module without a name")
		}
	})
}

// FuzzDiffer: modules differ in something that is named exactly when their bytes do.
func FuzzDiffer(f *testing.F) {
	f.Add(x86().bytes(), x86().bytes())
	f.Add(x86().bytes(), complete(elf.EM_PPC, elf.ELFCLASS32, binary.BigEndian).bytes())
	f.Add(x86().bytes(), append(x86().bytes(), "signed"...))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		all, err := Differ(a, b)
		var bad *FormatError
		if err != nil && !errors.As(err, &bad) {
			t.Errorf("%#v", err)
		}
		if err == nil && (len(all) == 0) != bytes.Equal(a, b) {
			t.Errorf("%v", all)
		}
	})
}

// FuzzDecompress: never more bytes than the limit, and every error says which kind it is.
func FuzzDecompress(f *testing.F) {
	const limit = 1 << 16
	for _, data := range compressed(f, x86().bytes()) {
		f.Add(data)
		f.Add(data[:len(data)/2])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		out, compression, err := decompress(data, limit)
		var bad *FormatError
		if err != nil && (!errors.As(err, &bad) || bad.Err == nil) {
			t.Errorf("%#v", err)
		}
		if compression != "" && len(out) > limit {
			t.Errorf("%d bytes of %s, the limit is %d", len(out), compression, limit)
		}
	})
}

// smallPKCS7 is a message with the shape that sign-file writes: CN "a", serial
// 5, sha256, rsaEncryption and a signature of two bytes.
var smallPKCS7 = derTLV(0x30,
	[]byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2},
	derTLV(0xa0, derTLV(0x30,
		[]byte{2, 1, 1},
		derTLV(0x31, derTLV(0x30, sha256OID)),
		derTLV(0x30, []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1}),
		derTLV(0x31, derTLV(0x30,
			[]byte{2, 1, 1},
			derTLV(0x30,
				derTLV(0x30, derTLV(0x31, derTLV(0x30, []byte{6, 3, 0x55, 4, 3, 0x0c, 1, 'a'}))),
				[]byte{2, 1, 5}),
			derTLV(0x30, sha256OID),
			derTLV(0x30, []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0}),
			[]byte{4, 2, 0xab, 0xcd})))))

var sha256OID = []byte{6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1}

func derTLV(tag byte, parts ...[]byte) []byte {
	var content []byte
	for _, p := range parts {
		content = append(content, p...)
	}
	if len(content) > 127 {
		return append([]byte{tag, 0x81, byte(len(content))}, content...)
	}
	return append([]byte{tag, byte(len(content))}, content...)
}

func TestSmallPKCS7(t *testing.T) {
	info, err := Read(append(append(x86().bytes(), smallPKCS7...), trailer(2, len(smallPKCS7))...))
	want := Signature{IDType: "PKCS#7", Signer: "a", KeyID: "05", Hash: "sha256", Bytes: "AB:CD"}
	if err != nil || *info.Signature != want {
		t.Fatalf("%+v, %v", info, err)
	}
}
