package ko

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"kmodctl/internal/kernel"
	"kmodctl/internal/modsig"
	"kmodctl/internal/vmlinux"
)

// TestOracle reads every in-tree module of one kernel of each series and holds
// it against modinfo(8), against Module.symvers of that kernel's headers, and its
// signature against the certificates in that kernel's image.
func TestOracle(t *testing.T) {
	for _, series := range []string{"6.1.", "6.12."} {
		t.Run(series+"x", func(t *testing.T) {
			release := installedKernel(t, series)
			files := modulesOf(t, release)
			atLeast := 1000
			if testing.Short() {
				atLeast = 100
				files = every(files, 10)
			}
			symvers := readSymvers(t, release)
			certs := builtinCertificates(t, release)
			var exports, imports atomic.Int64
			var g errgroup.Group
			g.SetLimit(runtime.GOMAXPROCS(0))
			for batch := range slices.Chunk(files, 100) {
				g.Go(func() error {
					infos := make([]*Info, len(batch))
					for i, path := range batch {
						info, err := openVerified(path, certs)
						if err != nil {
							return err
						}
						if info.Release() != release {
							t.Errorf("%s: Release() = %q", path, info.Release())
						}
						exports.Add(checkExports(t, path, info, symvers))
						imports.Add(checkImports(t, path, info, symvers))
						infos[i] = info
					}
					return compareModinfo(t, batch, infos)
				})
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %d files equal modinfo, their signatures are the kernel's; %d exports and %d CRCs of imports equal Module.symvers", release, len(files), exports.Load(), imports.Load())
			if len(files) < atLeast || exports.Load() == 0 || imports.Load() == 0 {
				t.Fatalf("%s has only %d modules to compare, want %d", release, len(files), atLeast)
			}
		})
	}
}

// builtinCertificates are those that the kernel of release trusts by itself.
func builtinCertificates(t *testing.T, release string) []*x509.Certificate {
	t.Helper()
	image, err := os.ReadFile("/boot/vmlinuz-" + release)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := vmlinux.Payload(image)
	if err != nil {
		t.Fatal(err)
	}
	return vmlinux.Certificates(payload)
}

// openVerified is Open for a module that one of certs must have signed.
func openVerified(path string, certs []*x509.Certificate) (*Info, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	file, _, err := Decompress(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	image, sig, err := modsig.Split(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if sig == nil {
		return nil, fmt.Errorf("%s: not signed", path)
	}
	if _, err := sig.Verify(image, certs); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return Read(file)
}

// compareModinfo runs modinfo over all paths and expects exactly the text that
// follows from infos. Values hold newlines, so the text is not parsed: it is made.
func compareModinfo(t *testing.T, paths []string, infos []*Info) error {
	cmd := exec.Command("modinfo", paths...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("modinfo (apt install kmod): %w", err)
	}
	rest := string(out)
	for i, info := range infos {
		want := rest
		if i+1 < len(paths) {
			end := strings.Index(rest, "\nfilename:       "+paths[i+1]+"\n") + 1
			want, rest = rest[:end], rest[end:]
		}
		if got := asModinfo(paths[i], info); got != want {
			t.Errorf("%s (-modinfo +ko):\n%s", paths[i], cmp.Diff(want, got))
		}
	}
	return nil
}

// asModinfo prints info as modinfo of kmod 30 does.
func asModinfo(path string, info *Info) string {
	var b strings.Builder
	line := func(key, value string) { fmt.Fprintf(&b, "%-16s%s\n", key+":", value) }
	line("filename", path)
	for _, f := range info.Fields {
		if f.Key != "parm" && f.Key != "parmtype" {
			line(f.Key, f.Value)
		}
	}
	if s := info.Signature; s != nil {
		line("sig_id", s.IDType)
		line("signer", s.Signer)
		line("sig_key", s.KeyID)
		line("sig_hashalgo", s.Hash)
		const perLine = 20 * 3 // hex of 20 bytes
		var lines []string
		for rest := s.Bytes; rest != ""; rest = rest[min(perLine, len(rest)):] {
			lines = append(lines, rest[:min(perLine, len(rest))])
		}
		line("signature", strings.Join(lines, "\n\t\t"))
	}
	for _, p := range info.Params {
		switch {
		case p.Description == "" && p.Type == "": // .modinfo, and so modinfo, does not know it
		case p.Description == "":
			line("parm", p.Name+":"+p.Type)
		case p.Type == "":
			line("parm", p.Name+":"+p.Description)
		default:
			line("parm", p.Name+":"+p.Description+" ("+p.Type+")")
		}
	}
	return b.String()
}

// symvers is a Module.symvers: by symbol, and by module what it exports.
type symvers struct {
	crc     map[string]uint32
	modules map[string]map[string]Export
}

// checkExports compares what the module exports with the lines of Module.symvers
// that name it, and returns their number.
func checkExports(t *testing.T, path string, info *Info, s symvers) int64 {
	_, inTree, _ := strings.Cut(path, "/kernel/")
	inTree, _, _ = strings.Cut(inTree, ".ko")
	got := map[string]Export{}
	for _, e := range info.Exports {
		got[e.Name] = e
	}
	want := s.modules[inTree]
	if want == nil {
		want = map[string]Export{}
	}
	if diff := cmp.Diff(want, got); diff != "" || len(got) != len(info.Exports) {
		t.Errorf("%s: %d exports (-Module.symvers +ko):\n%s", path, len(info.Exports), diff)
	}
	return int64(len(want))
}

// checkImports expects every import to carry the CRC under which the kernel or
// a module exports it; only weak ones may be exported by nobody.
func checkImports(t *testing.T, path string, info *Info, s symvers) int64 {
	if crc, ok := info.ModuleLayoutCRC(); !ok || crc != s.crc[moduleLayout] || !info.Modversions {
		t.Errorf("%s: CRC of module_layout %#x, %v", path, crc, ok)
	}
	for _, i := range info.Imports {
		crc, exported := s.crc[i.Name]
		if exported && (!i.HasCRC || i.CRC != crc) || !exported && !i.Weak {
			t.Errorf("%s: import %+v, Module.symvers has %#x, %v", path, i, crc, exported)
		}
	}
	return int64(len(info.Imports))
}

func readSymvers(t *testing.T, release string) symvers {
	t.Helper()
	f, err := os.Open(filepath.Join("/lib/modules", release, "build/Module.symvers"))
	if err != nil {
		t.Fatalf("apt install linux-headers-%s: %v", release, err)
	}
	defer f.Close()
	s := symvers{crc: map[string]uint32{}, modules: map[string]map[string]Export{}}
	symbols, err := kernel.ReadSymvers(f)
	if err != nil {
		t.Fatal(err)
	}
	for name, x := range symbols {
		s.crc[name] = x.CRC
		if s.modules[x.Module] == nil {
			s.modules[x.Module] = map[string]Export{}
		}
		s.modules[x.Module][name] = Export{Name: name, GPL: x.Export == "EXPORT_SYMBOL_GPL", Namespace: x.Namespace, CRC: x.CRC, HasCRC: true}
	}
	return s
}

// installedKernel returns the newest installed release of a series like "6.1.".
func installedKernel(t testing.TB, series string) string {
	t.Helper()
	found, _ := filepath.Glob("/lib/modules/" + series + "*/kernel")
	if len(found) == 0 {
		t.Fatalf("no kernel %sx under /lib/modules: apt install a linux-image of that series with its headers", series)
	}
	return filepath.Base(filepath.Dir(found[len(found)-1]))
}

func modulesOf(t testing.TB, release string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(filepath.Join("/lib/modules", release, "kernel"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.Contains(d.Name(), ".ko") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func every[T any](list []T, n int) []T {
	var picked []T
	for i := 0; i < len(list); i += n {
		picked = append(picked, list[i])
	}
	return picked
}

// plainModule returns an in-tree module of the 6.1 kernel, decompressed.
func plainModule(t testing.TB, name string) []byte {
	t.Helper()
	release := installedKernel(t, "6.1.")
	for _, path := range modulesOf(t, release) {
		if base, _, _ := strings.Cut(filepath.Base(path), ".ko"); base == name {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			data, _, err = Decompress(data)
			if err != nil {
				t.Fatal(err)
			}
			return bytes.Clone(data)
		}
	}
	t.Fatalf("kernel %s has no module %s", release, name)
	return nil
}
