package registry

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
)

// Names in an export archive, below its one folder NAME-VERSION.
const (
	sumsFile    = "SHA256SUMS"
	packageFile = "package.json"
)

// parcelSchema is the version of the export archive's form.
const parcelSchema = 1

// parcel is package.json: what an export archive is of.
type parcel struct {
	Schema    int      `json:"schema"`
	Name      string   `json:"name"`
	Version   string   `json:"version"`
	Source    string   `json:"source"`    // digest of the source's archive
	Artifacts []string `json:"artifacts"` // digests of their records, sorted; one for each kernel release
}

// folder is the name of the one folder in the archive.
func (p parcel) folder() string { return p.Name + "-" + p.Version }

// text is package.json as Export writes it, which is the only way that Import takes.
func (p parcel) text() ([]byte, error) {
	text, err := json.Marshal(p)
	return append(text, '\n'), err
}

// Export writes a source and artifacts of it as one tar archive, which Import and
// tar(1) read and `sha256sum -c SHA256SUMS` checks. The same content gives the same
// bytes, on every machine and in every order. Blobs are checked as they are read:
// after an error, a *CorruptError among them, what was written is not to be used. Logs
// that are gone are left out.
func (r *Registry) Export(ctx context.Context, src Source, as []Artifact, w io.Writer) error {
	if err := r.export(ctx, src, as, w); err != nil {
		return fmt.Errorf("export %s@%s: %w", src.Name, src.Version, err)
	}
	return nil
}

func (r *Registry) export(ctx context.Context, src Source, as []Artifact, w io.Writer) error {
	p := parcel{parcelSchema, src.Name, src.Version, src.Digest, []string{}}
	blobs := []string{src.Digest}
	for _, a := range as {
		p.Artifacts = append(p.Artifacts, a.Digest)
		blobs = append(blobs, r.blobsHere(a)...)
	}
	slices.Sort(p.Artifacts)
	slices.Sort(blobs)
	blobs = slices.Compact(blobs)
	text, err := p.text()
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	if err := putFile(tw, path.Join(p.folder(), sumsFile), sums(blobs, text)); err != nil {
		return err
	}
	if err := putFile(tw, path.Join(p.folder(), packageFile), text); err != nil {
		return err
	}
	for _, d := range blobs {
		if err := r.putBlobFile(ctx, tw, path.Join(p.folder(), blobDir, d), d); err != nil {
			return err
		}
	}
	return tw.Close()
}

// blobsHere names the blobs of an artifact, without a log that is gone.
func (r *Registry) blobsHere(a Artifact) []string {
	return slices.DeleteFunc(a.blobs(), func(d string) bool {
		if d == "" || d != a.Log {
			return d == ""
		}
		_, err := r.tree.Lstat(path.Join(blobDir, d))
		return errors.Is(err, fs.ErrNotExist)
	})
}

// sums is the text of SHA256SUMS.
func sums(blobs []string, pkg []byte) []byte {
	var b bytes.Buffer
	for _, d := range blobs {
		fmt.Fprintf(&b, "%s  %s/%s\n", d, blobDir, d)
	}
	fmt.Fprintf(&b, "%s  %s\n", hexOf(pkg), packageFile)
	return b.Bytes()
}

// exportHeader says of a file what is the same on every machine.
func exportHeader(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}
}

func putFile(tw *tar.Writer, name string, text []byte) error {
	if err := tw.WriteHeader(exportHeader(name, int64(len(text)))); err != nil {
		return err
	}
	_, err := tw.Write(text)
	return err
}

func (r *Registry) putBlobFile(ctx context.Context, tw *tar.Writer, name, digest string) error {
	blob, err := r.Blob(digest)
	if err != nil {
		return err
	}
	defer blob.Close()
	info, err := blob.(*blobReader).Stat()
	if err != nil {
		return err
	}
	if info.Size() > maxBlob {
		return fmt.Errorf("%s is too big for an archive: %d bytes, of %d at most", r.BlobPath(digest), info.Size(), maxBlob)
	}
	if err := tw.WriteHeader(exportHeader(name, info.Size())); err != nil {
		return err
	}
	_, err = io.Copy(tw, contextReader{ctx, blob})
	return err
}
