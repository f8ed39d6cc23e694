package loader

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
)

// State is what a running kernel has, read once. A nil State is an empty one,
// which is what plans for another root than "/" are made with.
type State struct {
	Modules []Live   `json:"modules"`           // newest first, as /proc/modules
	Builtin []string `json:"builtin,omitempty"` // parts of the kernel image that show in /sys/module (those with parameters or a version)

	peek *kernel.Root // of PeekState
}

// Live is one module of the running kernel: its line of /proc/modules and its
// folder in /sys/module.
type Live struct {
	Name       string            `json:"name"`
	Size       int64             `json:"size"`                // bytes of memory, without what init freed
	Refcnt     int               `json:"refcnt"`              // users, holders included; -1 when the kernel cannot unload (no CONFIG_MODULE_UNLOAD)
	Holders    []string          `json:"holders,omitempty"`   // modules that use its symbols
	Permanent  bool              `json:"permanent,omitempty"` // it has no exit function, or may not use it: only a reboot removes it
	State      string            `json:"state"`               // "live", "coming" (in its init) or "going"
	Taint      string            `json:"taint,omitempty"`     // letters of Documentation/admin-guide/tainted-kernels.rst, e.g. "OE"
	BuildID    string            `json:"build_id,omitempty"`  // hex; tells which build of the file it came from
	Version    string            `json:"version,omitempty"`
	SrcVersion string            `json:"srcversion,omitempty"`
	Params     map[string]string `json:"params,omitempty"` // those that this user may read in /sys/module/<name>/parameters
}

// ReadState takes a snapshot of the kernel whose proc and sys are mounted under
// root. ErrNoModules tells a kernel that cannot have modules.
func ReadState(root kernel.Root) (*State, error) {
	f, err := os.Open(under(root, "proc/modules"))
	if err != nil {
		return nil, noModules(root, err)
	}
	defer f.Close()
	st := &State{}
	if st.Modules, err = parseProcModules(f); err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	for i := range st.Modules {
		readSysfs(root, &st.Modules[i])
	}
	// A folder without initstate is a built-in module: kernel/params.c,
	// param_sysfs_builtin.
	dirs, _ := os.ReadDir(under(root, "sys/module"))
	for _, d := range dirs {
		if _, live := st.Find(d.Name()); d.IsDir() && !live && initstate(root, d.Name()) == "" {
			st.Builtin = append(st.Builtin, d.Name())
		}
	}
	return st, nil
}

// PeekState is ReadState for a plan of a load, which asks about few of the
// modules: each is looked at when it is asked for, and only its name, state and
// build-id are told. Modules and Builtin stay empty.
func PeekState(root kernel.Root) (*State, error) {
	if _, err := os.Stat(under(root, "proc/modules")); err != nil {
		return nil, noModules(root, err)
	}
	return &State{peek: &root}, nil
}

// noModules tells an absent /proc/modules (no CONFIG_MODULES) from an absent /proc.
func noModules(root kernel.Root, err error) error {
	if _, e := os.Stat(under(root, "proc/self")); e == nil && errors.Is(err, fs.ErrNotExist) {
		return ErrNoModules
	}
	return fmt.Errorf("read loaded modules: %w", err)
}

// Find returns the module of that name, - and _ taken as equal.
func (st *State) Find(name string) (Live, bool) {
	if st != nil {
		name = ko.NormalizeName(name)
		if st.peek != nil && filepath.IsLocal(name) {
			m := Live{Name: name, State: initstate(*st.peek, name)}
			if m.State != "" {
				m.BuildID = liveBuildID(*st.peek, name)
			}
			return m, m.State != ""
		}
		for _, m := range st.Modules {
			if m.Name == name {
				return m, true
			}
		}
	}
	return Live{}, false
}

func (st *State) isBuiltin(name string) bool {
	name = ko.NormalizeName(name)
	if st != nil && st.peek != nil && filepath.IsLocal(name) {
		_, err := os.Stat(under(*st.peek, "sys/module/"+name))
		return err == nil && initstate(*st.peek, name) == ""
	}
	return st != nil && slices.Contains(st.Builtin, name)
}

// parseProcModules reads lines of the form
//
//	name size refcnt holder,holder,[permanent], Live 0xaddress (taint)
//
// (kernel/module/procfs.c, m_show). Further fields at the end are ignored.
func parseProcModules(r io.Reader) ([]Live, error) {
	var mods []Live
	var bad error
	err := eachLine(r, func(n int, line string) {
		m, err := parseProcLine(line)
		if err != nil && bad == nil {
			bad = fmt.Errorf("line %d: %w", n, err)
		}
		mods = append(mods, m)
	})
	if err := cmp.Or(bad, err); err != nil {
		return nil, err
	}
	return mods, nil
}

func parseProcLine(line string) (m Live, err error) {
	f := strings.Fields(line)
	if len(f) < 5 {
		return m, fmt.Errorf("%d fields instead of 6", len(f))
	}
	m.Name = f[0]
	if m.Size, err = strconv.ParseInt(f[1], 10, 64); err != nil {
		return m, fmt.Errorf("size: %w", err)
	}
	m.Refcnt = -1
	if f[2] != "-" { // CONFIG_MODULE_UNLOAD
		if m.Refcnt, err = strconv.Atoi(f[2]); err != nil {
			return m, fmt.Errorf("refcnt: %w", err)
		}
	}
	for h := range strings.SplitSeq(f[3], ",") {
		switch h {
		case "", "-":
		case "[permanent]":
			m.Permanent = true
		default:
			m.Holders = append(m.Holders, h)
		}
	}
	switch f[4] {
	case "Live":
		m.State = "live"
	case "Loading":
		m.State = "coming"
	case "Unloading":
		m.State = "going"
	default:
		return m, fmt.Errorf("state %q is not Live, Loading or Unloading", f[4])
	}
	if len(f) > 6 && strings.HasPrefix(f[6], "(") {
		m.Taint = strings.Map(func(r rune) rune { // + and - only repeat coming and going
			if r < 'A' || r > 'Z' {
				return -1
			}
			return r
		}, f[6])
	}
	return m, nil
}

// readSysfs adds what /sys/module/<name> tells. The module may go away at any
// moment and files may be for root only: what cannot be read stays empty.
func readSysfs(root kernel.Root, m *Live) {
	dir := under(root, "sys/module/"+m.Name)
	m.Version, m.SrcVersion = readLine(dir+"/version"), readLine(dir+"/srcversion")
	m.BuildID = liveBuildID(root, m.Name)
	params, _ := os.ReadDir(dir + "/parameters")
	for _, p := range params {
		v, err := os.ReadFile(filepath.Join(dir, "parameters", p.Name()))
		if err != nil {
			continue
		}
		if m.Params == nil {
			m.Params = make(map[string]string)
		}
		m.Params[p.Name()] = strings.TrimSuffix(string(v), "\n")
	}
}

// initstate returns "live", "coming", "going", or "" when the module is not
// loaded or is built in.
func initstate(root kernel.Root, name string) string {
	return readLine(under(root, "sys/module/"+name+"/initstate"))
}

// liveBuildID reads the ELF note that the kernel keeps of a loaded module; "" if it has none.
func liveBuildID(root kernel.Root, name string) string {
	note, err := os.ReadFile(under(root, "sys/module/"+name+"/notes/.note.gnu.build-id"))
	if err != nil || len(note) < 16 {
		return ""
	}
	// Elf_Nhdr {namesz, descsz, type}, "GNU\0", the ID.
	n := int64(binary.NativeEndian.Uint32(note[4:]))
	if !bytes.Equal(note[12:16], []byte("GNU\x00")) || n > int64(len(note)-16) {
		return ""
	}
	return hex.EncodeToString(note[16 : 16+n])
}

func readLine(path string) string {
	b, _ := os.ReadFile(path)
	return strings.TrimSpace(string(b))
}

func under(root kernel.Root, name string) string {
	return filepath.Join(cmp.Or(string(root), "/"), name)
}
