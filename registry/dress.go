package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"kmodctl/internal/ko"
	"kmodctl/internal/modsig"
)

// Dressed is the file that is installed in the place of an artifact's own .ko: the same module
// signed, compressed or both. It is a blob of its own.
type Dressed struct {
	Digest      string // SHA-256 in hex of the file
	Size        int64  // bytes
	Signer      string // as that of an Install
	Compression string // "", gzip, xz or zstd
}

// Dress leads from the digest of an artifact's .ko to the file that is installed in its place.
// What it does not name is installed as it is.
type Dress map[string]Dressed

// of is how a module is to be installed.
func (d Dress) of(m Module) Dressed {
	if dressed, ok := d[m.Digest]; ok {
		return dressed
	}
	return Dressed{Digest: m.Digest, Size: m.Size}
}

// SignerUnknown is the signer of a file that has a signature of which it is not known by which
// certificate: another program has made it, or the row that said so is lost.
const SignerUnknown = "unknown"

// PutDressed keeps the file that is to be installed in the place of a module's own; nothing is installed yet.
// signer is as that of an Install. A file that is another module, or is signed when signer says that it is not, is
// refused.
func (r *Registry) PutDressed(ctx context.Context, m Module, file []byte, signer string) (Dressed, error) {
	d, err := r.putDressed(ctx, m, file, signer)
	if err != nil {
		return Dressed{}, fmt.Errorf("store installed form of %s: %w", m.File, err)
	}
	return d, nil
}

func (r *Registry) putDressed(ctx context.Context, m Module, file []byte, signer string) (d Dressed, err error) {
	own, err := r.undressed(m.Digest)
	if err != nil {
		return d, err
	}
	is, err := undress(file)
	switch {
	case err != nil:
		return d, err
	case !bytes.Equal(is.image, own.image):
		return d, errors.New("it is another module")
	case is.signed != (signer != ""):
		return d, fmt.Errorf("signed: %v, and its signer is %q", is.signed, signer)
	}
	d = Dressed{Signer: signer, Compression: is.compression}
	d.Digest, d.Size, err = r.PutBlob(ctx, bytes.NewReader(file))
	return d, err
}

// bareModule is a module's file taken apart.
type bareModule struct {
	image       []byte // without compression and signature
	compression string
	signed      bool
}

func undress(file []byte) (b bareModule, err error) {
	plain, compression, err := ko.Decompress(file)
	if err != nil {
		return b, err
	}
	image, signature, err := modsig.Split(plain)
	return bareModule{image, compression, signature != nil}, err
}

// undressed reads the blob of a module.
func (r *Registry) undressed(digest string) (bareModule, error) {
	blob, err := r.Blob(digest)
	if err != nil {
		return bareModule{}, err
	}
	defer blob.Close()
	file, err := io.ReadAll(blob)
	if err != nil {
		return bareModule{}, err
	}
	return undress(file)
}
