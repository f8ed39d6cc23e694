package kernel

import (
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// onHost returns the newest installed kernel of a series ("6.1.") that has headers.
func onHost(t *testing.T, series string) Release {
	t.Helper()
	releases, err := Find("/")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range slices.Backward(releases) {
		if strings.HasPrefix(r.Name, series) && r.Modules != "" && r.Tree != nil {
			return r
		}
	}
	t.Fatalf("no kernel %s* with headers in /lib/modules: .ci/setup test", series)
	return Release{}
}

func TestHostKernels(t *testing.T) {
	for _, series := range []string{"6.1.", "6.12."} {
		r := onHost(t, series)
		if r.Tree.Path != r.Tree.Host {
			t.Errorf("%s: tree %s is opened as %s", r.Name, r.Tree.Path, r.Tree.Host)
		}
		if cc, err := r.Tree.Config.Get("CC_VERSION_TEXT"); !strings.Contains(r.Tree.CC, "gcc") || r.Tree.CC != cc || err != nil {
			t.Errorf("%s: compiler %q, %q, %v", r.Name, r.Tree.CC, cc, err)
		}
		// The last is beyond what is read at once.
		for _, expr := range []string{"MODULES", "!MODULES_ARE_NOT_A_NAME", "DEBUG_INFO_BTF_MODULES"} {
			if has, err := r.Tree.Config.Has(expr); !has || err != nil {
				t.Errorf("%s: %s is %v, %v", r.Name, expr, has, err)
			}
		}
		if _, machine, _ := uname(); r.Arch != machine {
			t.Errorf("%s: arch %s from the configuration, the machine is %s", r.Name, r.Arch, machine)
		}
		if r.Image == "" {
			t.Errorf("%s: no image", r.Name)
		}
		file, err := os.Open(r.Tree.Symvers)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		symbols, err := ReadSymvers(file)
		if err != nil {
			t.Fatal(err)
		}
		if len(symbols) < 10000 || symbols["module_layout"].CRC == 0 || symbols["_printk"].Module != "vmlinux" {
			t.Errorf("%s: %d symbols, module_layout %+v", r.Name, len(symbols), symbols["module_layout"])
		}
		if s := symbols["dma_buf_get"]; s.Namespace != "DMA_BUF" || s.Export != "EXPORT_SYMBOL_GPL" {
			t.Errorf("%s: dma_buf_get %+v", r.Name, s)
		}
	}
}

func TestHostRunning(t *testing.T) {
	version, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.TrimSpace(string(version))
	releases, err := Find("")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSortedFunc(releases, func(a, b Release) int { return Compare(a.Name, b.Name) }) {
		t.Error("kernels are not sorted")
	}
	running := slices.DeleteFunc(releases, func(r Release) bool { return !r.Running })
	if len(running) != 1 || running[0].Name != want || running[0].Arch == "" {
		t.Fatalf("running %+v, want %s alone", running, want)
	}
	if r := running[0]; r.Tree == nil && len(r.Missing) == 0 {
		t.Errorf("%s has no tree and nothing says why", r.Name)
	}
	if one, err := Get("/", want); err != nil || !one.Running {
		t.Errorf("Get(%s) = %+v, %v", want, one, err)
	}
}

// Find stands before every build, so it must stay cheap: of a tree it reads
// .config and its Makefile once, and never Module.symvers, which is two megabytes.
func TestFindOpensLittle(t *testing.T) {
	root := plant(t, join(tree("usr/src/linux-headers-6.1.0-56-amd64"), map[string]string{
		"lib/modules/6.1.0-56-amd64/build": "-> /usr/src/linux-headers-6.1.0-56-amd64",
	}))
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	if _, err := unix.InotifyAddWatch(fd, string(root)+"/usr/src/linux-headers-6.1.0-56-amd64", unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	if _, err := Find(root); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 1<<16)
	n, err := unix.Read(fd, buffer)
	if err != nil {
		t.Fatalf("not even .config was opened: %v", err)
	}
	seen := string(buffer[:n])
	if strings.Count(seen, ".config") != 1 || strings.Contains(seen, "symvers") || strings.Count(seen, "Makefile") != 1 {
		t.Errorf("opened in the tree: %q", strings.ReplaceAll(seen, "\x00", ""))
	}
}

func BenchmarkFind(b *testing.B) {
	for b.Loop() {
		if _, err := Find("/"); err != nil {
			b.Fatal(err)
		}
	}
}
