// Package loadertest is a kernel for tests: the system calls of module loading
// over a folder that looks like proc, sys and dev of a machine. It holds the
// rules that a loader can trip over (names, dependencies, users, what is live
// already), reads real .ko files, and fails on demand.
package loadertest

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
)

// Kernel is a fake kernel; it implements loader.Kernel.
type Kernel struct {
	Root kernel.Root

	// Before, if set, runs before each call, and its error is the call's.
	// op is "finit", "init" or "delete".
	Before func(op, module string) error

	mu      sync.Mutex
	calls   []string
	answers map[string]Answer
	modules []*module // those that sysfs shows, oldest first
	scratch string    // where files are written before they get their names
	t       testing.TB

	logMu sync.Mutex
	seq   int // of the kernel's log
}

type module struct {
	*ko.Info
	state     string // "coming" while its init runs, then "live"
	params    string
	more      string // taint letters of an Answer
	refcnt    int    // users that are not modules
	permanent bool
}

// New makes a kernel of that release in a temporary folder, without modules, on
// which the process has all capabilities.
func New(t testing.TB, release string) *Kernel {
	k := &Kernel{Root: kernel.Root(t.TempDir()), scratch: t.TempDir(), t: t, answers: map[string]Answer{}}
	k.Write("proc/self/status", "CapEff:\t000001ffffffffff\n")
	k.Write("proc/sys/kernel/osrelease", release+"\n")
	k.Write("proc/sys/kernel/modules_disabled", "0\n")
	k.Write("proc/modules", "")
	k.Write("dev/kmsg", "")

	return k
}

// Write puts a file into the kernel's folder, whole: whoever reads it at the same
// time sees the old content or the new.
func (k *Kernel) Write(name, content string) {
	path := k.path(name)
	dir := filepath.Dir(path)
	err := os.MkdirAll(dir, 0o755)
	f, createErr := os.CreateTemp(k.scratch, "file")
	if err := errors.Join(err, createErr); err != nil {
		k.t.Error(err)
		return
	}
	_, err = f.WriteString(content)
	if err := errors.Join(err, f.Chmod(0o644), f.Close(), os.Rename(f.Name(), path)); err != nil {
		k.t.Error(err)
	}
}

// Remove takes a file or folder out of the kernel's folder.
func (k *Kernel) Remove(name string) {
	if err := os.RemoveAll(k.path(name)); err != nil {
		k.t.Error(err)
	}
}

func (k *Kernel) path(name string) string { return filepath.Join(string(k.Root), name) }

// Print adds lines to the kernel's log.
func (k *Kernel) Print(lines ...string) {
	f, err := os.OpenFile(k.path("dev/kmsg"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return // a test took it away
	}
	defer f.Close()
	k.logMu.Lock()
	defer k.logMu.Unlock()
	for _, line := range lines {
		k.seq++
		fmt.Fprintf(f, "4,%d,%d,-;%s\n", k.seq, k.seq*1000, line)
	}
}

// Calls returns the calls so far: "finit stack", "delete stack".
func (k *Kernel) Calls() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.calls)
}

// Use changes the number of a live module's users that are no modules: an open
// file, a mount.
func (k *Kernel) Use(name string, users int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.find(name).refcnt += users
	k.show()
}

// Pin makes a live module one without an exit function.
func (k *Kernel) Pin(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.find(name).permanent = true
	k.show()
}

// Answer makes the loads of a module end as a says.
func (k *Kernel) Answer(name string, a Answer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.answers[name] = a
}

// Decompress makes the kernel one that reads files of that compression itself:
// "gzip", "xz" or "zstd".
func (k *Kernel) Decompress(format string) { k.Write("sys/module/compression", format+"\n") }

// compressedFile is MODULE_INIT_COMPRESSED_FILE.
const compressedFile = 4

// Finit is finit_module(2) with flags 0 or MODULE_INIT_COMPRESSED_FILE.
func (k *Kernel) Finit(f *os.File, params string, flags int) error {
	image, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
	switch {
	case err != nil || flags&^compressedFile != 0:
		return unix.EINVAL
	case len(image) == 0:
		return unix.EINVAL
	case flags == 0:
		return k.insert("finit", image, params)
	}
	known, err := os.ReadFile(k.path("sys/module/compression"))
	if err != nil {
		return unix.EOPNOTSUPP
	}
	elf, format, err := ko.Decompress(image)
	const crc64 = 4
	switch want := strings.TrimSpace(string(known)); {
	case format != want:
		k.Print("not an " + want + " compressed module")
		return unix.EINVAL
	case err != nil, format == "xz" && image[7] >= crc64:
		k.Print("decompression failed with status 6")
		return unix.EINVAL
	}
	return k.insert("finit compressed", elf, params)
}

// Init is init_module(2).
func (k *Kernel) Init(f *os.File, params string) error {
	image, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
	if err != nil {
		return unix.EFAULT
	}
	return k.insert("init", image, params)
}

func (k *Kernel) insert(op string, image []byte, params string) error {
	info, err := ko.Read(image)
	if err != nil || info.Compression != "" {
		k.Print("Invalid ELF header magic: != \x7fELF")
		return unix.ENOEXEC
	}
	if err := k.begin(op, info.Name); err != nil {
		return err
	}
	m, answer, err := k.add(info, params)
	if err != nil {
		return err
	}
	// The init of m: others see it coming, and may come and go meanwhile.
	if answer.During != nil {
		answer.During()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if answer.InInit && answer.Errno != 0 {
		k.Print(answer.Log...)
		k.drop(m)
		return answer.Errno
	}
	m.state = "live"
	k.show()
	return nil
}

// add is what the kernel does before a module's init.
func (k *Kernel) add(info *ko.Info, params string) (*module, Answer, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.find(info.Name) != nil {
		return nil, Answer{}, unix.EEXIST
	}
	for _, dep := range info.Depends {
		if m := k.find(dep); m == nil || m.state != "live" {
			k.Print(info.Name + ": Unknown symbol of_" + dep + " (err -2)")
			return nil, Answer{}, unix.ENOENT
		}
	}
	answer := k.answers[info.Name]
	if answer.Errno != 0 && !answer.InInit {
		k.Print(answer.Log...)
		return nil, answer, answer.Errno
	}
	m := &module{Info: info, params: params, state: "coming", more: answer.Taint}
	k.modules = append(k.modules, m)
	k.show()
	return m, answer, nil
}

func (k *Kernel) drop(m *module) {
	k.modules = slices.DeleteFunc(k.modules, func(x *module) bool { return x == m })
	k.Remove("sys/module/" + m.Name)
	k.show()
}

// Delete is delete_module(2) with O_NONBLOCK.
func (k *Kernel) Delete(name string, flags int) error {
	if err := k.begin("delete", name); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch m := k.find(name); {
	case m == nil || m.Name != name:
		return unix.ENOENT
	case flags != unix.O_NONBLOCK:
		return unix.EINVAL
	case len(k.holders(m)) > 0 || m.refcnt > 0:
		return unix.EAGAIN
	case m.permanent || m.state != "live":
		return unix.EBUSY
	default:
		k.drop(m)
	}
	return nil
}

func (k *Kernel) begin(op, name string) error {
	k.mu.Lock()
	k.calls = append(k.calls, op+" "+name)
	k.mu.Unlock()
	if k.Before != nil {
		return k.Before(op, name)
	}
	return nil
}

func (k *Kernel) find(name string) *module {
	for _, m := range k.modules {
		if m.Name == ko.NormalizeName(name) {
			return m
		}
	}
	return nil
}

func (k *Kernel) holders(used *module) (names []string) {
	for _, m := range k.modules {
		if slices.ContainsFunc(m.Depends, func(d string) bool { return ko.NormalizeName(d) == used.Name }) {
			names = append(names, m.Name)
		}
	}
	return names
}

// show writes proc/modules and sys/module as the kernel would.
func (k *Kernel) show() {
	var proc strings.Builder
	for _, m := range slices.Backward(k.modules) {
		dir := "sys/module/" + m.Name + "/"
		holders := k.holders(m)
		list := ""
		k.Remove(dir + "holders")
		for _, h := range holders {
			list += h + ","
			k.Write(dir+"holders/"+h, "")
		}
		if m.permanent {
			list += "[permanent],"
		}
		if list == "" {
			list = "-"
		}
		refs := m.refcnt + len(holders)
		state, sign := "Live", ""
		if m.state != "live" {
			state, sign = "Loading", "+"
		}
		taint := m.taint()
		fmt.Fprintf(&proc, "%s %d %d %s %s 0x0000000000000000", m.Name, m.Size, refs, list, state)
		if taint+sign != "" {
			fmt.Fprintf(&proc, " (%s%s)", taint, sign)
		}
		fmt.Fprintln(&proc)
		k.Write(dir+"initstate", m.state+"\n")
		k.Write(dir+"taint", taint+"\n")
		k.Write(dir+"refcnt", fmt.Sprintln(refs))
		k.Write(dir+"notes/.note.gnu.build-id", buildIDNote(m.BuildID))
		for _, p := range strings.Fields(m.params) {
			name, value, _ := strings.Cut(p, "=")
			k.Write(dir+"parameters/"+name, value+"\n")
		}
	}
	k.Write("proc/modules", proc.String())
}

// taint is what the kernel finds out about a file: out of tree, unsigned.
func (m *module) taint() (letters string) {
	if m.Field("intree") == "" {
		letters += "O"
	}
	if m.Signature == nil {
		letters += "E"
	}
	return letters + m.more
}

func buildIDNote(id string) string {
	desc, _ := hex.DecodeString(id)
	note := binary.NativeEndian.AppendUint32(nil, 4)
	note = binary.NativeEndian.AppendUint32(note, uint32(len(desc)))
	note = binary.NativeEndian.AppendUint32(note, 3) // NT_GNU_BUILD_ID
	return string(note) + "GNU\x00" + string(desc)
}
