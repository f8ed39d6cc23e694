package loader

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
)

// Keyring is one of the kernel's keyrings of certificates, as keyctl(1) shows it.
type Keyring struct {
	Name string   // .builtin_trusted_keys, .secondary_trusted_keys, .machine (since Linux 5.18) or .platform
	Keys []string // NAME: HEX OF ITS ID, of the certificates that it holds itself
	Err  error    // why its keys are not known
}

// The keyrings that signatures of modules are looked for in: the first three by every kernel (verify_pkcs7_signature, certs/system_keyring.c;
// the second leads to the others), .platform, which has the firmware's own keys, by those of Debian, Fedora and Ubuntu.
var keyrings = []string{".builtin_trusted_keys", ".secondary_trusted_keys", ".machine", ".platform"}

// Keyrings are the keyrings of the running kernel that this user may see: none but for root. A root other than "/" has none.
func Keyrings(root kernel.Root) (all []Keyring, err error) {
	if !root.IsHost() {
		return nil, nil
	}
	text, err := root.ReadFile("/proc/keys")
	if err != nil {
		return nil, fmt.Errorf("read keyrings: %w", err)
	}
	ids := keyringIDs(string(text))
	for _, name := range keyrings {
		id, ok := ids[name]
		if !ok {
			continue
		}
		k := Keyring{Name: name}
		k.Keys, k.Err = keysOf(id)
		all = append(all, k)
	}
	return all, nil
}

// keyringIDs reads the serial numbers of keyrings from /proc/keys (proc_keys(5)):
//
//	1ae5a7c8 I------ 1 perm 1f0b0000 0 0 keyring   .machine: 1
func keyringIDs(text string) map[string]int {
	ids := map[string]int{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 9 || f[7] != "keyring" {
			continue
		}
		if id, err := strconv.ParseUint(f[0], 16, 31); err == nil {
			ids[strings.TrimSuffix(f[8], ":")] = int(id)
		}
	}
	return ids
}

// keysOf are the certificates of a keyring: keyctl(2), KEYCTL_READ and KEYCTL_DESCRIBE.
func keysOf(id int) (names []string, err error) {
	const room = 4096 // keys
	members := make([]byte, 4*room)
	n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, members, len(members))
	if err != nil {
		return nil, fmt.Errorf("read keyring: %w", err)
	}
	for members = members[:min(n, len(members))]; len(members) >= 4; members = members[4:] {
		described, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, int(int32(binary.NativeEndian.Uint32(members))))
		if err != nil {
			return names, fmt.Errorf("describe key: %w", err)
		}
		// type;uid;gid;permissions;description
		if f := strings.SplitN(described, ";", 5); len(f) == 5 && f[0] == "asymmetric" {
			names = append(names, f[4])
		}
	}
	return names, nil
}
