package loader

import (
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/internal/vmlinux"
)

// Target is the kernel that a plan is checked for. Its facts are read from files, each when it is first asked for; what the
// running kernel lets in (signatures, blacklists, what is loaded) is known only of that one.
type Target struct {
	// Thorough has Check look at all there is: also at in-tree modules, which it otherwise takes for sound where they are the
	// running kernel's own, and at what the kernel's image exports where there are no headers, whose unpacking takes
	// seconds. It is for telling why, and not for every load.
	Thorough bool

	// Trusted gets the certificates that the kernel has beside those in its image, the firmware's and shim's, when a signature
	// is to be verified; nil for none.
	Trusted func() []*x509.Certificate

	root    kernel.Root
	release string
	index   *Index
	lookup  Lookup
	state   *State

	kernel    func() kernel.Release
	reference func() *ko.Info
	policy    func() *policy
	image     func() (map[string]offer, error)
	vmlinux   func() (*vmlinux.Image, error)
	debian    func() bool
}

// NewTarget is the kernel release below root, with its index, the caller's own modules (nil for none) and what it has
// loaded: nil for a kernel that does not run here.
func NewTarget(root kernel.Root, release string, index *Index, lookup Lookup, state *State) *Target {
	t := &Target{root: root, release: release, index: index, lookup: lookup, state: state}
	t.kernel = sync.OnceValue(func() kernel.Release {
		k, err := kernel.Get(root, release)
		if err != nil { // one that has no folder here has no facts but in /boot
			k = kernel.Release{Name: release, Root: root}
		}
		return k
	})
	t.reference = sync.OnceValue(t.findReference)
	t.policy = sync.OnceValue(t.readPolicy)
	t.vmlinux = sync.OnceValues(t.openImage)
	t.image = sync.OnceValues(t.readImage)
	t.debian = sync.OnceValue(t.isDebian)
	return t
}

// find returns the file of a module: the caller's own, else the index's.
func (t *Target) find(module string) (path string, ok bool) {
	indexed, _, ok := t.index.Find(module)
	if t.lookup != nil {
		if path, ours := t.lookup(module, indexed); ours {
			return path, true
		}
	}
	return indexed, ok
}

// intree reports whether a file is one that came with the kernel: make modules_install puts those, and no others,
// in the folder kernel.
func (t *Target) intree(path string) bool {
	if t.index == nil {
		return false
	}
	inside, err := filepath.Rel(filepath.Join(t.index.Dir, "kernel"), path)
	return err == nil && filepath.IsLocal(inside)
}

// option is the value of a name of the kernel's configuration, without CONFIG_; "" when the configuration is not here.
func (t *Target) option(name string) string { return t.kernel().Option(name) }

// arch is uname -m of the kernel, "" when nothing tells.
func (t *Target) arch() string {
	if ref := t.reference(); ref != nil {
		return ref.Arch
	}
	return t.kernel().Arch
}

// modversions reports whether the kernel compares CRCs of symbols.
func (t *Target) modversions() bool {
	if ref := t.reference(); ref != nil {
		return ref.Modversions
	}
	return t.option("MODVERSIONS") == "y"
}

// findReference opens a small module that came with the kernel: its vermagic and its size of struct module are the kernel's
// own. It is nil where there is none.
func (t *Target) findReference() *ko.Info {
	if t.index == nil {
		return nil
	}
	type candidate struct {
		path string
		size int64
	}
	var all []candidate
	enough := errors.New("enough")
	filepath.WalkDir(filepath.Join(t.index.Dir, "kernel"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.Contains(d.Name(), ".ko") {
			return nil
		}
		if st, err := d.Info(); err == nil {
			all = append(all, candidate{path, st.Size()})
		}
		if len(all) == 16 {
			return enough
		}
		return nil
	})
	slices.SortFunc(all, func(a, b candidate) int { return int(a.size - b.size) })
	for _, c := range all {
		if info, err := ko.Open(c.path); err == nil && info.Release() == t.release {
			return info
		}
	}
	return nil
}

// checksStructSize: "module: add stop-grap sanity check on module memcpy()", Linux 6.4.
func (t *Target) checksStructSize() bool {
	return kernel.VersionOf(t.release).Compare(kernel.Version{6, 4}) >= 0
}

// isDebian reports whether Debian built the kernel. Its kernels refuse a module that has no CRC for one of its symbols where
// others only warn: module-disable-matching-missing-version-crc.patch of Debian's linux package.
func (t *Target) isDebian() bool {
	const builder = "debian-kernel@lists.debian.org"
	if t.state != nil {
		return strings.Contains(readLine(under(t.root, "proc/version")), builder)
	}
	image := t.kernel().Image
	if image == "" {
		return false
	}
	f, err := t.root.Open(image)
	if err != nil {
		return false
	}
	defer f.Close()
	return strings.Contains(versionText(f), builder)
}

// versionText is what a bzImage says of itself: the string whose place stands at 0x20e, Documentation/arch/x86/boot.rst.
func versionText(image *os.File) string {
	head := make([]byte, 0x210)
	if _, err := image.ReadAt(head, 0); err != nil || string(head[0x202:0x206]) != "HdrS" {
		return ""
	}
	text := make([]byte, 256)
	n, _ := image.ReadAt(text, int64(binary.LittleEndian.Uint16(head[0x20e:]))+0x200)
	line, _, _ := strings.Cut(string(text[:n]), "\x00")
	return line
}
