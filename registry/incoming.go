package registry

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// incoming is an archive that is being received: nothing of it is in the registry.
type incoming struct {
	ctx   context.Context
	dir   string
	stage *os.Root // dir: the blobs, named by digest

	top   string            // the archive's one folder
	sums  map[string]string // SHA-256 of each file, by its path below top
	small map[string][]byte // files that are no blobs
	sizes map[string]int64  // of the blobs, by digest
	seen  []string          // folders
	total int64

	parcel    parcel
	source    Source
	artifacts []Artifact
	records   map[string]string // text by digest

	recordBytes int64
}

// refuse is an error about an entry, given by its path below the archive's folder.
func (in *incoming) refuse(name, format string, args ...any) error {
	return &ArchiveError{Entry: in.top + "/" + name, Err: fmt.Errorf(format, args...)}
}

func blobName(digest string) string { return blobDir + "/" + digest }

// receive reads the archive once and keeps its files in the stage.
func (in *incoming) receive(src io.Reader) error {
	tr := tar.NewReader(src)
	last := "its beginning"
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF && n > 0 {
			return in.checkEnd(src)
		} else if err == io.EOF || n == 0 && errors.Is(err, tar.ErrHeader) {
			return &ArchiveError{Entry: last, Err: errors.New("this is not how a tar archive begins")}
		} else if err != nil {
			return &ArchiveError{Entry: "after " + last, Err: err}
		}
		if n == maxEntries {
			return &ArchiveError{Entry: h.Name, Err: fmt.Errorf("it is one too many, %d are allowed", maxEntries)}
		}
		if err := in.take(h, tr); err != nil {
			return err
		}
		last = h.Name
	}
}

// checkEnd reads what is behind the end: zeros, and a pipe's writer wants them read.
func (in *incoming) checkEnd(src io.Reader) error {
	rest, err := io.ReadAll(io.LimitReader(src, maxPadding+1))
	if err != nil {
		return err
	}
	if len(rest) > maxPadding || len(bytes.Trim(rest, "\x00")) > 0 {
		return &ArchiveError{Entry: "its end", Err: errors.New("something follows it")}
	}
	return nil
}

// take keeps one entry, which must be one that Export writes, or a folder of those.
func (in *incoming) take(h *tar.Header, body io.Reader) error {
	bad := func(format string, args ...any) error {
		return &ArchiveError{Entry: h.Name, Err: fmt.Errorf(format, args...)}
	}
	top, name, ok := strings.Cut(h.Name, "/")
	if !ok || !plainName(top) || in.top != "" && in.top != top {
		return bad("is not in one folder NAME-VERSION with all others")
	}
	in.top = top
	_, twice := in.sums[name]
	switch {
	case twice || slices.Contains(in.seen, name):
		return bad("comes twice")
	case isSparse(h):
		return bad("is a file with holes")
	case h.Typeflag == tar.TypeDir && slices.Contains([]string{"", "blobs/", blobDir + "/"}, name):
		in.seen = append(in.seen, name) // tar writes them when it packs a folder
		return nil
	case h.Typeflag != tar.TypeReg:
		return bad("is %s", kindOf(h))
	}
	if in.total += h.Size; in.total > maxArchive {
		return bad("the archive is too big, %d bytes are allowed", maxArchive)
	}
	digest, isBlob := strings.CutPrefix(name, blobDir+"/")
	switch {
	case name == sumsFile || name == packageFile:
		return in.takeSmall(h, name, body)
	case isBlob && checkDigest(digest) == nil:
		return in.takeBlob(h, name, digest, body)
	}
	return bad("is not a file that an archive has")
}

func (in *incoming) takeSmall(h *tar.Header, name string, body io.Reader) error {
	if h.Size > maxSmall {
		return in.refuse(name, "it has %d bytes, %d are allowed", h.Size, maxSmall)
	}
	text, err := io.ReadAll(body)
	if err != nil {
		return &ArchiveError{Entry: h.Name, Err: err}
	}
	in.small[name], in.sums[name] = text, hexOf(text)
	return nil
}

func (in *incoming) takeBlob(h *tar.Header, name, digest string, body io.Reader) error {
	if h.Size > maxBlob {
		return in.refuse(name, "it has %d bytes, %d are allowed", h.Size, maxBlob)
	}
	f, err := in.stage.OpenFile(digest, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	sum, src := sha256.New(), &readErr{r: body}
	_, err = io.Copy(io.MultiWriter(f, sum), src)
	if err := errors.Join(err, f.Chmod(0o444), f.Sync(), f.Close()); err != nil {
		if src.err != nil {
			return &ArchiveError{Entry: h.Name, Err: src.err}
		}
		return fmt.Errorf("keep %s: %w", name, err)
	}
	if got := hexSum(sum); got != digest {
		return in.refuse(name, "its sha256 is %s", got)
	}
	in.sums[name], in.sizes[digest] = digest, h.Size
	return nil
}

// readErr remembers how reading failed, to tell it from how writing did.
type readErr struct {
	r   io.Reader
	err error
}

func (r *readErr) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != io.EOF {
		r.err = err
	}
	return n, err
}

// check makes sure that the archive is whole and agrees with itself.
func (in *incoming) check(judge Judge) error {
	if err := in.checkSums(); err != nil {
		return err
	}
	if err := in.readParcel(); err != nil {
		return err
	}
	if err := in.readRecords(); err != nil {
		return err
	}
	if err := in.checkNamed(); err != nil {
		return err
	}
	file, err := in.readSource(judge.Manifests)
	if err != nil {
		return in.refuseSource(err)
	}
	if err := judge.Source(in.source.Name, in.source.Version, file, in.source.Manifest); err != nil {
		return in.refuseSource(err)
	}
	for _, a := range in.artifacts {
		for _, m := range a.Modules {
			if err := judge.Module(a, m, filepath.Join(in.dir, m.Digest)); err != nil {
				return in.refuse(blobName(m.Digest), "%w", err)
			}
		}
	}
	return nil
}

// checkSums holds SHA256SUMS against the files, both ways.
func (in *incoming) checkSums() error {
	text, ok := in.small[sumsFile]
	if !ok {
		return in.refuse(sumsFile, "is missing")
	}
	left := maps.Clone(in.sums)
	delete(left, sumsFile)
	for line := range strings.Lines(string(text)) {
		sum, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		got, here := left[name]
		switch {
		case !ok || checkDigest(sum) != nil:
			return in.refuse(sumsFile, "has the line %s", printable(strings.TrimSuffix(line, "\n")))
		case !here:
			return in.refuse(name, "is in %s, but not in the archive, or twice", sumsFile)
		case got != sum:
			return in.refuse(name, "its sha256 is %s, not %s as in %s", got, sum, sumsFile)
		}
		delete(left, name)
	}
	for name := range left {
		return in.refuse(name, "is not in %s", sumsFile)
	}
	return nil
}

func (in *incoming) readParcel() error {
	text, ok := in.small[packageFile]
	if !ok {
		return in.refuse(packageFile, "is missing")
	}
	p := &in.parcel
	if err := json.Unmarshal(text, p); err != nil {
		return in.refuse(packageFile, "%w", err)
	}
	if p.Schema != parcelSchema {
		return in.refuse(packageFile, "it has schema %d, this kmodctl knows %d", p.Schema, parcelSchema)
	}
	same, err := p.text()
	switch {
	case err != nil:
		return err
	case !bytes.Equal(same, text) || p.Artifacts == nil:
		return in.refuse(packageFile, "is not as kmodctl writes it")
	case !plainName(p.Name) || !plainName(p.Version) || p.folder() != in.top:
		return in.refuse(packageFile, "is of %s@%s", printable(p.Name), printable(p.Version))
	case !slices.IsSorted(p.Artifacts):
		return in.refuse(packageFile, "its artifacts are not sorted")
	}
	for _, d := range append(slices.Clone(p.Artifacts), p.Source) {
		if _, here := in.sizes[d]; !here {
			return in.refuse(packageFile, "names %s, which is not in the archive", printable(d))
		}
	}
	return nil
}

// readRecords reads the artifacts, of which there is one for each kernel release.
func (in *incoming) readRecords() error {
	in.records = map[string]string{}
	releases := map[string]bool{}
	for _, d := range in.parcel.Artifacts {
		a, err := in.readRecord(d)
		if err == nil && releases[a.Release] {
			err = fmt.Errorf("a second artifact for %s", a.Release)
		}
		if err != nil {
			return in.refuse(blobName(d), "%w", err)
		}
		releases[a.Release] = true
		in.artifacts = append(in.artifacts, a)
	}
	slices.SortFunc(in.artifacts, func(a, b Artifact) int { return strings.Compare(a.Release, b.Release) })
	return nil
}

func (in *incoming) readRecord(digest string) (Artifact, error) {
	if in.recordBytes += in.sizes[digest]; in.recordBytes > maxSmall {
		return Artifact{}, fmt.Errorf("the records are too big, %d bytes are allowed", maxSmall)
	}
	text, err := in.stage.ReadFile(digest)
	if err != nil {
		return Artifact{}, err
	}
	a, err := parseRecord(digest, text)
	if err != nil {
		return a, err
	}
	in.records[digest] = string(text)
	return a, in.checkRecord(a)
}

// parseRecord reads a record that is exactly as PutArtifact writes it: another JSON
// reader, such as SQLite's, must find the same in it.
func parseRecord(digest string, text []byte) (Artifact, error) {
	a, err := readRecord(digest, text)
	if err != nil {
		return a, fmt.Errorf("read record: %w", err)
	}
	bare := a
	bare.Digest = ""
	same, err := json.Marshal(record{recordSchema, bare})
	if err == nil && !bytes.Equal(same, text) {
		err = errors.New("a record that is not as kmodctl writes it")
	}
	return a, err
}

func (in *incoming) checkRecord(a Artifact) error {
	switch {
	case a.Package != in.parcel.Name || a.Version != in.parcel.Version:
		return fmt.Errorf("a record of %s@%s", printable(a.Package), printable(a.Version))
	case !plainName(a.Release):
		return fmt.Errorf("%q is not a kernel release", a.Release)
	case len(a.Modules) == 0:
		return errors.New("a record without modules")
	case a.Log != "" && checkDigest(a.Log) != nil:
		return fmt.Errorf("its log %q is not a sha256", a.Log)
	}
	names := map[string]bool{}
	for _, m := range a.Modules {
		size, here := in.sizes[m.Digest]
		switch {
		case names[m.Name]:
			return fmt.Errorf("module %s is named twice", m.Name)
		case !here:
			return fmt.Errorf("module %s: %s is not in the archive", m.Name, printable(m.Digest))
		case size != m.Size || size > maxModule:
			return fmt.Errorf("module %s: its file has %d bytes", m.Name, size)
		}
		names[m.Name] = true
	}
	return nil
}

// checkNamed makes sure that every blob belongs to the package.
func (in *incoming) checkNamed() error {
	named := map[string]bool{in.parcel.Source: true}
	for _, a := range in.artifacts {
		for _, d := range a.blobs() {
			named[d] = true
		}
	}
	for d := range in.sizes {
		if !named[d] {
			return in.refuse(blobName(d), "belongs to nothing in the archive")
		}
	}
	return nil
}

// readSource reads the files' list and the manifest out of the source's archive.
func (in *incoming) readSource(manifests []string) (file string, err error) {
	in.source = Source{Name: in.parcel.Name, Version: in.parcel.Version, Digest: in.parcel.Source, Added: time.Now().UTC()}
	blob, err := in.stage.Open(in.source.Digest)
	if err != nil {
		return "", err
	}
	defer blob.Close()
	if in.source.Files, err = readArchive(in.ctx, blob, in.source.Digest); err != nil {
		return "", err
	}
	if _, err := blob.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	here := func(name string) bool {
		return slices.ContainsFunc(in.source.Files, func(f File) bool { return f.Path == name })
	}
	file = manifests[max(slices.IndexFunc(manifests, here), 0)]
	if in.source.Manifest, err = readSourceFile(blob, in.source.Files, file); err != nil {
		return "", err
	}
	return file, checkManifest(in.source.Files, in.source.Manifest)
}

func (in *incoming) refuseSource(err error) error {
	return in.refuse(blobName(in.parcel.Source), "%w", err)
}

// plainName reports whether s can be one name in a path and in a line of text.
func plainName(s string) bool {
	odd := func(c rune) bool { return c <= ' ' || c > '~' || c == '/' }
	return s != "" && len(s) <= 255 && s[0] != '.' && s[0] != '-' && !strings.ContainsFunc(s, odd)
}
