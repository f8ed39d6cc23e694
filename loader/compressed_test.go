package loader_test

import (
	"bytes"
	"context"
	"crypto"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kmodctl/internal/ko"
	"kmodctl/internal/modsig"
	"kmodctl/internal/vm"
	"kmodctl/loader"
)

// packedForms are how a signed module is given to the kernels.
var packedForms = []string{"", "xz", "zstd", "gzip"}

// packedFile is one of them in the guest.
func packedFile(compression string) string { return specimens + "/crc7.ko" + ko.Suffix(compression) }

const wayMark = "WAY "

// TestCompressedOnRealKernels: a module that is signed, then compressed, loads on both series, whatever it is compressed
// with. A kernel that says it decompresses xz (6.12) gets the file itself, with MODULE_INIT_COMPRESSED_FILE; for the others
// it is unpacked into a memfd.
func TestCompressedOnRealKernels(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, release := range installed(t) {
		t.Run(release, func(t *testing.T) {
			var out, console bytes.Buffer
			exit, err := vm.Run(t.Context(), vm.Config{
				Image: "/boot/vmlinuz-" + release, Init: self, Env: map[string]string{guestMode: "packed"},
				Files: packed(t, release), Output: &out, Console: &console,
			})
			if err != nil || exit != 0 {
				t.Fatalf("exit code %d, %v\n%s\n%s", exit, err, out.String(), console.String())
			}
			var got []string
			for line := range strings.Lines(out.String()) {
				if way, ok := strings.CutPrefix(line, wayMark); ok {
					got = append(got, strings.TrimSpace(way))
				}
			}
			for i, compression := range packedForms {
				want := packedFile(compression) + " memfd flags 0"
				switch {
				case compression == "":
					want = packedFile(compression) + " file flags 0"
				case compression == "xz" && strings.HasPrefix(release, "6.12."):
					want = packedFile(compression) + " file flags 4"
				}
				if i >= len(got) || got[i] != want {
					t.Errorf("got %q, want %q at %d", got, want, i)
				}
			}
		})
	}
}

// packed is a module of a release, signed by a key that it does not know and compressed in each way.
func packed(t *testing.T, release string) (files []vm.File) {
	t.Helper()
	found, _ := filepath.Glob("/lib/modules/" + release + "/kernel/lib/crc7.ko*")
	if len(found) != 1 {
		t.Fatalf("crc7 of %s: %q", release, found)
	}
	data, err := os.ReadFile(found[0])
	if err == nil {
		data, _, err = ko.Decompress(data)
	}
	if err != nil {
		t.Fatal(err)
	}
	key, cert := stranger(t, "packed")
	signed, err := modsig.Sign(data, key, cert, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	for _, compression := range packedForms {
		file, err := ko.Compress(signed, compression)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, vm.File{Guest: packedFile(compression), Data: file})
	}
	return files
}

// recorder is the kernel, and tells which way a module took.
type recorder struct{ loader.Kernel }

func (r recorder) Finit(f *os.File, params string, flags int) error {
	way := "file"
	if at, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); err == nil && strings.HasPrefix(at, "/memfd:") {
		way = "memfd"
	}
	err := r.Kernel.Finit(f, params, flags)
	if err != nil {
		fmt.Printf("%s flags %d: %v\n", way, flags, err)
		return err
	}
	fmt.Printf("%s flags %d\n", way, flags)
	return nil
}

// loadPacked is the guest's side.
func loadPacked() error {
	l := loader.New(loader.DefaultTimeout)
	defer l.Close()
	recording := &loader.Loader{Kernel: recorder{l.Kernel}, Root: "/"}
	for _, compression := range packedForms {
		file := packedFile(compression)
		info, err := ko.Open(file)
		if err != nil {
			return err
		}
		if info.Signature == nil || info.Signature.Signer != "packed" {
			return fmt.Errorf("%s: signature %+v", file, info.Signature)
		}
		fmt.Print(wayMark + file + " ")
		insert := &loader.Plan{Steps: []loader.Step{{Action: loader.Insert, Module: info.Name, Path: file}}}
		if _, err := recording.Run(context.Background(), insert); err != nil {
			return err
		}
		remove := &loader.Plan{Steps: []loader.Step{{Action: loader.Remove, Module: info.Name}}}
		if _, err := recording.Run(context.Background(), remove); err != nil {
			return err
		}
	}
	return nil
}
