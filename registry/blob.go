package registry

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	blobDir    = "blobs/sha256"
	blobTemp   = ".tmp-" // begins the name of a blob that is being written
	digestSize = 2 * sha256.Size
)

// BlobPath returns the path of a blob's file, whether it exists or not.
func (r *Registry) BlobPath(digest string) string {
	return filepath.Join(r.dir, blobDir, digest)
}

// Blob opens a blob. Its content is checked as it is read: the end of a damaged
// one is a *CorruptError instead of io.EOF, so use nothing before the end came.
func (r *Registry) Blob(digest string) (io.ReadCloser, error) {
	if err := checkDigest(digest); err != nil {
		return nil, err
	}
	if r.tree == nil {
		return nil, &fs.PathError{Op: "open", Path: r.BlobPath(digest), Err: fs.ErrNotExist}
	}
	f, err := r.tree.Open(filepath.Join(blobDir, digest))
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: r.BlobPath(digest), Err: errors.Unwrap(err)}
	}
	return &blobReader{f, sha256.New(), digest}, nil
}

type blobReader struct {
	*os.File
	sum  hash.Hash
	want string
}

func (b *blobReader) Read(p []byte) (int, error) {
	n, err := b.File.Read(p)
	b.sum.Write(p[:n])
	if err == io.EOF {
		if got := hexSum(b.sum); got != b.want {
			return n, &CorruptError{Path: b.Name(), Want: b.want, Got: got}
		}
	}
	return n, err
}

// WriteTo keeps io.Copy from reading the file behind our back.
func (b *blobReader) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{b})
}

// PutBlob keeps what src yields and returns its digest and its size in bytes.
// When it returns, the blob is durable.
func (r *Registry) PutBlob(ctx context.Context, src io.Reader) (digest string, size int64, err error) {
	digest, size, err = r.stageBlob(func(w io.Writer) error {
		_, err := io.Copy(w, contextReader{ctx, src})
		return err
	})
	if err == nil {
		err = syncDir(r.tree, blobDir)
	}
	if err != nil {
		return "", 0, fmt.Errorf("store blob: %w", err)
	}
	return digest, size, nil
}

// stageBlob stores what fill writes. Its name is durable only once blobDir is
// synced. A blob that is already there is replaced, which heals a damaged one.
func (r *Registry) stageBlob(fill func(io.Writer) error) (digest string, size int64, err error) {
	if r.lock == nil {
		return "", 0, ErrReadOnly
	}
	temp := filepath.Join(blobDir, blobTemp+rand.Text())
	f, err := r.tree.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return "", 0, err
	}
	defer func() {
		if err != nil {
			r.tree.Remove(temp)
		}
	}()
	sum := sha256.New()
	if err := errors.Join(fill(io.MultiWriter(f, sum)), f.Chmod(0o444), f.Sync()); err != nil {
		f.Close()
		return "", 0, err
	}
	info, err := f.Stat()
	if err := errors.Join(err, f.Close()); err != nil {
		return "", 0, err
	}
	digest = hexSum(sum)
	return digest, info.Size(), r.tree.Rename(temp, filepath.Join(blobDir, digest))
}

// sweepBlobs removes blobs that a killed writer had not finished.
func (r *Registry) sweepBlobs() error {
	names, err := readNames(r.tree, blobDir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, blobTemp) {
			continue
		}
		if err := r.tree.Remove(filepath.Join(blobDir, name)); err != nil {
			return err
		}
		r.note("removed unfinished blob %s", name)
	}
	return nil
}

// readNames lists a folder of tree, in no order; one that does not exist is empty.
func readNames(tree *os.Root, name string) ([]string, error) {
	d, err := tree.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// contextReader ends with the cause when ctx is done.
type contextReader struct {
	ctx context.Context
	src io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.src.Read(p)
}

// hexOf is the digest of a text.
func hexOf(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

func hexSum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// checkDigest keeps anything but a digest from becoming a path.
func checkDigest(digest string) error {
	if _, err := hex.DecodeString(digest); err != nil || len(digest) != digestSize || digest != strings.ToLower(digest) {
		return fmt.Errorf("open blob: %q is not a sha256 in hex", digest)
	}
	return nil
}
