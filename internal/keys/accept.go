package keys

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"
	"strings"

	"kmodctl/internal/kernel"
)

// hashOptions are the kernel's options of each hash, without CONFIG_.
var hashOptions = map[string]string{
	"sha1": "CRYPTO_SHA1", "sha224": "CRYPTO_SHA256", "sha256": "CRYPTO_SHA256", "sha384": "CRYPTO_SHA512", "sha512": "CRYPTO_SHA512",
	"sha3-256": "CRYPTO_SHA3", "sha3-384": "CRYPTO_SHA3", "sha3-512": "CRYPTO_SHA3",
}

// sha3Since is the first kernel whose parser of signatures knows SHA-3 (crypto/asymmetric_keys/pkcs7_parser.c).
const sha3Since = "6.7"

// Refusal says why a kernel would not verify a signature of k over a hash, "" if it would, or looks at none. What the
// kernel has as a module only does not count: whether it is loaded when a signature is read is nobody's to say.
func (k Key) Refusal(release kernel.Release, hash string) (string, error) {
	if release.Tree == nil {
		return "", nil
	}
	config := release.Tree.Config
	if checks, err := config.Get("MODULE_SIG"); err != nil || checks != "y" {
		return "", err
	}
	wanted := map[string]string{hashOptions[hash]: hash}
	if _, ok := k.Cert.PublicKey.(*ecdsa.PublicKey); ok {
		wanted["CRYPTO_ECDSA"] = "ECDSA"
	}
	for option, what := range wanted {
		value, err := config.Get(option)
		if err != nil {
			return "", err
		}
		if value != "y" {
			return fmt.Sprintf("it does not verify %s: CONFIG_%s=%s", what, option, value), nil
		}
	}
	if strings.HasPrefix(hash, "sha3-") && kernel.VersionOf(release.Name).Compare(kernel.VersionOf(sha3Since)) < 0 {
		return fmt.Sprintf("it does not know %s in a signature: that is since %s", hash, sha3Since), nil
	}
	return "", nil
}

// Algorithm is the kind of key in words: "RSA 2048", "ECDSA P-384".
func (k Key) Algorithm() string {
	switch public := k.Cert.PublicKey.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", public.Size()*8)
	case *ecdsa.PublicKey:
		return "ECDSA " + public.Params().Name
	}
	return k.Cert.PublicKeyAlgorithm.String()
}
