package registry

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"strings"
)

// Above these, what a source's archive holds is not a module's source.
const (
	maxSourceFiles = 250_000 // Linux itself has 90,000
	maxPath        = 4096    // bytes, PATH_MAX of Linux
	maxManifest    = 1 << 20 // bytes
	maxLinks       = 40      // links on the way to a file, as Linux follows
	maxSteps       = 1 << 20 // names on the way of all links together
)

// fileHeader is a file's header in the archive of a source.
func fileHeader(f File) *tar.Header {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: f.Path, Mode: int64(f.Mode), Size: f.Size, Format: tar.FormatPAX}
	if f.Link != "" {
		h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
	}
	return h
}

// readArchive lists the files of a source's archive, and makes sure that it is one
// which archive could have written, byte for byte: digest is its SHA-256.
func readArchive(ctx context.Context, src io.Reader, digest string) ([]File, error) {
	var files sourceFiles
	sum := sha256.New()
	tw := tar.NewWriter(sum)
	for tr := tar.NewReader(contextReader{ctx, src}); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			return nil, err
		}
		if err := files.take(h, tr, tw); err != nil {
			return nil, fmt.Errorf("%s: %w", printable(h.Name), err)
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	if hexSum(sum) != digest {
		return nil, errors.New("the source's archive is not as kmodctl writes it")
	}
	for _, f := range files.list {
		if f.Link == "" {
			continue
		}
		if _, inside := files.resolve(f.Path); !inside {
			return nil, fmt.Errorf("link %s leads out of the source: %s", printable(f.Path), printable(f.Link))
		}
	}
	return files.list, nil
}

// sourceFiles are the files of a source, sorted, and where they are by path.
type sourceFiles struct {
	list  []File
	at    map[string]int
	steps int // of resolve, so far
}

func newSourceFiles(list []File) sourceFiles {
	s := sourceFiles{list: list, at: map[string]int{}}
	for i, f := range list {
		s.at[f.Path] = i
	}
	return s
}

// take adds an entry and writes it to tw as archive would.
func (s *sourceFiles) take(h *tar.Header, body io.Reader, tw *tar.Writer) error {
	f := File{Path: h.Name, Mode: uint32(h.Mode), Size: h.Size, Link: h.Linkname}
	if err := s.check(f, h); err != nil {
		return err
	}
	if err := tw.WriteHeader(fileHeader(f)); err != nil {
		return err
	}
	if f.Link == "" {
		sum := sha256.New()
		if _, err := io.Copy(io.MultiWriter(tw, sum), body); err != nil {
			return err
		}
		f.SHA256 = hexSum(sum)
	}
	if s.at == nil {
		s.at = map[string]int{}
	}
	s.at[f.Path] = len(s.list)
	s.list = append(s.list, f)
	return nil
}

func (s *sourceFiles) check(f File, h *tar.Header) error {
	switch {
	case len(s.list) == maxSourceFiles:
		return fmt.Errorf("a source has %d files at most", maxSourceFiles)
	case isSparse(h) || h.Typeflag != tar.TypeReg && (h.Typeflag != tar.TypeSymlink || f.Link == ""):
		return errors.New("is of a kind that sources do not have: " + kindOf(h))
	case len(f.Path) > maxPath || len(f.Link) > maxPath:
		return fmt.Errorf("is longer than %d bytes", maxPath)
	case path.Clean(f.Path) != f.Path || !filepath.IsLocal(f.Path) || f.Path == ".":
		return errors.New("is not a plain path below the source")
	case len(s.list) > 0 && s.list[len(s.list)-1].Path >= f.Path:
		return errors.New("comes twice or out of order")
	case f.Size > maxSourceFile:
		return fmt.Errorf("is too big for a source file: %d bytes, of %d at most", f.Size, maxSourceFile)
	case f.Link == "" && f.Mode != 0o644 && f.Mode != 0o755, f.Link != "" && f.Mode != 0o777:
		return fmt.Errorf("has mode %#o", f.Mode)
	}
	for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
		if _, file := s.at[dir]; file {
			return fmt.Errorf("is below %s, which is no folder", printable(dir))
		}
	}
	return nil
}

// resolve follows links to what name stands for, there or not; inside is false when
// that leads out of the source, or in circles.
func (s *sourceFiles) resolve(name string) (to string, inside bool) {
	rest, hops := strings.Split(name, "/"), 0
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		if s.steps++; s.steps > maxSteps || len(to) > maxPath {
			return "", false
		}
		switch part {
		case "", ".":
			continue
		case "..":
			if to == "" {
				return "", false
			}
			to = strings.TrimPrefix(path.Dir("/"+to), "/")
			continue
		}
		to = path.Join(to, part)
		i, known := s.at[to]
		if !known || s.list[i].Link == "" {
			continue
		}
		if hops++; hops > maxLinks || path.IsAbs(s.list[i].Link) {
			return "", false
		}
		rest = append(strings.Split(s.list[i].Link, "/"), rest...)
		to = strings.TrimPrefix(path.Dir("/"+to), "/")
	}
	return to, true
}

// readSourceFile returns the text of one file, which a link may stand for, of a
// source's archive whose files are known.
func readSourceFile(src io.Reader, list []File, name string) (string, error) {
	files := newSourceFiles(list)
	to, _ := files.resolve(name)
	for tr := tar.NewReader(src); ; {
		h, err := tr.Next()
		switch {
		case err == io.EOF:
			return "", fmt.Errorf("no %s is in the source", name)
		case err != nil:
			return "", err
		case h.Name != to || h.Typeflag != tar.TypeReg:
			continue
		case h.Size > maxManifest:
			return "", fmt.Errorf("%s is too big: %d bytes, of %d at most", name, h.Size, maxManifest)
		}
		text, err := io.ReadAll(tr)
		return string(text), err
	}
}

// isSparse reports whether an entry has holes: its size says nothing of what is in
// the archive.
func isSparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

// kindOf names the kind of an entry.
func kindOf(h *tar.Header) string {
	kinds := map[byte]string{
		tar.TypeReg: "a file", tar.TypeLink: "a hard link", tar.TypeSymlink: "a symbolic link", tar.TypeChar: "a device",
		tar.TypeBlock: "a device", tar.TypeDir: "a folder", tar.TypeFifo: "a pipe", tar.TypeXGlobalHeader: "a global PAX header",
	}
	switch kind, known := kinds[h.Typeflag]; {
	case isSparse(h):
		return "a file with holes"
	case known:
		return kind
	}
	return fmt.Sprintf("type %q", h.Typeflag)
}

// printable quotes a name that a terminal should not get as it is.
func printable(name string) string {
	if quoted := fmt.Sprintf("%q", name); quoted != `"`+name+`"` {
		return quoted
	}
	return name
}
