package main

import (
	"bytes"
	"crypto/sha256"
	bin "encoding/binary"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/registry"
)

// full says that the torture tests run at their full size (make torture).
var full = os.Getenv("KMODCTL_TORTURE") == "full"

// The kernels of a torture machine: their modules are few and real, so that a depmod
// takes milliseconds, and nothing can be built for them. Their names are as long as that
// of the kernel which lends its modules.
var (
	lender   = filepath.Base(append(lenders(), "6.1.0-none")[0])
	tortured = []string{"9.9.8" + lender[5:], "9.9.9" + lender[5:]}
)

func lenders() []string {
	found, _ := filepath.Glob("/lib/modules/6.1.?-*")
	return found
}

// machine is a root and what stands beside it.
type machine struct {
	root    string
	aside   string   // sources and archives: not part of the machine
	program string   // kmodctl
	kernels []string // releases
	headers string   // the folder that is mounted at usr, where something can be built; "" elsewhere
}

func (m machine) state() string { return filepath.Join(m.root, "var/lib/kmodctl") }

// command is a kmodctl command on the machine, below wrapper when that is given. @/ in
// an argument stands for the folder aside.
func (m machine) command(args []string, wrapper ...string) *exec.Cmd {
	argv := append(slices.Clone(wrapper), m.program, "--root", m.root)
	for _, a := range args {
		argv = append(argv, strings.ReplaceAll(a, "@/", m.aside+"/"))
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "TMPDIR="+m.aside, "HOME="+m.aside)
	return cmd
}

func (m machine) run(t testing.TB, args []string, wrapper ...string) result {
	t.Helper()
	return command(t, m.command(args, wrapper...))
}

func (m machine) must(t testing.TB, args ...string) result {
	t.Helper()
	r := m.run(t, args)
	if r.code != 0 {
		t.Fatalf("kmodctl %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.stderr)
	}
	return r
}

// newMachine makes a machine on which nothing is installed and these packages are
// registered and built for every kernel:
//
//	net 1.0: libarc4, and dummy, which the kernel has too
//	net 1.1: dummy and cordic, so that an upgrade places, replaces and removes
//	disk 1:  crc8
func newMachine(t testing.TB) machine {
	t.Helper()
	path, err := binary()
	check(t, err)
	m := machine{root: t.TempDir(), aside: t.TempDir(), program: path, kernels: tortured}
	check(t, os.Chmod(filepath.Dir(m.aside), 0o755))
	check(t, os.Chmod(m.aside, 0o777)) // uid 65534 may need a private copy of the database
	m.putKernels(t)
	m.fill(t, "net", "1.0", "", "libarc4", "dummy")
	m.fill(t, "net", "1.1", "", "dummy", "cordic")
	m.fill(t, "disk", "1", "", "crc8")
	return m
}

// putKernels gives the machine its kernels, of one module each.
func (m machine) putKernels(t testing.TB) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Join(m.root, "var/lib"), 0o755))
	check(t, os.MkdirAll(filepath.Join(m.root, "etc"), 0o755))
	for _, release := range m.kernels {
		dir := filepath.Join(m.root, "lib/modules", release)
		check(t, os.MkdirAll(filepath.Join(dir, "kernel"), 0o755))
		for _, name := range []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"} {
			check(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
		}
		check(t, os.WriteFile(filepath.Join(dir, "kernel/dummy.ko"), realModule(t, "dummy"), 0o644))
		if out, err := exec.Command("depmod", "-b", m.root, release).CombinedOutput(); err != nil {
			t.Fatalf("depmod: %v: %s", err, out)
		}
	}
}

// realModule is a small module of an installed kernel, without its signature: what
// is added at the end of a signed file hides it and is an error.
func realModule(t testing.TB, name string) []byte {
	t.Helper()
	var found []string
	for _, dir := range []string{"lib", "lib/crypto", "lib/math", "drivers/net"} {
		more, _ := filepath.Glob("/lib/modules/" + lender + "/kernel/" + dir + "/" + name + ".ko")
		found = append(found, more...)
	}
	if len(found) == 0 {
		t.Fatalf("no %s.ko below /lib/modules/%s: .ci/setup test", name, lender)
	}
	text, err := os.ReadFile(found[0])
	check(t, err)
	const tail = "~Module signature appended~\n" // after a length in 4 bytes (struct module_signature)
	if unsigned, ok := bytes.CutSuffix(text, []byte(tail)); ok {
		length := int(bin.BigEndian.Uint32(unsigned[len(unsigned)-4:]))
		text = unsigned[:len(unsigned)-12-length]
	}
	return text
}

// source makes a folder that can be added, and returns it.
func (m machine) source(t testing.TB, name, version, text string, modules ...string) string {
	t.Helper()
	dir := filepath.Join(m.aside, name+"-"+version)
	check(t, os.MkdirAll(dir, 0o755))
	toml := fmt.Sprintf("name = %q\nversion = %q\n", name, version)
	for _, mod := range modules {
		toml += fmt.Sprintf("\n[[module]]\nname = %q\n", mod)
		write(t, dir, mod+".c", "/* "+text+" */\n")
	}
	if _, err := os.Stat(filepath.Join(dir, "firmware")); err == nil { // see ship
		toml += "\n[files]\nfirmware = [\"led.bin\"]\nmodprobe = [\"led.conf\"]\n"
	}
	write(t, dir, "kmod.toml", toml)
	write(t, dir, "Kbuild", "obj-m := "+strings.Join(modules, ".o ")+".o\n")
	return dir
}

// fill registers a package with an artifact for every kernel. Nothing is built: the
// modules are those of a real kernel, made different by a few bytes and mark at the end.
func (m machine) fill(t testing.TB, name, version, mark string, modules ...string) {
	t.Helper()
	ctx := t.Context()
	reg, err := registry.OpenWriter(ctx, m.state(), kernel.Root(m.root), registry.WriterOptions{Command: "torture", Version: "0-test"})
	check(t, err)
	dir := m.source(t, name, version, "", modules...)
	manifest, err := os.ReadFile(filepath.Join(dir, "kmod.toml"))
	check(t, err)
	src, _, err := reg.AddSource(ctx, dir, name, version, string(manifest))
	check(t, err)
	temp := t.TempDir()
	for _, release := range m.kernels {
		art := registry.Artifact{Package: name, Version: version, Release: release, InputHash: name + version + release + mark, Built: time.Now()}
		art.Inputs = []registry.Input{{Name: "source", Value: src.Digest}}
		files := map[string]string{}
		for _, mod := range modules {
			files[mod] = filepath.Join(temp, mod)
			text := bytes.Replace(realModule(t, mod), []byte("vermagic="+lender), []byte("vermagic="+release), 1)
			text = append(text, []byte(name+version+mark)...)
			check(t, os.WriteFile(files[mod], text, 0o644))
			info, err := ko.Open(files[mod])
			check(t, err)
			art.Modules = append(art.Modules, registry.Module{
				Name: info.Name, File: mod + ".ko", BuildID: info.BuildID, Vermagic: info.Vermagic,
				SrcVersion: info.SrcVersion, Version: info.Version, Depends: info.Depends,
			})
		}
		_, err := reg.PutArtifact(ctx, art, files)
		check(t, err)
	}
	check(t, reg.Close())
}

// copyOf is a machine of the same content, which a trial may spoil.
func (m machine) copyOf(t testing.TB) machine {
	t.Helper()
	c := m
	c.root = t.TempDir()
	check(t, os.Chmod(filepath.Dir(c.root), 0o755))
	check(t, os.Chmod(c.root, 0o755))
	for _, dir := range []string{"etc", "lib", "var"} {
		if out, err := exec.Command("cp", "-a", "--reflink=auto", filepath.Join(m.root, dir), c.root).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
	}
	c.mountHeaders(t)
	return c
}

// ship registers led, a package that brings firmware and options with its module, of which each version has its own.
func (m machine) ship(t testing.TB, version string) {
	t.Helper()
	dir := m.source(t, "led", version, "", "crc7")
	check(t, os.MkdirAll(filepath.Join(dir, "firmware"), 0o755))
	write(t, dir, "firmware/led.bin", "firmware "+version)
	write(t, dir, "led.conf", "options crc7 version="+version+"\n")
	m.fill(t, "led", version, "", "crc7")
}

// shipped are the files that belong to packages and are no modules: digests by path.
func (m machine) shipped(t testing.TB) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, dir := range []string{"etc/modprobe.d", "lib/firmware"} {
		if _, err := os.Stat(filepath.Join(m.root, dir)); err != nil {
			continue
		}
		for path, digest := range sums(t, filepath.Join(m.root, dir)) {
			if !temporaryName.MatchString(filepath.Base(path)) {
				out[dir+"/"+path] = digest
			}
		}
	}
	return out
}

// facts are what the registry says, one line each, by kernel release; "" is for what
// belongs to none, and "files" for what is beside modules, as it is on the disk.
type facts map[string]string

func (m machine) facts(t testing.TB) facts {
	t.Helper()
	reg, err := registry.Open(t.Context(), m.state())
	check(t, err)
	defer reg.Close()
	sources, err1 := reg.Sources()
	artifacts, err2 := reg.Artifacts()
	installs, err3 := reg.Installs()
	originals, err4 := reg.Originals()
	pins, err5 := reg.Pins()
	for _, err := range []error{err1, err2, err3, err4, err5} {
		check(t, err)
	}
	f := facts{}
	for _, s := range sources {
		f[""] += fmt.Sprintln("source", s.Name, s.Version, s.Digest)
	}
	for _, a := range artifacts {
		f[""] += fmt.Sprint("artifact ", a.Package, " ", a.Version, " ", a.Release)
		for _, mod := range a.Modules {
			f[""] += fmt.Sprint(" ", mod.Digest)
		}
		f[""] += "\n"
	}
	for _, i := range installs {
		f[i.Release] += fmt.Sprintln("install", i.Module, i.Path, i.Package, i.Version, i.Digest)
	}
	for _, o := range originals {
		f[o.Release] += fmt.Sprintln("original", o.Module, o.Path, o.Digest)
	}
	shipped := m.shipped(t)
	for _, path := range sortedKeys(shipped) {
		f["files"] += fmt.Sprintln("file", path, shipped[path])
	}
	for _, p := range pins {
		f[p.Release] += fmt.Sprintln("pin", p.Package, p.Version, p.Artifact)
	}
	return f
}

// among reports whether a holds, for each release, what one of the others does.
func (a facts) among(others ...facts) bool {
	keys := maps.Clone(a)
	for _, o := range others {
		maps.Copy(keys, o)
	}
	for k := range keys {
		if !slices.ContainsFunc(others, func(o facts) bool { return o[k] == a[k] }) {
			return false
		}
	}
	return true
}

func (a facts) String() string {
	var out string
	for _, k := range sortedKeys(a) {
		out += "[" + k + "]\n" + a[k]
	}
	return out
}

// digests are those of every module that the registry has an artifact of, of every form that one is installed in, and of
// every file beside them.
func (f facts) digests() map[string]bool {
	out := map[string]bool{}
	for _, text := range f {
		for word := range strings.FieldsSeq(text) {
			out[word] = true
		}
	}
	return out
}

// checkAlways is what must hold at every moment, also between a fault and the next
// command: the files are right, and everybody can read.
func (m machine) checkAlways(t testing.TB, known map[string]bool) {
	t.Helper()
	m.checkFiles(t, known)
	for _, uid := range []uint32{0, 65534} {
		cmd := m.command([]string{"status"})
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if r := command(t, cmd); r.code != 0 {
			t.Errorf("status as uid %d: exit %d: %s%s", uid, r.code, r.out, r.stderr)
		}
	}
}

// checkFiles holds that no file of ours under /lib/modules is anything but a whole known
// module, none beside them anything but a whole known file, and that the kernel's own module is as it was.
func (m machine) checkFiles(t testing.TB, known map[string]bool) {
	t.Helper()
	for path, digest := range m.shipped(t) {
		if !known[digest] {
			t.Errorf("%s is no known file: sha256 %s", path, digest)
		}
	}
	for _, release := range m.kernels {
		dir := filepath.Join(m.root, "lib/modules", release)
		for path, digest := range sums(t, filepath.Join(dir, "updates")) {
			if _, ok := ko.CompressionOf(path); ok && !known[digest] {
				t.Errorf("%s in updates of %s is no known module: sha256 %s", path, release, digest)
			}
		}
		if own, err := os.ReadFile(filepath.Join(dir, "kernel/dummy.ko")); err != nil || !bytes.Equal(own, realModule(t, "dummy")) {
			t.Errorf("the kernel's own module was touched: %v", err)
		}
	}
}

// sums are the digests of the files below dir, by path. A file that goes while it
// is looked at is left out.
func sums(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) || err == nil && !d.Type().IsRegular() {
			return nil
		} else if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil
		}
		sum := sha256.Sum256(text)
		rel, _ := filepath.Rel(dir, path)
		out[rel] = hex.EncodeToString(sum[:])
		return err
	}))
	return out
}

// checkClean is what must hold after a command that may write: files, index, blobs
// and rows agree, and nothing temporary is left.
func (m machine) checkClean(t testing.TB) {
	t.Helper()
	if r := m.run(t, []string{"verify"}); r.code != 0 {
		t.Errorf("verify: exit %d\n%s%s", r.code, r.out, r.stderr)
	}
	var left []string
	for _, dir := range []string{"etc", "lib", "var"} {
		check(t, filepath.WalkDir(filepath.Join(m.root, dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && temporaryName.MatchString(d.Name()) {
				left = append(left, path)
			}
			return err
		}))
	}
	left = append(left, temporary(t, m.state())...)
	work, _ := filepath.Glob(m.state() + "/work/*")
	if left = append(left, work...); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// temporaryName is that of a file which must not outlive a command and its recovery.
var temporaryName = regexp.MustCompile(`^\.kmodctl-tmp-|^modules\..*\.[0-9]+\.[0-9]+\.[0-9]+$|^\.tmp-|-journal$`)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
