package loader

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"kmodctl/internal/ko"
	"kmodctl/internal/modsig"
)

// access judges whether the running kernel may read the file at all: kernel_read_file in fs/kernel_read_file.c. What is
// compressed may be handed to it unpacked, from memory.
func (c *check) access(path, compression string) {
	p := c.target.policy()
	if p == nil || compression != "" {
		return
	}
	if openForWriting(path) {
		c.refuse(CauseFileBusy, unix.ETXTBSY, "the file is open for writing", c.writers(path)...)
	}
	if p.appraises && !hasIMASignature(path) {
		c.refuse(CauseIMA, unix.EACCES, "IMA appraises modules, and the file has no signature for it", "ima_policy=secure_boot is on the kernel command line", "no security.ima attribute with a signature")
	}
}

// openForWriting reports whether anybody has the file open for writing, which is what a read lease is refused for: fcntl(2),
// F_SETLEASE. It is false where this user may not ask, or the file system has no leases.
func openForWriting(path string) bool {
	if !isRegular(path) {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close() // and so the lease ends
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	return errors.Is(err, unix.EAGAIN)
}

// writers are the processes that have the file open for writing, as far as this user may see them.
func (c *check) writers(path string) (found []string) {
	want, err := os.Stat(path)
	if err != nil {
		return nil
	}
	fds, _ := filepath.Glob(under(c.target.root, "proc/[0-9]*/fd/*"))
	for _, fd := range fds {
		if st, err := os.Stat(fd); err != nil || !os.SameFile(want, st) {
			continue
		}
		process := filepath.Dir(filepath.Dir(fd))
		if writes(filepath.Join(process, "fdinfo", filepath.Base(fd))) {
			who := fmt.Sprintf("process %s (%s) has it open", filepath.Base(process), readLine(process+"/comm"))
			if !slices.Contains(found, who) {
				found = append(found, who)
			}
		}
	}
	return found
}

// writes reads the flags in octal of /proc/PID/fdinfo/FD, proc_pid_fdinfo(5).
func writes(fdinfo string) bool {
	text, _ := os.ReadFile(fdinfo)
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(value), 8, 32)
			return err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY
		}
	}
	return false
}

// hasIMASignature reports whether the file's attribute security.ima is a signature, not a mere hash: enum
// evm_ima_xattr_type, security/integrity/integrity.h.
func hasIMASignature(path string) bool {
	const digitalSignature, veritySignature = 3, 6
	attribute := make([]byte, 4096)
	n, err := unix.Getxattr(path, "security.ima", attribute)
	return err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) ||
		n > 0 && (attribute[0] == digitalSignature || attribute[0] == veritySignature)
}

// content judges whether the file still is what a key signed that the kernel has: pkcs7_verify in crypto/asymmetric_keys. A
// kernel refuses what such a key signed and somebody changed, even where it takes unsigned modules.
func (c *check) content(info *ko.Info, path string) {
	s := info.Signature
	if s == nil || s.IDType != modsig.PKCS7 || c.target.intree(path) {
		return
	}
	ownKey := false // the kernel's own modules were signed with it: it is in the image
	if ref := c.target.reference(); c.target.Thorough && ref != nil && ref.Signature != nil {
		ownKey = ref.Signature.Signer == s.Signer && ref.Signature.KeyID == s.KeyID
	}
	var certs []*x509.Certificate
	if !ownKey && c.target.Trusted != nil {
		certs = c.target.Trusted()
	}
	if !ownKey && len(certs) == 0 {
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return
	}
	if data, _, err = ko.Decompress(data); err != nil {
		return
	}
	signed, signature, err := modsig.Split(data)
	if err != nil {
		return
	}
	if ownKey {
		image, err := c.target.vmlinux()
		if err != nil {
			return
		}
		certs = image.Certificates()
	}
	if _, err := signature.Verify(signed, certs); errors.Is(err, modsig.ErrChanged) {
		c.refuse(CauseSignatureDiffers, unix.EKEYREJECTED, "the file has changed since it was signed by a key that the kernel has",
			fmt.Sprintf("signed by %s, key %s, %s", s.Signer, s.KeyID, s.Hash))
	}
}
