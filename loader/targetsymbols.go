package loader

import (
	"bufio"
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/internal/vmlinux"
)

// offer is a symbol that modules can have.
type offer struct {
	by        string // the module that exports it, "" for the kernel itself
	gpl       bool
	namespace string
	crc       uint32
	hasCRC    bool
}

// errNoTable: nothing here says what the kernel exports.
var errNoTable = errors.New("neither the kernel's headers nor its vmlinuz are here")

// offers returns what the kernel and the modules that came with it export under names. Where there are no headers it is read
// from the image, for a Thorough target, and is of the kernel alone.
func (t *Target) offers(names map[string]bool) (map[string]offer, error) {
	tree := t.kernel().Tree
	if tree == nil {
		if !t.Thorough {
			return nil, errNoTable
		}
		return t.image()
	}
	symbols, err := tree.SymbolsOf(names)
	if err != nil {
		return nil, err
	}
	offers := make(map[string]offer, len(symbols))
	for name, s := range symbols {
		o := offer{gpl: strings.HasPrefix(s.Export, "EXPORT_SYMBOL_GPL"), namespace: s.Namespace, crc: s.CRC, hasCRC: s.CRC != 0}
		if s.Module != "vmlinux" {
			o.by = ko.NameOfFile(s.Module)
		}
		offers[name] = o
	}
	return offers, nil
}

// openImage unpacks the kernel's image: seconds.
func (t *Target) openImage() (*vmlinux.Image, error) {
	name := t.kernel().Image
	if name == "" {
		return nil, errNoTable
	}
	path, err := t.root.Path(name)
	if err != nil {
		return nil, err
	}
	return vmlinux.Open(path)
}

// readImage reads what the kernel's image exports.
func (t *Target) readImage() (map[string]offer, error) {
	image, err := t.vmlinux()
	if err != nil {
		return nil, err
	}
	exports, err := image.Exports()
	if err != nil {
		return nil, err
	}
	offers := make(map[string]offer, len(exports))
	for _, e := range exports {
		offers[e.Name] = offer{gpl: e.GPL, namespace: e.Namespace, crc: e.CRC, hasCRC: e.HasCRC}
	}
	return offers, nil
}

// shows reports whether a part of a kernel that does not run here will show in /sys/module under a name. The image tells; it is
// unpacked only for a name that modules.builtin.modinfo has, and for a Thorough target.
func (t *Target) shows(name string) bool {
	if !t.Thorough || t.state != nil || t.index == nil {
		return false
	}
	text, err := t.root.ReadFile(filepath.Join(t.index.dir, "modules.builtin.modinfo"))
	if err != nil || ko.Builtin(text, name) == nil {
		return false
	}
	image, err := t.vmlinux()
	return err == nil && slices.Contains(image.BuiltinNames(), name)
}

// offersOf are a module's own exports.
func offersOf(info *ko.Info) map[string]offer {
	offers := make(map[string]offer, len(info.Exports))
	for _, e := range info.Exports {
		offers[e.Name] = offer{by: info.Name, gpl: e.GPL, namespace: e.Namespace, crc: e.CRC, hasCRC: e.HasCRC}
	}
	return offers
}

// exportedLive finds which of names something exports that is loaded now, whatever file it came from: the table's entries
// are symbols too (CONFIG_KALLSYMS_ALL).
func (t *Target) exportedLive(names map[string]bool) map[string]bool {
	found := map[string]bool{}
	if t.state != nil {
		t.eachKallsym(func(name string) {
			if name, ok := strings.CutPrefix(name, "__ksymtab_"); ok && names[name] {
				found[name] = true
			}
		})
	}
	return found
}

// has finds which of names are symbols of the kernel, exported or not. Where it does not run its System.map tells, unless it
// is Debian's, of one line.
func (t *Target) has(names map[string]bool) map[string]bool {
	found := map[string]bool{}
	t.eachKallsym(func(name string) {
		if names[name] {
			found[name] = true
		}
	})
	return found
}

// others are the other kernels of the machine that have headers.
func (t *Target) others() []kernel.Release {
	all, _ := kernel.Find(t.root) // none is not worth an error here
	return slices.DeleteFunc(all, func(k kernel.Release) bool { return k.Name == t.release || k.Tree == nil })
}

// eachKallsym walks over the kernel's symbols: lines of "address type name", and for a module's its name in brackets.
func (t *Target) eachKallsym(do func(name string)) {
	file := "/proc/kallsyms"
	if t.state == nil {
		file = "/boot/System.map-" + t.release
	}
	f, err := t.root.Open(file)
	if err != nil {
		return
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if _, rest, ok := strings.Cut(lines.Text(), " "); ok {
			_, name, _ := strings.Cut(rest, " ")
			name, _, _ = strings.Cut(name, "\t")
			do(name)
		}
	}
}
