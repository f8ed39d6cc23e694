package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"kmodctl/registry"
)

// dkmsView is the tree of DKMS, which other software reads: /var/lib/dkms. What is in it of packages that we know
// follows from the registry and is made anew by every command that may write. Nothing is read back from it: of
// what others did to it, they are told.
type dkmsView struct {
	tree *os.Root
	made map[string]viewedFile // what we have put there, by path
}

// viewedFile is a link or a file of the view.
type viewedFile struct {
	Link   string `json:"link,omitempty"`
	Digest string `json:"digest,omitempty"` // SHA-256 in hex of a file
	Size   int64  `json:"size,omitempty"`   // bytes
	Mtime  int64  `json:"mtime,omitempty"`  // as we left it, in ns since 1970

	open func() (io.ReadCloser, error)
}

const (
	dkmsTreePath = "/var/lib/dkms"
	dkmsSources  = "/usr/src"
	viewFile     = ".kmodctl" // DKMS lists no name with a dot
	viewTemp     = ".kmodctl-tmp"
)

// openView opens the tree; nil when there is none.
func (e *env) openView() (*dkmsView, error) {
	dir, err := e.root.Path(dkmsTreePath)
	if errors.Is(err, fs.ErrNotExist) || err == nil && e.ownRegistry() {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	v := &dkmsView{made: map[string]viewedFile{}}
	if v.tree, err = os.OpenRoot(dir); err != nil {
		return nil, err
	}
	text, err := v.tree.ReadFile(viewFile)
	if err == nil {
		err = json.Unmarshal(text, &v.made)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		v.made = map[string]viewedFile{} // as if nothing had been made: what is right stays
	}
	return v, nil
}

// showDKMS makes the tree what the registry says by now.
func (e *env) showDKMS(reg *registry.Registry) error {
	v, err := e.openView()
	if err != nil || v == nil {
		return err
	}
	defer v.tree.Close()
	known, err := e.dkmsKnown(reg)
	if err != nil || len(known) == 0 && len(v.made) == 0 {
		return err
	}
	v.tell(e)
	return v.render(viewOf(reg, known))
}

// tell says what others did to what we had put into the tree, once for each module.
func (v *dkmsView) tell(e *env) {
	told := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(v.made)) {
		module, _, _ := strings.Cut(name, "/")
		if how := v.changed(name, v.made[name]); how != "" && !told[module] {
			told[module] = true
			e.changed("note: %s, and maybe more there, was %s by another program: it shows what the registry has, and is made anew", path.Join(dkmsTreePath, name), how)
		}
	}
}

// changed says what has become of a file or link that we made, "" when it is as we left it.
func (v *dkmsView) changed(name string, was viewedFile) string {
	info, err := v.tree.Lstat(name)
	switch {
	case err != nil:
		return "removed"
	case was.Link != "":
		if link, err := v.tree.Readlink(name); err != nil || link != was.Link {
			return "changed"
		}
	case !info.Mode().IsRegular() || info.Size() != was.Size || info.ModTime().UnixNano() != was.Mtime:
		return "changed"
	}
	return ""
}

// render makes the tree what the registry says. What we have not made stays.
func (v *dkmsView) render(want map[string]viewedFile) error {
	var errs []error
	for name := range v.made {
		if _, still := want[name]; !still {
			errs = append(errs, v.remove(name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		errs = append(errs, v.put(name, want[name]))
	}
	return errors.Join(errors.Join(errs...), v.save())
}

// put makes one link or file, unless it is there.
func (v *dkmsView) put(name string, w viewedFile) error {
	was, ok := v.made[name]
	if ok && was.Link == w.Link && was.Digest == w.Digest && v.changed(name, was) == "" {
		return nil
	}
	if err := v.tree.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	temp := path.Join(path.Dir(name), viewTemp)
	if err := ignoreGone(v.tree.Remove(temp)); err != nil {
		return err
	}
	err := v.write(temp, w)
	if err == nil {
		err = v.tree.Rename(temp, name)
	}
	if err != nil {
		return fmt.Errorf("make %s: %w", path.Join(dkmsTreePath, name), errors.Join(err, ignoreGone(v.tree.Remove(temp))))
	}
	info, err := v.tree.Lstat(name)
	if err != nil {
		return err
	}
	w.Size, w.Mtime = info.Size(), info.ModTime().UnixNano()
	v.made[name] = w
	return nil
}

func (v *dkmsView) write(name string, w viewedFile) error {
	if w.Link != "" {
		return v.tree.Symlink(w.Link, name)
	}
	src, err := w.open()
	if err != nil {
		return err
	}
	defer src.Close()
	f, err := v.tree.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, src)
	return errors.Join(err, f.Chmod(0o644), f.Close())
}

// remove takes away what we made, and the folders that are empty then.
func (v *dkmsView) remove(name string) error {
	if err := ignoreGone(v.tree.Remove(name)); err != nil {
		return err
	}
	delete(v.made, name)
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if v.tree.Remove(dir) != nil { // not empty
			break
		}
	}
	return nil
}

// save writes down what was made.
func (v *dkmsView) save() error {
	if len(v.made) == 0 {
		return ignoreGone(v.tree.Remove(viewFile))
	}
	text, err := json.Marshal(v.made)
	if err != nil {
		return err
	}
	if old, err := v.tree.ReadFile(viewFile); err == nil && string(old) == string(text) {
		return nil
	}
	if err := v.tree.WriteFile(viewTemp, text, 0o644); err != nil {
		return err
	}
	return v.tree.Rename(viewTemp, viewFile)
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// viewOf is the tree as the registry has it.
func viewOf(reg *registry.Registry, known []dkmsModule) map[string]viewedFile {
	want := map[string]viewedFile{}
	blob := func(name, digest string) {
		if _, err := os.Stat(reg.BlobPath(digest)); digest != "" && err == nil { // a log may be gone, and what is damaged is verify's to tell
			want[name] = viewedFile{Digest: digest, open: func() (io.ReadCloser, error) { return reg.Blob(digest) }}
		}
	}
	for _, m := range known {
		of := path.Join(m.name, m.version)
		want[path.Join(of, "source")] = viewedFile{Link: path.Join(dkmsSources, m.name+"-"+m.version)}
		blob(path.Join(of, "build", "make.log"), m.failed)
		for _, b := range m.builds {
			at := path.Join(of, b.release, b.arch)
			for _, mod := range b.artifact.Modules {
				name, digest := mod.File, mod.Digest
				if i := slices.IndexFunc(b.rows, func(r registry.Install) bool { return r.Module == mod.Name }); i >= 0 {
					name, digest = path.Base(b.rows[i].Path), b.rows[i].Digest // DKMS keeps it as it is installed: compressed, signed
				}
				blob(path.Join(at, "module", name), digest)
			}
			blob(path.Join(at, "log", "make.log"), b.artifact.Log)
			if b.installed {
				want[path.Join(m.name, "kernel-"+b.release+"-"+b.arch)] = viewedFile{Link: path.Join(m.version, b.release, b.arch)}
			}
		}
	}
	return want
}
