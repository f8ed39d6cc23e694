package loader

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"kmodctl/internal/ko"
)

// InInitramfs reports whether the initramfs at path holds a file of the module, so that a boot may load it from there, by the
// settings that were in force when the initramfs was made. It reads what the kernel reads: newc archives of cpio, one behind the other,
// each plain or compressed (Documentation/driver-api/early-userspace/buffer-format.rst); of compressions gzip, xz and zstd.
func InInitramfs(path, module string) (bool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	found := false
	err = eachArchived(data, func(name string) {
		base := filepath.Base(name)
		found = found || strings.Contains(base, ".ko") && ko.NameOfFile(base) == ko.NormalizeName(module)
	})
	if err != nil {
		return found, fmt.Errorf("read initramfs %s: %w", path, err)
	}
	return found, nil
}

var errArchive = errors.New("not a cpio archive of the form newc")

// eachArchived hands over the name of each file of an initramfs.
func eachArchived(data []byte, do func(name string)) error {
	for {
		data = bytes.TrimLeft(data, "\x00") // what pads an archive
		if len(data) == 0 {
			return nil
		}
		if data[0] != '0' {
			plain, compression, err := ko.Decompress(data)
			switch {
			case err != nil:
				return err
			case compression == "" || len(plain) > 0 && plain[0] != '0':
				return errArchive
			}
			data = plain // nothing stands behind a compressed archive
			continue
		}
		rest, err := readArchive(data, do)
		if err != nil {
			return err
		}
		data = rest
	}
}

// readArchive reads one archive up to its trailer, and returns what is behind it.
func readArchive(data []byte, do func(name string)) (rest []byte, err error) {
	const head = 110 // the magic, then 13 numbers of 8 hexadecimal digits
	for at := 0; ; {
		if len(data)-at < head || string(data[at:at+5]) != "07070" {
			return nil, errArchive
		}
		fileSize, err := strconv.ParseUint(string(data[at+54:at+62]), 16, 32)
		nameSize, err2 := strconv.ParseUint(string(data[at+94:at+102]), 16, 32)
		if errors.Join(err, err2) != nil || nameSize == 0 || uint64(len(data)-at-head) < nameSize {
			return nil, errArchive
		}
		name := string(data[at+head : at+head+int(nameSize)-1])
		at = aligned(at + head + int(nameSize))
		if name == "TRAILER!!!" {
			return data[min(at, len(data)):], nil
		}
		do(name)
		if at = aligned(at + int(fileSize)); at > len(data) {
			return nil, errArchive
		}
	}
}

func aligned(n int) int { return (n + 3) &^ 3 }
