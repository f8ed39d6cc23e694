package main

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

// storeKernels is how many kernels a generated store is for.
const storeKernels = 20

// BenchmarkStore times commands on stores of up to 20,000 artifacts: 1,000 packages
// for 20 kernels, of which every second one is installed (the last command installs all). The table has the minimum
// of twenty runs in ms, and what 1,000 more artifacts cost between two sizes. As on a machine of
// years, the digests of the build trees are known.
// Goals at 20,000: status 150 ms, status NAME 10 ms, gc --dry-run 2 s.
func BenchmarkStore(b *testing.B) {
	path, err := binary()
	if err != nil {
		b.Fatal(err)
	}
	sizes := []int{100, 1000, 10000, 20000}
	commands := [][]string{{"status"}, {"status", "p0003"}, {"build", "--no-install"}, {"gc", "--dry-run"}, {"build"}}
	cells := make([][]float64, len(commands))
	for b.Loop() {
		for _, size := range sizes {
			start := time.Now()
			root := newStore(b, size/storeKernels, storeKernels)
			b.Logf("a store of %d artifacts was made in %.1f s", size, time.Since(start).Seconds())
			learn(b, path, root)
			for i, args := range commands {
				args = append([]string{"--root", root}, args...)
				all := times(b, 20, nil, func() *exec.Cmd { return exec.Command(path, args...) })
				cells[i] = append(cells[i], milliseconds(all[0]))
			}
			os.RemoveAll(root)
		}
	}
	b.ReportMetric(0, "ns/op")
	var text bytes.Buffer
	t := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "artifacts\t")
	for i, size := range sizes {
		fmt.Fprintf(t, "%d\t", size)
		if i > 0 {
			fmt.Fprint(t, "per 1,000\t")
		}
	}
	for c, args := range commands {
		fmt.Fprintf(t, "\n%s\t", strings.Join(args, " "))
		for i, ms := range cells[c] {
			fmt.Fprintf(t, "%.1f ms\t", ms)
			if i > 0 {
				fmt.Fprintf(t, "+%.2f\t", (ms-cells[c][i-1])*1000/float64(sizes[i]-sizes[i-1]))
			}
		}
	}
	fmt.Fprintln(t)
	t.Flush()
	b.Logf("\n%s", &text)
}

// learn has kmodctl keep what it learns of the files of a store.
func learn(t testing.TB, path, root string) {
	t.Helper()
	time.Sleep(2 * time.Second) // nothing is kept of files that have just changed: registry.FileFact
	if out, err := exec.Command(path, "--root", root, "build", "--no-install").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// newStore makes a root with some kernels, and a registry with as many artifacts of
// each package: their inputs are today's, so that nothing is to be done. It lies in
// memory: nobody waits for a disk.
func newStore(t testing.TB, packages, kernelCount int) string {
	t.Helper()
	root, err := os.MkdirTemp("/dev/shm", "kmodctl-store-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) {
		t.Helper()
		ok(os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755))
		ok(os.WriteFile(filepath.Join(root, name), []byte(text), 0o644))
	}
	real := releases(t)[0]
	copyOf := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join("/lib/modules", real, name))
		ok(err)
		return string(text)
	}
	config, symvers, object := copyOf("build/.config"), copyOf("build/Module.symvers"), copyOf("kernel/lib/crc7.ko")
	for i := range kernelCount {
		modules := fmt.Sprintf("lib/modules/6.1.0-%d-amd64/", i+1)
		write(modules+"modules.order", "")
		write(modules+"modules.builtin", "")
		for name, text := range map[string]string{"Makefile": "", "scripts/x": "", ".config": config, "Module.symvers": symvers} {
			write(modules+"build/"+name, text)
		}
	}
	var dirs []string
	for p := range packages {
		name := fmt.Sprintf("p%04d", p)
		dirs = append(dirs, filepath.Join(root, "src", name))
		write("src/"+name+"/kmod.toml", fmt.Sprintf("name = %q\nversion = \"1.0\"\n\n[[module]]\nname = %[1]q\n", name))
		write("src/"+name+"/Makefile", "obj-m := "+name+".o\n")
		write("src/"+name+"/"+name+".c", "/* "+name+" */\n")
	}
	kernels, err := kernel.Find(kernel.Root(root))
	ok(err)
	reg, err := registry.OpenWriter(t.Context(), filepath.Join(root, "var/lib/kmodctl"), kernel.Root(root), registry.WriterOptions{Command: "bench"})
	ok(err)
	defer func() { ok(reg.Close()) }()
	j := &job{env: &env{root: kernel.Root(root), quiet: true, err: newScreen(os.Stderr)}, reg: reg}
	planner := build.Planner{FileFact: reg.FileFact}
	due := map[string][]registry.Artifact{}
	file := filepath.Join(root, "x.ko")
	for p, dir := range dirs {
		src, _, err := j.add(t.Context(), dir)
		ok(err)
		m, err := build.ParseManifest("kmod.toml", []byte(src.Manifest))
		ok(err)
		for _, k := range kernels {
			step := planner.Decide(m, src.Digest, k, nil, build.Made{})
			ok(step.Err)
			art := putBuilt(t, reg, step, file, object)
			if p%2 == 0 {
				due[k.Name] = append(due[k.Name], art)
			}
		}
	}
	for release, arts := range due {
		_, err := reg.Install(t.Context(), release, arts, nil)
		ok(err)
	}
	return root
}

// putBuilt keeps what a build of that step could have made, its log, and an attempt before it
// that failed with other inputs.
func putBuilt(t testing.TB, reg *registry.Registry, s build.Step, file, object string) registry.Artifact {
	t.Helper()
	log, _, logErr := reg.PutBlob(t.Context(), strings.NewReader("make: of "+s.InputHash+"\n"))
	failed := registry.Attempt{Op: registry.OpBuild, Package: s.Package, Version: s.Version, Release: s.Release, InputHash: s.InputHash[:63] + "x"}
	failed, err := reg.BeginAttempt(failed)
	failed.Outcome, failed.Error, failed.Seconds = registry.OutcomeFailed, "x.c:1:1: error: expected ';'", 1
	err = cmp.Or(logErr, err, reg.FinishAttempt(failed))
	err = cmp.Or(err, os.WriteFile(file, []byte(object+s.InputHash), 0o644))
	try, beginErr := reg.BeginAttempt(registry.Attempt{Op: registry.OpBuild, Package: s.Package, Version: s.Version, Release: s.Release, InputHash: s.InputHash, Inputs: registryInputs(s.Inputs)})
	art, putErr := reg.PutArtifact(t.Context(), registry.Artifact{
		Package: s.Package, Version: s.Version, Release: s.Release, InputHash: s.InputHash, Inputs: registryInputs(s.Inputs),
		Log: log, Compiler: s.Toolchain.Identity, Built: try.Started, Seconds: 2,
		Modules: []registry.Module{{Name: s.Package, File: s.Package + ".ko", BuildID: s.InputHash[:40],
			Vermagic: s.Release + " SMP preempt mod_unload modversions ", SrcVersion: "533BB7E5866E52F63B9ACCB", Version: s.Version}},
	}, map[string]string{s.Package: file})
	try.Outcome, try.Artifact, try.Seconds, try.Log = registry.OutcomeOK, art.Digest, 2, log
	if err := cmp.Or(err, beginErr, putErr, reg.FinishAttempt(try)); err != nil {
		t.Fatal(err)
	}
	return art
}
