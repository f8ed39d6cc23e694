package main

import (
	"archive/tar"
	"cmp"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"kmodctl/internal/dkms"
	"kmodctl/registry"
)

// The folders of a tarball of DKMS.
const (
	tarSource = "dkms_source_tree"
	tarBuilt  = "dkms_main_tree" // RELEASE/ARCH/{module,log}
	tarBare   = "dkms_binaries_only"
)

// Limits of a tarball.
const (
	maxTarball = int64(8) << 30 // bytes
	maxTarred  = 250_000        // entries
)

// makeTarball packs a source, and what was built of it for the kernels of the command, as DKMS does.
func (d *dkmsRun) makeTarball(ctx context.Context) error {
	src, err := d.reg.Source(d.module, d.version)
	if err != nil {
		return err
	}
	known, err := d.dkmsKnown(d.reg)
	if err != nil {
		return err
	}
	files := map[string]viewedFile{} // below RELEASE/ARCH
	label := "source-only"
	if !d.sourceOnly {
		label = ""
		targets := d.kernels
		if d.all {
			for _, m := range known {
				for _, b := range m.builds {
					if m.name == src.Name && m.version == src.Version {
						targets = append(targets, b.dkmsTarget)
					}
				}
			}
		}
		view := viewOf(d.reg, known)
		for _, t := range targets {
			at, n := path.Join(src.Name, src.Version, t.release, t.arch)+"/", len(files)
			for name, f := range view {
				if rest, ok := strings.CutPrefix(name, at); ok {
					files[path.Join(tarBuilt, t.release, t.arch, rest)] = f
				}
			}
			if len(files) == n {
				return dkmsFail(6, "%s/%s is not built for %s/%s", src.Name, src.Version, t.release, t.arch)
			}
			label += "-kernel" + t.release + "-" + t.arch
		}
		if label = strings.TrimPrefix(label, "-"); len(label) > 200 {
			label = "manykernels"
		}
	}
	to := path.Join(d.hostPath(dkmsTreePath), src.Name, src.Version, "tarball", src.Name+"-"+src.Version+"-"+label+".dkms.tar.gz")
	if d.archive != "" {
		if to = d.archive; !strings.Contains(to, "/") {
			to = path.Join(d.hostPath(dkmsTreePath), src.Name, src.Version, "tarball", to)
		}
	}
	if d.dryRun {
		d.would("make %s", to)
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return dkmsError{9, err}
	}
	if err := d.pack(src, files, to); err != nil {
		return dkmsError{6, errors.Join(fmt.Errorf("make %s: %w", to, err), ignoreGone(os.Remove(to+viewTemp)))}
	}
	d.changed("made %s", to)
	return nil
}

// pack writes a tarball: the source, or its names alone, and files.
func (d *dkmsRun) pack(src registry.Source, files map[string]viewedFile, to string) error {
	work, done, err := d.reg.NewWork("tarball")
	if err != nil {
		return err
	}
	defer done()
	tree, err := os.OpenRoot(work)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := tree.Mkdir(tarBuilt, 0o755); err != nil {
		return err
	}
	if d.binariesOnly {
		err = tree.Mkdir(tarBare, 0o755)
		for name, text := range map[string]string{"PACKAGE_NAME": src.Name + "\n", "PACKAGE_VERSION": src.Version + "\n", dkms.ConfFile: src.Manifest} {
			err = errors.Join(err, tree.WriteFile(path.Join(tarBare, name), []byte(text), 0o644))
		}
	} else if err = tree.Mkdir(tarSource, 0o755); err == nil {
		err = d.reg.Extract(src, filepath.Join(work, tarSource))
	}
	view := &dkmsView{tree: tree, made: map[string]viewedFile{}}
	for name, f := range files {
		err = errors.Join(err, view.put(name, f))
	}
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to+viewTemp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	packed, err := compressed(out, to)
	if err != nil {
		return errors.Join(err, out.Close())
	}
	w := tar.NewWriter(packed)
	err = w.AddFS(tree.FS())
	if err := errors.Join(err, w.Close(), packed.Close(), out.Close()); err != nil {
		return err
	}
	return os.Rename(to+viewTemp, to)
}

// compressed is what a tarball of that name is written through.
func compressed(w io.Writer, name string) (io.WriteCloser, error) {
	switch path.Ext(name) {
	case ".xz":
		return xz.NewWriter(w)
	case ".zst":
		return zstd.NewWriter(w)
	case ".tar":
		return nopCloser{w}, nil
	}
	return gzip.NewWriter(w), nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// loadTarball takes a source and what was built of it out of a tarball, or makes a source of any archive that holds a dkms.conf.
func (d *dkmsRun) loadTarball(ctx context.Context) error {
	if strings.HasSuffix(d.archive, ".rpm") {
		return d.installRPM(ctx)
	}
	f, err := os.Open(d.archive)
	if err != nil {
		return dkmsError{2, err}
	}
	defer f.Close()
	work, err := os.MkdirTemp("", "kmodctl-dkms-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := unpackTarball(ctx, f, work); err != nil {
		return dkmsError{7, fmt.Errorf("read %s: %w", d.archive, err)}
	}
	built := filepath.Join(work, tarBuilt)
	dir, code := findConf(work), 3
	if _, err := os.Stat(built); err == nil {
		code, dir = 7, filepath.Join(work, tarSource)
		if _, err := os.Stat(filepath.Join(dir, dkms.ConfFile)); err != nil {
			dir = filepath.Join(work, tarBare)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, dkms.ConfFile)); dir == "" || err != nil {
		return dkmsFail(code, "read %s: there is no dkms.conf in it", d.archive)
	}
	conf, err := d.readConf(ctx, dir, registry.Source{})
	if err != nil {
		return err
	}
	d.module, d.version, d.tree = conf.Name, conf.Version, dir
	_, err = d.reg.Source(d.module, d.version)
	var absent *registry.NotFoundError
	switch {
	case err == nil && !d.dkmsCall.force:
		return dkmsFail(8, "%s/%s is added already", d.module, d.version)
	case err != nil && !errors.As(err, &absent):
		return err
	case err != nil:
		if filepath.Base(dir) == tarBare && d.hostPath(path.Join(dkmsSources, d.module+"-"+d.version)) != "" {
			d.tree = "" // what is there is more than this
		}
		if _, err := d.add(ctx); err != nil {
			return err
		}
	}
	return d.loadBuilt(ctx, built)
}

// loadBuilt puts what was built into the tree of DKMS, from which it is adopted.
func (d *dkmsRun) loadBuilt(ctx context.Context, built string) error {
	dirs, err := filepath.Glob(filepath.Join(built, "*", "*", "module"))
	if err != nil || d.dryRun {
		return err
	}
	for _, dir := range dirs {
		from := filepath.Dir(dir)
		t := dkmsTarget{filepath.Base(filepath.Dir(from)), filepath.Base(from)}
		if _, ok, err := d.reg.Artifact(d.module, d.version, t.release); err != nil {
			return err
		} else if ok && !d.dkmsCall.force {
			d.changed("note: %s/%s is built for %s already: --force replaces that", d.module, d.version, t.release)
			continue
		} else if ok {
			if err := d.reg.RemoveArtifacts(d.module, d.version, t.release); err != nil {
				d.noted(err) // it is installed
				continue
			}
		}
		to := filepath.Join(d.hostPath(dkmsTreePath), d.module, d.version, t.release, t.arch)
		if err := errors.Join(os.RemoveAll(to), os.MkdirAll(filepath.Dir(to), 0o755), os.CopyFS(to, os.DirFS(from))); err != nil {
			return err
		}
	}
	src, err := d.reg.Source(d.module, d.version)
	if err == nil {
		err = os.MkdirAll(filepath.Join(d.hostPath(dkmsTreePath), src.Name, src.Version), 0o755)
	}
	if err != nil {
		return err
	}
	if err := d.showDKMS(d.reg); err != nil { // the link to the source
		return err
	}
	return (&adoption{job: d.job}).all(ctx)
}

// unpackTarball unpacks regular files, folders and links that stay inside of dir.
func unpackTarball(ctx context.Context, f *os.File, dir string) error {
	plain, err := decompressed(f)
	if err != nil {
		return err
	}
	tree, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer tree.Close()
	total := int64(0)
	r := tar.NewReader(plain)
	for n := 0; ; n++ {
		h, err := r.Next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		name := path.Clean(h.Name)
		if total += h.Size; total > maxTarball || n > maxTarred {
			return fmt.Errorf("%s: the archive is too big", h.Name)
		}
		if err := tree.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = tree.MkdirAll(name, 0o755)
		case tar.TypeSymlink:
			err = tree.Symlink(h.Linkname, name)
		case tar.TypeReg:
			err = unpackFile(tree, name, h.FileInfo().Mode().Perm()|0o600, r)
		case tar.TypeXGlobalHeader:
		default:
			err = fmt.Errorf("%s is neither a file nor a folder nor a link", h.Name)
		}
		if err != nil {
			return err
		}
	}
}

func unpackFile(tree *os.Root, name string, mode fs.FileMode, src io.Reader) error {
	f, err := tree.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, src)
	return errors.Join(err, f.Close())
}

// decompressed is the archive in f, by the bytes that it begins with.
func decompressed(f *os.File) (io.Reader, error) {
	var magic [6]byte
	n, err := io.ReadFull(f, magic[:])
	if err != nil && n == 0 {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	switch head := string(magic[:n]); {
	case strings.HasPrefix(head, "\x1f\x8b"):
		return gzip.NewReader(f)
	case strings.HasPrefix(head, "\xfd7zXZ\x00"):
		return xz.NewReader(f)
	case strings.HasPrefix(head, "\x28\xb5\x2f\xfd"):
		return zstd.NewReader(f)
	case strings.HasPrefix(head, "BZh"):
		return bzip2.NewReader(f), nil
	}
	return f, nil
}

// findConf is the folder of the first dkms.conf below dir, the outer ones first; "" when there is none.
func findConf(dir string) string {
	for _, depth := range []string{"", "*", "*/*", "*/*/*"} {
		if found, _ := filepath.Glob(filepath.Join(dir, depth, dkms.ConfFile)); len(found) > 0 {
			return filepath.Dir(found[0])
		}
	}
	return ""
}

// installRPM has rpm install a package, whose scripts may call us, and does what autoinstall does.
func (d *dkmsRun) installRPM(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "rpm", "-Uvh", d.archive)
	cmd.Stdout, cmd.Stderr = d.err, d.err
	if err := cmd.Run(); err != nil {
		return dkmsError{9, fmt.Errorf("install %s by rpm: %w", cmp.Or(d.archive, "-"), err)}
	}
	return d.autoinstall(ctx)
}
