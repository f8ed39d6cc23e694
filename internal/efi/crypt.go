package efi

import (
	"bytes"
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/go-crypt/x/crypt"
)

// Crypt is a password as MokManager compares it: hashed by the "$6$" of crypt(5), SHA-512.
type Crypt struct {
	text   string
	rounds uint64
	salt   string
	hash   [sha512.Size]byte
}

const (
	cryptDefault = 5000 // rounds when the text names none
	cryptSalt    = 16   // characters at most
	cryptDigits  = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// ErrPassword says: MokManager reads 1 to 256 characters of ASCII, from a keyboard that it takes for an American one.
var ErrPassword = errors.New("a password of MokManager has 1 to 256 characters, all of ASCII")

// HashPassword hashes a password with a salt of its own.
func HashPassword(password string) (Crypt, error) {
	salt := make([]byte, cryptSalt)
	rand.Read(salt)
	for i := range salt {
		salt[i] = cryptDigits[salt[i]%64]
	}
	return hashPassword(password, string(salt))
}

func hashPassword(password, salt string) (Crypt, error) {
	if len(password) < 1 || len(password) > 256 || strings.ContainsFunc(password, func(r rune) bool { return r < ' ' || r > '~' }) {
		return Crypt{}, ErrPassword
	}
	return ParseCrypt("$6$" + salt + "$" + string(crypt.KeySHACrypt(sha512.New, []byte(password), []byte(salt), cryptDefault)))
}

// String is the hash as crypt(5) has it, and mokutil --hash-file takes it.
func (c Crypt) String() string { return c.text }

// ParseCrypt reads what mokutil --generate-hash and openssl passwd -6 print: $6$[rounds=N$]SALT$HASH.
func ParseCrypt(text string) (Crypt, error) {
	c := Crypt{text: strings.TrimSpace(text), rounds: cryptDefault}
	rest, ok := strings.CutPrefix(c.text, "$6$")
	if !ok {
		return Crypt{}, errors.New("read password hash: it does not begin with $6$ (SHA-512; mokutil --generate-hash makes such)")
	}
	if number, after, ok := strings.Cut(rest, "$"); ok && strings.HasPrefix(number, "rounds=") {
		n, err := strconv.ParseUint(strings.TrimPrefix(number, "rounds="), 10, 32)
		if err != nil {
			return Crypt{}, fmt.Errorf("read password hash: %w", err)
		}
		c.rounds, rest = n, after
	}
	salt, encoded, ok := strings.Cut(rest, "$")
	if !ok || len(salt) > cryptSalt {
		return Crypt{}, fmt.Errorf("read password hash: no salt of at most %d characters", cryptSalt)
	}
	c.salt = salt
	hash, err := decodeCrypt(encoded)
	c.hash = hash
	return c, err
}

// decodeCrypt turns the 86 characters of a hash into its bytes. Four characters, of six bits each, the lowest first, are
// three bytes, which stand at a third of the hash from each other; the last two are its last byte.
func decodeCrypt(text string) (hash [sha512.Size]byte, err error) {
	if len(text) != 86 {
		return hash, fmt.Errorf("read password hash: %d characters, not 86", len(text))
	}
	bits := func(part string) (n int) {
		for i := range len(part) {
			digit := strings.IndexByte(cryptDigits, part[i])
			if digit < 0 {
				err = fmt.Errorf("read password hash: %q is none of its characters", part[i])
			}
			n |= digit << (6 * i)
		}
		return n
	}
	high, middle, low := 0, 21, 42
	for i := 0; i < 84; i += 4 {
		n := bits(text[i : i+4])
		hash[high], hash[middle], hash[low] = byte(n>>16), byte(n>>8), byte(n)
		high, middle, low = middle+1, low+1, high+1
	}
	hash[63] = byte(bits(text[84:]))
	return hash, err
}

// auth is the hash as MokManager reads it from MokAuth: PASSWORD_CRYPT of shim's PasswordCrypt.h, packed.
func (c Crypt) auth() []byte {
	const sha512Based = 4
	var salt [32]byte
	var hash [128]byte
	copy(salt[:], c.salt)
	copy(hash[:], c.hash[:])
	var b bytes.Buffer
	for _, field := range []any{uint16(sha512Based), c.rounds, uint16(len(c.salt)), salt, hash} {
		binary.Write(&b, binary.LittleEndian, field) // a Buffer takes all
	}
	return b.Bytes()
}
