package registry

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
)

// states are what the churning writer makes of the root, one after the other.
var states = [][]string{
	{"disk=1", "net_core=1", "net_old=1"},
	{"disk=1", "net_core=2", "net_new=2"},
	{"disk=1"},
	nil,
}

func init() {
	// Goes through the states without end.
	helpers["churn"] = func(args []string) error {
		dir, root, temp := args[0], kernel.Root(args[1]), args[2]
		ctx := context.Background()
		for round := 0; ; round++ {
			r, err := OpenWriter(ctx, dir, root, WriterOptions{Command: "kmodctl churn"})
			if err != nil {
				return err
			}
			mark := fmt.Sprint(round) // new content each time
			net1, err1 := put(ctx, r, temp, "net", "1", 0, "net_core=1"+mark, "net_old=1"+mark)
			net2, err2 := put(ctx, r, temp, "net", "2", 0, "net_core=2"+mark, "net_new=2"+mark)
			disk, err3 := put(ctx, r, temp, "disk", "1", 0, "disk="+mark)
			if err := errors.Join(err1, err2, err3); err != nil {
				return err
			}
			for _, step := range []func() (Result, error){
				func() (Result, error) { return r.Install(ctx, release, []Artifact{net1, disk}, nil) },
				func() (Result, error) {
					packed, err := packedDress(ctx, r, disk, "xz")
					if err != nil {
						return Result{}, err
					}
					return r.Install(ctx, release, []Artifact{net2, disk}, packed)
				},
				func() (Result, error) { return r.Uninstall(ctx, release, []string{"net"}) },
				func() (Result, error) { return r.Uninstall(ctx, release, []string{"disk"}) },
			} {
				if _, err := step(); err != nil {
					return err
				}
			}
			if err := r.Close(); err != nil {
				return err
			}
		}
	}

	// Installs what the registry has for net, with the depmod of a folder.
	helpers["install"] = func(args []string) error {
		depmodPlaces = args[2:]
		r, err := OpenWriter(context.Background(), args[0], kernel.Root(args[1]), WriterOptions{Command: "kmodctl install"})
		if err != nil {
			return err
		}
		a, _, err := r.Artifact("net", "1", release)
		if err != nil {
			return err
		}
		_, err = r.Install(context.Background(), release, []Artifact{a}, nil)
		return err
	}

	// Reads as a user without rights, as often as a line comes in, and answers
	// with the number of attempts.
	helpers["read"] = func(args []string) error {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			n, err := readAsUser(args[0])
			if err != nil {
				return fmt.Errorf("uid %d, %s: %w", os.Getuid(), lines.Text(), err)
			}
			fmt.Println(n)
		}
		return nil
	}
}

func readAsUser(dir string) (attempts int, err error) {
	r, err := Open(context.Background(), dir)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	as, err := r.Artifacts()
	if err != nil || len(as) == 0 {
		return 0, fmt.Errorf("%d artifacts: %w", len(as), err)
	}
	blob, err := r.Blob(as[0].Digest)
	if err != nil {
		return 0, err
	}
	_, err1 := r.Installs()
	all, err2 := r.Attempts("", "", 0)
	_, _, err3 := r.Unfinished()
	return len(all), errors.Join(err1, err2, err3, blob.Close())
}

// child is a reader that answers each line with the number of attempts.
type child struct {
	in  *os.File
	out *bufio.Scanner
}

// startReader starts a reader with uid 65534.
func startReader(t *testing.T, dir string) *child {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test needs root: it reads as uid 65534")
	}
	cmd := helper("read", dir)
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	cmd.SysProcAttr.Pdeathsig = 0 // it is cleared by the change of user; the end of stdin does it
	inR, inW, err := os.Pipe()
	must(t, err)
	cmd.Stdin = inR
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	inR.Close()
	t.Cleanup(func() {
		inW.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("reader: %v", err)
		}
	})
	return &child{inW, bufio.NewScanner(out)}
}

func (c *child) read(t *testing.T, when string) (attempts string) {
	t.Helper()
	fmt.Fprintln(c.in, when)
	if !c.out.Scan() {
		t.Fatalf("a user could not read %s", when)
	}
	return c.out.Text()
}

// tempDir is where the tests began: one of them sets TMPDIR.
var tempDir = os.TempDir()

// openDirs lets uid 65534 into t.TempDir.
func openDirs(t *testing.T, dir string) {
	t.Helper()
	for d := dir; d != tempDir && d != "/"; d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o755))
	}
}

// Wherever a writer is killed, a user can read, and after the next writer rows,
// files and index agree on one of the states, and nothing is left behind.
func TestKilledAnywhere(t *testing.T) {
	root, dir, temp := newRoot(t), t.TempDir(), t.TempDir()
	openDirs(t, dir)
	r := writer(t, dir, root)
	mustPut(t, r, "first", "1", "first=1")
	user := startReader(t, dir)
	if n := user.read(t, "while a writer is open"); n != "0" {
		t.Errorf("a user sees %s attempts, want 0", n)
	}
	_, err := r.BeginAttempt(Attempt{Op: "build", Package: "first"})
	must(t, err)
	if n := user.read(t, "after a commit"); n != "1" {
		t.Errorf("a user sees %s attempts, want 1", n)
	}
	must(t, r.Close())
	if n := user.read(t, "after a writer closed"); n != "1" {
		t.Errorf("a user sees %s attempts, want 1", n)
	}

	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	for i := range 20 {
		cmd := helper("churn", dir, string(root), temp)
		must(t, cmd.Start())
		end := time.Now().Add(time.Duration(dice.IntN(400)) * time.Millisecond)
		for time.Now().Before(end) {
			user.read(t, "while a writer writes")
		}
		must(t, cmd.Process.Kill())
		cmd.Wait()
		seen := user.read(t, "after a writer was killed")
		if as, err := reader(t, dir).Attempts("", "", 0); err != nil || fmt.Sprint(len(as)) != seen {
			t.Fatalf("a user sees %s attempts, root %d, %v", seen, len(as), err)
		}

		r, err := OpenWriter(t.Context(), dir, root, WriterOptions{Command: "kmodctl test"})
		must(t, err)
		got := installed(t, r, root)
		if !slices.ContainsFunc(states, func(s []string) bool { return slices.Equal(s, got) }) {
			t.Fatalf("kill %d: a state that never was: %q", i, got)
		}
		if what, _, err := r.Unfinished(); err != nil || len(what) > 0 {
			t.Fatalf("kill %d: unfinished %q %v", i, what, err)
		}
		t.Logf("kill %d: %q, %q", i, got, r.Recovered())
		must(t, r.Close())
	}
}

// A depmod that outlives its killed kmodctl keeps the next writer waiting: two at
// a time would mix their indexes.
func TestDepmodOutlivesItsWriter(t *testing.T) {
	root, dir, pipes := newRoot(t), t.TempDir(), t.TempDir()
	r := writer(t, dir, root)
	mustPut(t, r, "net", "1", "net=1")
	must(t, r.Close())
	started, goOn := filepath.Join(pipes, "started"), filepath.Join(pipes, "go")
	must(t, unix.Mkfifo(started, 0o600))
	must(t, unix.Mkfifo(goOn, 0o600))
	fake := fakeDepmod(t, "echo $$ > "+started+"; read < "+goOn+"; exec /usr/sbin/depmod \"$@\"")

	cmd := helper("install", dir, string(root), fake)
	must(t, cmd.Start())
	_, err := os.ReadFile(started) // returns when depmod has begun
	must(t, err)
	must(t, cmd.Process.Kill())
	cmd.Wait()
	depmodIn(t, "/usr/sbin") // from now on the real one

	var holder string
	r, err = OpenWriter(t.Context(), dir, root, WriterOptions{Waiting: func(h string) {
		holder = h
		if err := os.WriteFile(goOn, []byte("\n"), 0); err != nil {
			t.Error(err)
		}
	}})
	must(t, err)
	defer r.Close()
	if want := fmt.Sprintf("a depmod that outlived pid %d (kmodctl install)", cmd.Process.Pid); !strings.HasPrefix(holder, want) {
		t.Errorf("holder %q, want %q", holder, want)
	}
	equal(t, "installed", installed(t, r, root), []string{"net=1"})
}

// smallDisk mounts a filesystem of so many bytes on dir.
func smallDisk(t *testing.T, dir string, bytes int) {
	t.Helper()
	if err := unix.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=755", bytes)); err != nil {
		t.Fatalf("mount tmpfs (this test needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// leave fills the filesystem of dir until so many pages are free, and returns
// what makes room again.
func leave(t *testing.T, dir string, pages int) func() {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	must(t, err)
	defer f.Close()
	page := make([]byte, os.Getpagesize())
	var n int64
	for err == nil {
		_, err = f.Write(page)
		n++
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	must(t, f.Truncate(max(0, (n-1-int64(pages))*int64(len(page)))))
	return func() { must(t, os.Remove(filepath.Join(dir, "filler"))) }
}

// A full /lib/modules, whatever step it stops, leaves the state before.
func TestModulesDiskFull(t *testing.T) {
	root := newRoot(t)
	mods := filepath.Join(string(root), modulesPath(release))
	smallDisk(t, mods, 1<<20)
	fillModules(t, mods)
	r := writer(t, t.TempDir(), root)
	_, err := r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", "1", "net=1", "old=1")}, nil)
	must(t, err)
	next := mustPut(t, r, "net", "2", "net=2", "fresh=2")
	failed := 0
	for pages := 0; ; pages++ {
		room := leave(t, mods, pages)
		before := snapshot(t, mods)
		_, err := r.Install(t.Context(), release, []Artifact{next}, nil)
		if err == nil {
			room()
			break
		}
		failed++
		if now := snapshot(t, mods); now != before {
			t.Fatalf("%d pages free: the folder changed after: %v", pages, err)
		}
		if pages == 0 && !errors.Is(err, unix.ENOSPC) {
			t.Errorf("error: %v", err)
		}
		room()
		equal(t, "installed", installed(t, r, root), []string{"net=1", "old=1"})
		if pages > 64 {
			t.Fatalf("still no room with %d pages: %v", pages, err)
		}
	}
	if failed < 5 {
		t.Errorf("the disk was full %d times only", failed)
	}
	equal(t, "installed", installed(t, r, root), []string{"fresh=2", "net=2"})
}

// A full registry loses nothing that was acknowledged and can be used again as
// soon as there is room.
func TestRegistryDiskFull(t *testing.T) {
	root, dir := newRoot(t), t.TempDir()
	smallDisk(t, dir, 2<<20)
	source := tree(t, "kmod.toml=", "a.c="+strings.Repeat("x", 30000))
	failed := 0
	for pages := range 40 {
		room := leave(t, dir, pages)
		r, err := OpenWriter(t.Context(), dir, root, WriterOptions{})
		if err == nil {
			_, _, err = r.AddSource(t.Context(), source, "net", fmt.Sprint(pages), "")
		}
		var a Artifact
		if err == nil {
			a, err = put(t.Context(), r, t.TempDir(), "net", fmt.Sprint(pages), 0, fmt.Sprintf("net=%d", pages))
		}
		if err == nil {
			_, err = r.Install(t.Context(), release, []Artifact{a}, nil)
		}
		if err != nil {
			failed++
			t.Logf("%d pages free: %v", pages, err)
		}
		if r != nil {
			must(t, r.Close())
		}
		room()
		r, err2 := OpenWriter(t.Context(), dir, root, WriterOptions{})
		must(t, err2)
		if got := installed(t, r, root); err == nil && !slices.Equal(got, []string{fmt.Sprintf("net=%d", pages)}) {
			t.Fatalf("%d pages free: installed %q", pages, got)
		}
		if names, err := readNames(r.tree, blobDir); err != nil || slices.ContainsFunc(names, func(n string) bool { return n[0] == '.' }) {
			t.Fatalf("blobs: %q %v", names, err)
		}
		for _, i := range mustInstalls(t, r) {
			_, err := r.Uninstall(t.Context(), release, []string{i.Package})
			must(t, err)
		}
		srcs, err := r.Sources()
		must(t, err)
		for _, s := range srcs {
			must(t, r.Extract(s, t.TempDir()))
			must(t, r.RemoveSource(s.Name, s.Version))
		}
		must(t, r.Close())
	}
	if failed < 5 || failed == 40 {
		t.Errorf("the disk was full %d times of 40", failed)
	}
}

// A disk without any room does not keep a writer out: it may want to free some.
func TestOpenWriterDiskFull(t *testing.T) {
	dir := t.TempDir()
	smallDisk(t, dir, 1<<20)
	must(t, writer(t, dir, "/").Close())
	leave(t, dir, 0)
	must(t, writer(t, dir, "/").Close())
}

func TestModulesReadOnly(t *testing.T) {
	root := newRoot(t)
	mods := filepath.Join(string(root), modulesPath(release))
	smallDisk(t, mods, 1<<20)
	fillModules(t, mods)
	dir := t.TempDir()
	r := writer(t, dir, root)
	a := mustPut(t, r, "net", "1", "net=1")
	must(t, unix.Mount("none", mods, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	_, err := r.Install(t.Context(), release, []Artifact{a}, nil)
	if !errors.Is(err, unix.EROFS) {
		t.Fatalf("error: %v", err)
	}
	if len(mustInstalls(t, r)) > 0 {
		t.Error("rows came")
	}

	// An intent that cannot be finished now waits, and stops no other kernel.
	in := intent{Op: "install", Release: release, Packages: []string{"net"}, Target: []Install{{
		Release: release, Module: "net", Path: a.path(), Package: "net", Version: "1", Artifact: a.Digest, Digest: a.Modules[0].Digest,
	}}}
	must(t, r.begin(&in, nil))
	must(t, r.Close())
	fillModules(t, filepath.Join(string(root), modulesPath("9.9.10")))
	r = writer(t, dir, root)
	if got := r.Recovered(); len(got) != 1 || !strings.Contains(got[0], "read-only") {
		t.Errorf("recovered: %q", got)
	}
	b := a
	b.Release = "9.9.10"
	file := filepath.Join(t.TempDir(), "net.ko")
	must(t, os.WriteFile(file, mustObject(t, "1"), 0o644))
	b, err = r.PutArtifact(t.Context(), b, map[string]string{"net": file})
	must(t, err)
	_, err = r.Install(t.Context(), "9.9.10", []Artifact{b}, nil)
	must(t, err)
	if _, err := r.Install(t.Context(), release, []Artifact{a}, nil); !errors.Is(err, unix.EROFS) {
		t.Errorf("error: %v", err)
	}
	if waiting, err := r.Resume(); err != nil || len(waiting) != 1 || !errors.Is(waiting[0], unix.EROFS) {
		t.Errorf("waiting: %v, %v", waiting, err)
	}
	must(t, unix.Mount("none", mods, "", unix.MS_REMOUNT, ""))
	if waiting, err := r.Resume(); err != nil || len(waiting) > 0 {
		t.Errorf("waiting: %v, %v", waiting, err)
	}
	if len(mustInstalls(t, r)) != 2 {
		t.Errorf("installs: %+v", mustInstalls(t, r))
	}
	if drifts, err := r.Look(root); err != nil || len(drifts) > 0 {
		t.Errorf("drifts: %+v %v", drifts, err)
	}
}

// When what an intent wants to place is damaged, the state before comes back.
func TestRecoverGoesBack(t *testing.T) {
	root, dir := newRoot(t), t.TempDir()
	r := writer(t, dir, root)
	_, err := r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", "1", "net=1", "old=1")}, nil)
	must(t, err)
	next := mustPut(t, r, "net", "2", "fresh=2", "net=2")
	in := intent{Op: "install", Release: release, Packages: []string{"net"}, Before: mustInstalls(t, r)}
	for _, m := range next.Modules {
		in.Target = append(in.Target, Install{Release: release, Module: m.Name, Path: filepath.Join(modulesPath(release), ourDir, m.File),
			Package: "net", Version: "2", Artifact: next.Digest, Digest: m.Digest})
	}
	must(t, r.begin(&in, nil))
	// As after a crash between two renames.
	must(t, os.WriteFile(filepath.Join(string(root), modulesPath(release), ourDir, "fresh.ko"), mustObject(t, "2"), 0o644))
	// As after a killed depmod: no process can have this number (PID_MAX_LIMIT).
	must(t, os.WriteFile(filepath.Join(string(root), modulesPath(release), "modules.dep.bin.4194305.1.2"), nil, 0o644))
	flipBit(t, r.BlobPath(next.Modules[1].Digest))
	must(t, r.Close())
	r = writer(t, dir, root)
	equal(t, "installed", installed(t, r, root), []string{"net=1", "old=1"})
	as, err := r.Attempts("net", "", 1)
	must(t, err)
	if as[0].Outcome != "failed" || !strings.Contains(as[0].Error, "damaged") {
		t.Errorf("attempt: %+v", as[0])
	}
}

// A writer killed in the middle of a commit can leave the head of -shm damaged:
// a user who may not write there reads all the same, and leaves nothing behind.
func TestReadAfterDamagedShm(t *testing.T) {
	dir, temp := t.TempDir(), t.TempDir()
	openDirs(t, dir)
	openDirs(t, temp)
	must(t, os.Chmod(temp, 0o777))
	t.Setenv("TMPDIR", temp)
	r := writer(t, dir, newRoot(t))
	mustPut(t, r, "first", "1", "first=1")
	_, err := r.BeginAttempt(Attempt{Op: OpBuild, Package: "first"})
	must(t, err)
	copied := t.TempDir() // as a kill leaves it: the log is not written back
	openDirs(t, copied)
	must(t, os.CopyFS(copied, os.DirFS(dir)))
	other := reader(t, copied) // holds -shm: without it SQLite would give the user a private one
	_, err = other.Attempts("", "", 0)
	must(t, err)
	// By another process: closing the file in this one would drop the locks of other.
	damage := exec.Command("dd", "if=/dev/zero", "of="+filepath.Join(copied, dbFile+"-shm"), "bs=48", "count=1", "conv=notrunc")
	if out, err := damage.CombinedOutput(); err != nil { // WalIndexHdr, the first of its two copies
		t.Fatalf("%v: %s", err, out)
	}

	if n := startReader(t, copied).read(t, "after -shm was damaged"); n != "1" {
		t.Errorf("a user sees %s attempts, want 1", n)
	}
	if left, _ := os.ReadDir(temp); len(left) > 0 {
		t.Errorf("left in the temporary folder: %v", left)
	}
	must(t, other.Close())
}

// A writer killed in its first commit can leave a log of a head alone.
func TestReadAfterLogOfHeadOnly(t *testing.T) {
	root, dir := newRoot(t), t.TempDir()
	openDirs(t, dir)
	r := writer(t, dir, root)
	mustPut(t, r, "first", "1", "first=1")
	_, err := r.BeginAttempt(Attempt{Op: OpBuild, Package: "first"})
	must(t, err)
	must(t, r.Close())
	r = writer(t, dir, root)
	_, err = r.BeginAttempt(Attempt{Op: OpBuild, Package: "first"}) // what the kill undoes
	must(t, err)
	copied := t.TempDir()
	openDirs(t, copied)
	must(t, os.CopyFS(copied, os.DirFS(dir)))
	must(t, os.Truncate(filepath.Join(copied, dbFile+"-wal"), 32))
	if n := startReader(t, copied).read(t, "a log of a head only"); n != "1" {
		t.Errorf("a user sees %s attempts, want 1", n)
	}
}
