// Package build turns a package's source into kernel modules: the manifest
// kmod.toml, the plan of what has to be built for which kernel, and the run of
// kbuild that makes the .ko files.
//
// ParseManifest and CheckSource are the places to start; Decide says whether a
// build is needed and Run builds. Everything up to Run is data and the same on
// every machine. Run writes only into the copy of the source that it is given,
// never runs a source's code as root when it can be another user, and leaves no
// process behind, however it ends.
package build

import (
	"fmt"
	"path"
	"slices"
	"strings"

	toml "github.com/pelletier/go-toml/v2"

	"kmodctl/internal/kernel"
)

// ManifestFile is the name of the manifest in the folder of a source.
const ManifestFile = "kmod.toml"

// Manifest is a package as its kmod.toml describes it, defaults filled in.
// docs/manifest.md explains every key.
type Manifest struct {
	Name      string   `toml:"name" json:"name"`
	Version   string   `toml:"version" json:"version"`
	Required  bool     `toml:"required" json:"required,omitempty"`   // the machine cannot be without it
	Initramfs bool     `toml:"initramfs" json:"initramfs,omitempty"` // the initramfs must hold the modules: it is remade when they change
	Modules   []Module `toml:"module" json:"modules"`                // at least one
	Kernel    Kernels  `toml:"kernel" json:"kernel"`
	Build     Recipe   `toml:"build" json:"build"`
	Files     Files    `toml:"files" json:"files,omitzero"`

	DKMS *DKMS `toml:"-" json:"dkms,omitempty"` // of a dkms.conf; nil of a kmod.toml
}

// Module is one .ko that kbuild makes of the source.
type Module struct {
	Name string `toml:"name" json:"name"`         // without .ko; - and _ are the same
	Dir  string `toml:"dir" json:"dir,omitempty"` // where kbuild leaves it, relative to the source; "" is its top

	Params []string `toml:"params" json:"-"` // "name=value", what it is loaded with unless somebody says otherwise: how it is built is the same

	// These only a dkms.conf can say.
	As    string `toml:"-" json:"as,omitempty"`    // what it is called where it is installed, without .ko; "" is Name
	Place string `toml:"-" json:"-"`               // folder below /lib/modules/RELEASE that it is installed in; "" is kmodctl's own
	Whole bool   `toml:"-" json:"whole,omitempty"` // it keeps its debug sections
}

// Kernels says which kernels a package applies to; empty fields apply to all.
type Kernels struct {
	Release string   `toml:"release" json:"release,omitempty"` // a kernel.Constraint, ">=5.10, <6.13"
	Config  []string `toml:"config" json:"config,omitempty"`   // "NET", "!PREEMPT_RT": all must hold
	Arch    []string `toml:"arch" json:"arch,omitempty"`       // uname -m names: one must be the kernel's
}

// Recipe says how to build where that differs from plain kbuild.
type Recipe struct {
	Targets []string   `toml:"targets" json:"targets"`           // of make; "modules" unless given
	Prepare [][]string `toml:"prepare" json:"prepare,omitempty"` // argv lists with placeholders, run before make
	Patches []Patch    `toml:"patches" json:"patches,omitempty"` // applied in order, before Prepare
	Needs   []string   `toml:"needs" json:"needs,omitempty"`     // packages whose modules export what this one's import
	Reuse   bool       `toml:"reuse" json:"-"`                   // a build for one kernel may serve another that it fits: how it is built is the same
}

// Files are files of the source that are installed beside the modules, by their paths in it.
type Files struct {
	Firmware    []string `toml:"firmware" json:"firmware,omitempty"`         // below the folder firmware, as drivers ask for it: "acme/led.bin"
	Udev        []string `toml:"udev" json:"udev,omitempty"`                 // rules
	ModulesLoad []string `toml:"modules-load" json:"modules-load,omitempty"` // modules-load.d(5)
	Modprobe    []string `toml:"modprobe" json:"modprobe,omitempty"`         // modprobe.d(5)
}

// Beside is a file that is installed beside the modules, of the source or made from the manifest.
type Beside struct {
	File string // relative to the source; "" of one that is made
	Text string // what is in one that is made
	Path string // absolute, inside the root
}

// Beside lists what is installed beside the modules. Firmware goes where the kernel looks first (firmware_class, Documentation/driver-api/firmware/fw_search_path.rst).
func (m *Manifest) Beside() (all []Beside) {
	for _, f := range m.Files.Firmware {
		all = append(all, Beside{File: path.Join("firmware", f), Path: path.Join("/lib/firmware/updates", f)})
	}
	for _, kind := range []struct {
		files  []string
		folder string
	}{
		{m.Files.Udev, "/etc/udev/rules.d"}, {m.Files.ModulesLoad, "/etc/modules-load.d"}, {m.Files.Modprobe, "/etc/modprobe.d"},
	} {
		for _, f := range kind.files {
			all = append(all, Beside{File: f, Path: path.Join(kind.folder, path.Base(f))})
		}
	}
	if text := m.options(); text != "" {
		all = append(all, Beside{Text: text, Path: OptionsFile(m.Name)})
	}
	return all
}

// OptionsFile is where a package's own parameters of modules are installed: before the files of people, which count more so.
func OptionsFile(pkg string) string { return "/etc/modprobe.d/00-kmodctl-" + pkg + ".conf" }

// options are the lines of modprobe.d(5) for the modules' own parameters, "" when there are none.
func (m *Manifest) options() string {
	var lines strings.Builder
	for _, mod := range m.Modules {
		if len(mod.Params) == 0 {
			continue
		}
		fmt.Fprintf(&lines, "options %s", moduleName(mod.Name))
		for _, p := range mod.Params {
			if name, value, _ := strings.Cut(p, "="); strings.ContainsAny(value, " \t") {
				p = name + `="` + value + `"`
			}
			fmt.Fprintf(&lines, " %s", p)
		}
		lines.WriteString("\n")
	}
	if lines.Len() == 0 {
		return ""
	}
	return "# The parameters that kmod.toml of " + m.Name + " gives its modules. kmodctl options NAME k=v, or a file of yours that sorts behind this one, counts more.\n" + lines.String()
}

// Patch is a patch file of the source and the kernels that it is for.
type Patch struct {
	File    string `toml:"file" json:"file"`                 // relative to the source
	Release string `toml:"release" json:"release,omitempty"` // a kernel.Constraint; "" is every kernel
}

// ParseManifest reads a manifest; file is its name for errors. Every error is a
// *ManifestError: a key that does not exist, a value of the wrong type, a value
// that cannot be.
func ParseManifest(file string, data []byte) (*Manifest, error) {
	var m Manifest
	keys, bad := readKeys(file, data)
	if bad != nil {
		return nil, bad
	}
	if err := toml.Unmarshal(data, &m); err != nil {
		return nil, syntaxError(file, err)
	}
	if bad := validate(&m, keys); bad != nil {
		return nil, bad
	}
	if len(m.Modules) == 0 {
		m.Modules = []Module{{Name: m.Name}}
	}
	if len(m.Build.Targets) == 0 {
		m.Build.Targets = []string{"modules"}
	}
	return &m, nil
}

// Applies reports whether the package is to be built for k, and if not, why not:
// k's release, architecture or configuration is not one that the manifest names,
// or k lacks what every build needs. The error is that of reading the configuration.
func (m *Manifest) Applies(k kernel.Release) (ok bool, why string, err error) {
	if !matches(m.Kernel.Release, k.Name) {
		return false, fmt.Sprintf("release %s is not %s", k.Name, m.Kernel.Release), nil
	}
	if len(m.Kernel.Arch) > 0 && k.Arch != "" && !slices.Contains(m.Kernel.Arch, k.Arch) {
		return false, fmt.Sprintf("arch %s is not %s", k.Arch, strings.Join(m.Kernel.Arch, " or ")), nil
	}
	if k.Tree == nil || len(k.Missing) > 0 {
		return false, lacks(k), nil
	}
	if m.DKMS != nil && m.DKMS.Excluded != "" {
		return false, m.DKMS.Excluded, nil
	}
	for _, expr := range m.Kernel.Config {
		if has, err := k.Tree.Config.Has(expr); err != nil {
			return false, "", err
		} else if has {
			continue
		}
		if name, not := strings.CutPrefix(expr, "!"); not {
			return false, "config " + name + " is set", nil
		}
		return false, "config " + expr + " is not set", nil
	}
	return true, "", nil
}

func lacks(k kernel.Release) string {
	var what []string
	for _, m := range k.Missing {
		what = append(what, m.What)
	}
	if len(what) == 0 {
		return "no build tree for " + k.Name
	}
	return strings.Join(what, "; ")
}

// matches reports whether release is one that constraint names; "" names all.
// ParseManifest has let only constraints through that can be read.
func matches(constraint, release string) bool {
	if constraint == "" {
		return true
	}
	c, err := kernel.ParseConstraint(constraint)
	return err == nil && c.Match(release)
}
