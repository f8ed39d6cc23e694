package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The benchmarks time whole processes, each beside a peer in the same run, since
// machines differ and are noisy: the ratio is the figure, milliseconds are the
// minimum of twenty. They run once each: make bench.

// times runs f n times and returns how long each took, sorted.
func times(b *testing.B, n int, prepare func(), f func() *exec.Cmd) (out []time.Duration) {
	b.Helper()
	for range n {
		if prepare != nil {
			prepare()
		}
		cmd := f()
		start := time.Now()
		text, err := cmd.CombinedOutput()
		out = append(out, time.Since(start))
		if err != nil {
			b.Fatalf("%s: %v\n%s", cmd, err, text)
		}
	}
	slices.Sort(out)
	return out
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// minimum reports the least of twenty.
func minimum(b *testing.B, args ...string) {
	b.Helper()
	path, err := binary()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		all := times(b, 20, nil, func() *exec.Cmd { return exec.Command(path, args...) })
		b.ReportMetric(milliseconds(all[0]), "min-ms")
		b.ReportMetric(milliseconds(all[len(all)/2]), "median-ms")
	}
	b.ReportMetric(0, "ns/op")
}

// against reports ours and the peer's median of ten, taken in turn, and the ratio.
func against(b *testing.B, ours, peer func() *exec.Cmd, prepareOurs, preparePeer func()) {
	b.Helper()
	againstTimes(b, 10, ours, peer, prepareOurs, preparePeer)
}

func againstTimes(b *testing.B, n int, ours, peer func() *exec.Cmd, prepareOurs, preparePeer func()) {
	b.Helper()
	for b.Loop() {
		var a, c []time.Duration
		for range n {
			a = append(a, times(b, 1, prepareOurs, ours)...)
			c = append(c, times(b, 1, preparePeer, peer)...)
		}
		slices.Sort(a)
		slices.Sort(c)
		b.ReportMetric(milliseconds(a[n/2]), "ours-ms")
		b.ReportMetric(milliseconds(c[n/2]), "peer-ms")
		b.ReportMetric(float64(a[n/2])/float64(c[n/2]), "ratio")
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkStart is the start-up of the binary: the goal is 3 ms.
func BenchmarkStart(b *testing.B) { minimum(b, "version") }

// BenchmarkLoadDryRun is the plan for one module of a full Debian tree beside that of
// modprobe -n: the goal is a ratio below 3.
func BenchmarkLoadDryRun(b *testing.B) {
	path, err := binary()
	if err != nil {
		b.Fatal(err)
	}
	for _, release := range releases(b) {
		b.Run(release, func(b *testing.B) {
			againstTimes(b, 200,
				func() *exec.Cmd { return exec.Command(path, "load", "-k", release, "--dry-run", "8021q") },
				func() *exec.Cmd { return exec.Command("modprobe", "-n", "-S", release, "8021q") }, nil, nil)
		})
	}
}

// bench is a root with the six examples built and installed for two kernels.
func bench(b *testing.B) (root, dir string, rels []string) {
	rels = releases(b)
	root = newRoot(b, rels...)
	dir, paths := examplePaths(b)
	must(b, append([]string{"--root", root, "build"}, paths...)...)
	return root, dir, rels
}

// BenchmarkNothingToDo is `kmodctl build` of six packages for two kernels that are
// all current (goal: under 20 ms), and BenchmarkStatus what people type meanwhile.
func BenchmarkNothingToDo(b *testing.B) {
	root, _, _ := bench(b)
	minimum(b, "--root", root, "build")
}

// BenchmarkNothingToDoForMany is the same of a generated store, 30 packages for 8 kernels (goal: under 20 ms).
func BenchmarkNothingToDoForMany(b *testing.B) {
	path, err := binary()
	if err != nil {
		b.Fatal(err)
	}
	root := newStore(b, 30, 8)
	learn(b, path, root)
	minimum(b, "--root", root, "build", "--no-install")
}

func BenchmarkStatus(b *testing.B) {
	root, _, _ := bench(b)
	minimum(b, "--root", root, "status")
}

// BenchmarkBuild is `kmodctl build --no-install` of hello beside plain kbuild of
// the same source on the same tree, for each kernel.
func BenchmarkBuild(b *testing.B) {
	for _, release := range releases(b) {
		b.Run(release, func(b *testing.B) {
			root := newRoot(b, release)
			dir, _ := examplePaths(b)
			hello, plain := filepath.Join(dir, "hello"), filepath.Join(b.TempDir(), "plain")
			path, err := binary()
			if err != nil {
				b.Fatal(err)
			}
			fresh := func() {
				os.RemoveAll(plain)
				if err := os.CopyFS(plain, os.DirFS(hello)); err != nil {
					b.Fatal(err)
				}
			}
			against(b, func() *exec.Cmd {
				return exec.Command(path, "--root", root, "build", "--no-install", hello, "-k", release)
			}, func() *exec.Cmd {
				return exec.Command("make", "-C", "/lib/modules/"+release+"/build", "M="+plain, "-j2", "modules")
			}, func() { changeByte(b, filepath.Join(hello, "hello.c")) }, fresh)
		})
	}
}

// BenchmarkInstall is install beside cp + depmod, on this machine's real module
// tree of the 6.1 kernel (about 4,000 files), copied.
func BenchmarkInstall(b *testing.B) {
	release := releases(b)[0]
	root := newRoot(b, release)
	base := filepath.Join(root, "lib/modules", release)
	os.RemoveAll(filepath.Join(base, "kernel"))
	put(b, root, "/lib/modules/"+release+"/kernel")
	dir, _ := examplePaths(b)
	must(b, "--root", root, "build", "--no-install", filepath.Join(dir, "hello"), "-k", release)
	path, err := binary()
	if err != nil {
		b.Fatal(err)
	}
	blobs, _ := filepath.Glob(filepath.Join(root, "var/lib/kmodctl/blobs/sha256/*"))
	ko := blobs[slices.IndexFunc(blobs, func(p string) bool {
		text, _ := os.ReadFile(p)
		return strings.HasPrefix(string(text), "\x7fELF")
	})]
	extra := filepath.Join(base, "extra")
	against(b, func() *exec.Cmd {
		return exec.Command(path, "--root", root, "install", "hello")
	}, func() *exec.Cmd {
		return exec.Command("sh", "-c", fmt.Sprintf("mkdir -p %[1]s && cp %[2]s %[1]s/hello.ko && depmod -b %[3]s %[4]s", extra, ko, root, release))
	}, func() {
		os.RemoveAll(extra)
		must(b, "--root", root, "uninstall", "hello")
	}, func() { must(b, "--root", root, "uninstall", "hello") })
}
