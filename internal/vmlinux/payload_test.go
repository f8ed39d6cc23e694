package vmlinux

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"
)

// bzImage is the least that Payload takes for a vmlinuz.
func bzImage(payload []byte) []byte {
	image := make([]byte, 2*512, 2*512+len(payload))
	image[0x1f1] = 1
	copy(image[0x202:], "HdrS\x0f\x02")
	binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(payload)))
	return append(image, payload...)
}

// withSize ends a payload as the kernel's build does.
func withSize(packed []byte, size int) []byte {
	return binary.LittleEndian.AppendUint32(packed, uint32(size))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// packed runs data through a compressor of this process.
func packed(data []byte, to func(io.Writer) io.WriteCloser) []byte {
	var b bytes.Buffer
	w := to(&b)
	must(w.Write(data))
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// payloads has one content packed in every way that Payload knows but bzip2 and
// xz with its x86 filter, which no Go package writes.
func payloads(data []byte) map[string][]byte {
	size := func(b []byte) []byte { return withSize(b, len(data)) }
	return map[string][]byte{
		"gzip": packed(data, func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }),
		"lzma": size(packed(data, func(w io.Writer) io.WriteCloser { return must(lzma.NewWriter(w)) })),
		"zstd": size(packed(data, func(w io.Writer) io.WriteCloser { return must(zstd.NewWriter(w)) })),
		"lz4": size(packed(data, func(w io.Writer) io.WriteCloser {
			z := lz4.NewWriter(w)
			if err := z.Apply(lz4.LegacyOption(true)); err != nil {
				panic(err)
			}
			return z
		})),
	}
}

// bzip2ELF is what bzip2 makes of the 16 bytes 7f 45 4c 46 02 01 01 00 00 00 00 00 00 00 00 00.
const bzip2ELF = "425a6839314159265359a31f6f25000005c480720003040000a000221ea07a84302024adb55f177245385090a31f6f25"

func TestPayloadOfEveryCompression(t *testing.T) {
	program := must(os.ReadFile("/proc/self/exe"))[:1<<20]
	images := payloads(program)
	for name, args := range map[string][]string{ // scripts/xz_wrap.sh
		"xz":             {"--check=crc32", "--x86", "--lzma2=dict=32MiB,preset=0"},
		"xz in blocks":   {"--check=crc32", "-T2", "--block-size=300KiB", "-0"},
		"xz, no check":   {"--check=none", "--x86", "--lzma2=preset=0"},
		"xz, no filters": {"--check=crc32", "-0"},
	} {
		cmd := exec.Command("xz", append(args, "-c")...)
		cmd.Stdin = bytes.NewReader(program)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("xz (install xz-utils): %v", err)
		}
		images[name] = withSize(out, len(program))
	}
	for name, payload := range images {
		if got, err := Payload(bzImage(payload)); err != nil || !bytes.Equal(got, program) {
			t.Errorf("%s: error %v, or content differs", name, err)
		}
	}
	small := must(hex.DecodeString(bzip2ELF))
	if got, err := Payload(bzImage(withSize(small, 16))); err != nil || len(got) != 16 {
		t.Errorf("bzip2: %q, error %v", got, err)
	}
}

func TestPayloadOfBadImages(t *testing.T) {
	content := []byte(elf.ELFMAG + strings.Repeat("content", 100))
	good := payloads(content)["zstd"]
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 0xff
	old := bzImage(good)
	old[0x206] = 7
	for name, test := range map[string]struct {
		image []byte
		want  string
	}{
		"empty":         {nil, "neither a vmlinuz (bzImage) nor a vmlinux"},
		"text":          {bytes.Repeat([]byte("text"), 1000), "neither a vmlinuz (bzImage) nor a vmlinux"},
		"cut short":     {bzImage(good)[:1040], "vmlinuz is cut short: payload ends at byte "},
		"size too big":  {bzImage(withSize(good[:len(good)-4], 9999)), "unpack vmlinuz: 704 bytes where 9999 were announced"},
		"size too low":  {bzImage(withSize(good[:len(good)-4], 100)), "unpack vmlinuz: 101 bytes where 100 were announced"},
		"damaged":       {bzImage(flipped), "unpack vmlinuz: "},
		"no ELF":        {bzImage(payloads([]byte("content"))["gzip"]), "unpack vmlinuz: payload is not an ELF file"},
		"LZO":           {bzImage([]byte("\x89LZO\x00\r\n\x1a\n and so on")), ErrCompression.Error()},
		"protocol 2.07": {old, ErrCompression.Error()},
	} {
		got, err := Payload(test.image)
		if err == nil || !strings.Contains(err.Error(), test.want) || got != nil {
			t.Errorf("%s: %d bytes, error %v; want %s", name, len(got), err, test.want)
		}
	}
	if _, err := Payload(old); !errors.Is(err, ErrCompression) {
		t.Errorf("an old image is not ErrCompression, to be booted as it is: %v", err)
	}
}

func FuzzPayload(f *testing.F) {
	for _, payload := range payloads([]byte(elf.ELFMAG + "content")) {
		f.Add(payload)
	}
	f.Add(withSize(must(hex.DecodeString(bzip2ELF)), 16))
	f.Add(withSize(must(hex.DecodeString("fd377a585a0000016922de360201040021010800d2b974cbe0000f000d5d003f914584683d89a6da8aa00000000000004b5818f000012510a875c2d59042990d010000000001595a")), 16))
	f.Fuzz(func(t *testing.T, payload []byte) {
		if vmlinux, err := Payload(bzImage(payload)); err == nil && !bytes.HasPrefix(vmlinux, []byte(elf.ELFMAG)) {
			t.Errorf("%q is no vmlinux", vmlinux)
		}
	})
}
