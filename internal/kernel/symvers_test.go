package kernel

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadSymvers(t *testing.T) {
	got, err := ReadSymvers(strings.NewReader("0x4c9d28b0\tphys_base\tvmlinux\tEXPORT_SYMBOL\t\n" +
		"0x000000ff\ttun_get_socket\tdrivers/net/tun\tEXPORT_SYMBOL_GPL\t\n" +
		"0xffffffff\tdma_buf_get\tvmlinux\tEXPORT_SYMBOL_GPL\tDMA_BUF\n" +
		"0x815f2897\told\tvmlinux\tEXPORT_SYMBOL_GPL\n" + // before 5.4
		"0x00000001\tusb_stor\tUSB_STORAGE\tdrivers/usb/storage/usb-storage\tEXPORT_SYMBOL_GPL\n" + // 5.4
		"0x00000002\tplain\t\tvmlinux\tEXPORT_SYMBOL\n"))
	want := map[string]Symbol{
		"phys_base":      {0x4c9d28b0, "vmlinux", "EXPORT_SYMBOL", ""},
		"tun_get_socket": {0xff, "drivers/net/tun", "EXPORT_SYMBOL_GPL", ""},
		"dma_buf_get":    {0xffffffff, "vmlinux", "EXPORT_SYMBOL_GPL", "DMA_BUF"},
		"old":            {0x815f2897, "vmlinux", "EXPORT_SYMBOL_GPL", ""},
		"usb_stor":       {1, "drivers/usb/storage/usb-storage", "EXPORT_SYMBOL_GPL", "USB_STORAGE"},
		"plain":          {2, "vmlinux", "EXPORT_SYMBOL", ""},
	}
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("symbols (-want +got):\n%s", diff)
	}
}

func TestReadSymversRefuses(t *testing.T) {
	const good = "0x4c9d28b0\tphys_base\tvmlinux\tEXPORT_SYMBOL\t\n"
	for _, bad := range []string{
		"0x4c9d28b0\tphys_base\n",
		"0x4c9d28b0 phys_base vmlinux EXPORT_SYMBOL\n",
		"0x4c9d28b0ff\tname\tvmlinux\tEXPORT_SYMBOL\t\n",
		"crc\tname\tvmlinux\tEXPORT_SYMBOL\t\n",
		"0x1\t\tvmlinux\tEXPORT_SYMBOL\t\n",
		"0x1\ta\tvmlinux\tEXPORT_SYMBOL\t\tmore\n",
		good,
	} {
		if _, err := ReadSymvers(strings.NewReader(good + bad)); err == nil || !strings.HasPrefix(err.Error(), "line 2: ") {
			t.Errorf("%q: error %v does not name line 2", bad, err)
		}
	}
}

func FuzzReadSymvers(f *testing.F) {
	f.Add("0x4c9d28b0\tphys_base\tvmlinux\tEXPORT_SYMBOL\t\n")
	f.Add("0x4c9d28b0\tphys_base\tvmlinux\tEXPORT_SYMBOL\n")
	f.Add("0x1\tn\tNS\tvmlinux\tEXPORT_SYMBOL\n\n")
	f.Add("0x\t\t\t\t")
	f.Fuzz(func(t *testing.T, text string) {
		symbols, err := ReadSymvers(strings.NewReader(text))
		if err != nil {
			return
		}
		// What was read must read the same again when written as modpost writes it.
		for name, s := range symbols {
			line := fmt.Sprintf("%#08x\t%s\t%s\t%s\t%s\n", s.CRC, name, s.Module, s.Export, s.Namespace)
			again, err := ReadSymvers(strings.NewReader(line))
			if err != nil || strings.HasPrefix(s.Namespace, "EXPORT_") {
				continue // names with control characters, which modpost never writes
			}
			if again[name] != s {
				t.Fatalf("%q reads as %+v, written %+v", line, again[name], s)
			}
		}
	})
}

// What is read for some symbols is what is read for all.
func TestSymbolsOf(t *testing.T) {
	for _, tree := range trees(t) {
		all, err := tree.Symbols()
		if err != nil {
			t.Fatal(err)
		}
		names, want := map[string]bool{"nowhere": true}, map[string]Symbol{}
		for name, s := range all {
			if len(names) < 100 {
				names[name], want[name] = true, s
			}
		}
		got, err := tree.SymbolsOf(names)
		if err != nil || len(all) < 1000 {
			t.Fatalf("%d symbols, %v", len(all), err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-all +some):\n%s", tree.Symvers, diff)
		}
	}
}

// trees are the build trees of this machine.
func trees(t testing.TB) (list []*Tree) {
	all, err := Find("/")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range all {
		if k.Tree != nil {
			list = append(list, k.Tree)
		}
	}
	if len(list) == 0 {
		t.Fatal("no build tree here: apt install linux-headers-amd64")
	}
	return list
}

func BenchmarkSymbols(b *testing.B) {
	tree := trees(b)[0]
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			tree.Symbols()
		}
	})
	b.Run("some", func(b *testing.B) {
		for b.Loop() {
			tree.SymbolsOf(map[string]bool{"_printk": true})
		}
	})
}
