package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
)

// helperDir makes the test binary build the source in that folder for every kernel
// of helperSeries, and nothing else: as another user, or to be killed.
const (
	helperDir    = "KMODCTL_TEST_BUILD"
	helperSeries = "KMODCTL_TEST_SERIES"

	helperLevel = "KMODCTL_TEST_LEVEL" // as where the kernel grants no more than that
)

func helper(dir string) int {
	grant(os.Getenv(helperLevel))
	all, err := kernel.Find("/")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for _, k := range all {
		if k.Tree == nil || !strings.HasPrefix(k.Name, os.Getenv(helperSeries)) {
			continue
		}
		m, err := CheckSource(dir)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		_, chain, err := inputs(m, "", k, toolIdentity)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		built, _, err := Run(context.Background(), Job{Manifest: m, Kernel: k, Source: dir, Toolchain: chain, Log: os.Stdout})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println("built", k.Name, built)
	}
	return 0
}

// helperCommand is this test binary as a builder. The path through /proc can be
// executed by a user who cannot reach the file.
func helperCommand(ctx context.Context, dir, series string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), helperDir+"="+dir, helperSeries+"="+series)
	return cmd
}

// open lets other users reach a folder of t.TempDir.
func open(t *testing.T, dir string) {
	t.Helper()
	for d := dir; d != filepath.Clean(os.TempDir()); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// A user who is not root builds as himself, behind the same wall.
func TestRunAsUser(t *testing.T) {
	series(t, "6.1.")
	series(t, "6.12.")
	files := helloTree(t)
	files["Kbuild"] = "$(info built by uid $(shell id -u), capabilities $(shell grep CapEff /proc/self/status))\nobj-m := hello.o\n"
	dir := tree(t, files)
	open(t, dir)
	cmd := helperCommand(t.Context(), dir, "6.1")
	uid := asUser(t, cmd, dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	isolation := "strict: own mount, pid, ipc, uts, net namespaces, "
	if !userNamespaces(t) {
		isolation = "landlock: no namespaces (refused: clone: operation not permitted), "
	}
	for _, want := range []string{
		"isolation: " + isolation, fmt.Sprintf(", uid %d (the caller)\n", uid),
		fmt.Sprintf("built by uid %d, capabilities CapEff:\t0000000000000000", uid),
		"built 6.1.", "built 6.12.",
	} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("the log lacks %q:\n%s", want, out)
		}
	}
}

// asUser has cmd run as a user who is not root, and gives him the folder.
func asUser(t *testing.T, cmd *exec.Cmd, dir string) (uid int) {
	t.Helper()
	if uid = os.Getuid(); uid != 0 {
		return uid
	}
	uid = 12345
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	if err := prepareCopy(dir, wall{Isolation: Isolation{UID: uid}, GID: uid}); err != nil {
		t.Fatal(err)
	}
	return uid
}

// A build in the background of a machine at work gives way to that, if it is told to.
func TestRunNice(t *testing.T) {
	k := series(t, "6.1.")
	for nice, want := range map[bool]string{false: "none: prio 0\n", true: "niceness 10\nbest-effort: prio 7\n"} {
		files := helloTree(t)
		files["kmod.toml"] += "[build]\nprepare = [[\"sh\", \"./ask\"]]\n"
		files["ask"] = "echo niceness $(nice)\nionice\n"
		j, log := job(t, k, tree(t, files))
		j.Nice = nice
		if _, _, err := Run(t.Context(), j); err != nil || !strings.Contains(log.String(), want) {
			t.Errorf("%v; want %q in\n%s", err, want, log)
		}
	}
}

// What whoever called kmodctl left open (dpkg, debconf, a root shell) is not the
// source's to read.
func TestRunInheritsNothing(t *testing.T) {
	k := series(t, "6.1.")
	secret, err := os.OpenFile(filepath.Join(t.TempDir(), "secret"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	files := helloTree(t)
	files["Kbuild"] = "$(info open: $(shell ls -l /proc/self/fd))\nobj-m := hello.o\n"
	cmd := helperCommand(t.Context(), tree(t, files), k.Name)
	cmd.ExtraFiles = []*os.File{secret, secret, secret, secret, secret}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !bytes.Contains(out, []byte("open: total")) || bytes.Contains(out, []byte("secret")) {
		t.Errorf("the source's code sees the caller's file:\n%s", out)
	}
}

// A build link that leads into somebody's home, where the build user has no entry.
func TestRunWithAPrivateTree(t *testing.T) {
	k := series(t, "6.1.")
	home, err := os.MkdirTemp("/var/tmp", "kmodctl-test-home-") // not in /tmp, which is the build's own
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	own := *k.Tree
	own.Host = filepath.Join(home, "linux")
	own.Path = own.Host
	copyTree(t, k.Tree.Host, own.Host)
	for _, name := range []string{"scripts", "tools"} { // relative ones of Debian
		to, err := filepath.EvalSymlinks(filepath.Join(k.Tree.Host, name))
		if err != nil {
			t.Fatal(err)
		}
		os.Remove(filepath.Join(own.Host, name))
		if err := os.Symlink(to, filepath.Join(own.Host, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(home, 0o700); err != nil { // MkdirTemp's mode, said again
		t.Fatal(err)
	}
	k.Tree = &own
	j, log := job(t, k, tree(t, helloTree(t)))
	built, _, err := Run(t.Context(), j)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	checkModule(t, built[0].File, k.Name)
}

// userNamespaces reports whether there can be any: in a chroot there can not
// (user_namespaces(7), EPERM).
func userNamespaces(t *testing.T) bool {
	t.Helper()
	cmd := exec.Command("true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}
	err := cmd.Run()
	if err != nil && !errors.Is(err, unix.EPERM) {
		t.Fatal(err)
	}
	return err == nil
}

// In a chroot, which an image's maker builds in, "/" is no mount; the wall stands
// there too, and none of its mounts reach the machine around.
func TestRunInChroot(t *testing.T) {
	k := series(t, "6.1.")
	root := t.TempDir()
	open(t, root)
	dir := filepath.Join(root, "source")
	if err := os.CopyFS(dir, os.DirFS(tree(t, helloTree(t)))); err != nil {
		t.Fatal(err)
	}
	var mounts []string
	for _, name := range []string{"usr", "etc", "proc", "dev"} {
		at := filepath.Join(root, name)
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("/"+name, at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("", at, "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		mounts = append(mounts, at)
	}
	t.Cleanup(func() {
		for _, at := range mounts {
			unix.Unmount(at, unix.MNT_DETACH)
		}
	})
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+name, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "tmp"), 0o1777); err != nil {
		t.Fatal(err)
	}
	before := mountTable(t, root)
	cmd := helperCommand(t.Context(), "/source", k.Name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"isolation: strict: ", "built " + k.Name} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("the log lacks %q:\n%s", want, out)
		}
	}
	if after := mountTable(t, root); after != before {
		t.Errorf("mounts were left:\n%s\nbefore\n%s", after, before)
	}
}

// mountTable is all that is mounted, but for the folders of other tests: those of package
// registry run at the same time, and mount disks of their own.
func mountTable(t *testing.T, root string) (table string) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		at := strings.Fields(line)[4] // proc_pid_mountinfo(5)
		if strings.HasPrefix(at, filepath.Join(os.TempDir(), "Test")) && !strings.HasPrefix(at, root) {
			continue
		}
		table += line
	}
	return table
}

// unshare -r: root of a namespace in which there is nobody else to become.
func TestRunInUserNamespace(t *testing.T) {
	k := series(t, "6.1.")
	if !userNamespaces(t) {
		return // this machine has no such place to build in
	}
	cmd := helperCommand(t.Context(), tree(t, helloTree(t)), k.Name)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"uid 0 (the caller: this user namespace has no other user)\n", "built " + k.Name} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("the log lacks %q:\n%s", want, out)
		}
	}
}

// Where the kernel grants no namespaces the build goes on without, says so, and is
// still not root's; a kernel under --root cannot be built for at all.
func TestRunWithoutNamespaces(t *testing.T) {
	k := series(t, "6.1.")
	refuseNamespaces(t)
	files := helloTree(t)
	// A process that leaves everything by which a child is known: session, parent, environment, output.
	files["Kbuild"] = "$(info built by uid $(shell id -u))\n" +
		"$(shell setsid env -i sleep 98765.4321 >/dev/null 2>&1 </dev/null & echo)\nobj-m := hello.o\n"
	dir := tree(t, files)
	open(t, dir)
	j, log := job(t, k, dir)
	built, _, err := Run(t.Context(), j)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	checkModule(t, built[0].File, k.Name)
	if !strings.Contains(log.String(), "isolation: landlock: no namespaces (refused: clone: invalid argument), Landlock ABI ") {
		t.Errorf("the log does not say so:\n%s", log)
	}
	if strings.Contains(log.String(), "built by uid 0\n") {
		t.Errorf("root has built:\n%s", log)
	}
	if left := running(t, "sleep\x0098765.4321\x00"); len(left) > 0 {
		t.Errorf("still running: %v", left)
	}

	j, _ = job(t, k, dir)
	j.Kernel.Root = kernel.Root(t.TempDir())
	_, _, err = Run(t.Context(), j)
	if want := "build hello for " + k.Name + ": building with headers that are not in their place here needs a mount namespace: clone: invalid argument"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func refuseNamespaces(t *testing.T) {
	grantLevel(t, LevelLandlock)
}

// grant makes this process one that gets no more than a level from the kernel.
func grant(level string) {
	switch level {
	case LevelNamespaces:
		landlockABI = func() int { return 0 }
	case LevelUser, LevelNone:
		landlockABI = func() int { return 0 }
		fallthrough
	case LevelLandlock:
		offers = []uintptr{unix.CLONE_NEWNS | unix.CLONE_FS} // EINVAL in every kernel, clone(2)
	}
}

func grantLevel(t *testing.T, level string) {
	oldOffers, oldABI := offers, landlockABI
	t.Cleanup(func() { offers, landlockABI = oldOffers, oldABI })
	grant(level)
}

// running lists the processes of a command line.
func running(t *testing.T, cmdline string) (found []string) {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if args, _ := os.ReadFile(name); string(args) == cmdline {
			found = append(found, filepath.Dir(name))
		}
	}
	return found
}

// endless is a source whose make starts a child, and that one children of its own
// that leave its session, and then waits for ever.
func endless(t *testing.T) map[string]string {
	files := helloTree(t)
	files["Kbuild"] = "$(shell sh -c 'sh -c \"sleep 100000; true\" & setsid sleep 100000 & echo running >&2; wait')\nobj-m := hello.o\n"
	return files
}

// workers lists the processes that build in dir.
func workers(t *testing.T, dir string) (found []string) {
	t.Helper()
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range environs {
		env, _ := os.ReadFile(name) // it may be gone already
		if bytes.Contains(env, []byte("KMODCTL_WORK="+dir+"\x00")) {
			args, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "cmdline"))
			found = append(found, string(bytes.ReplaceAll(args, []byte{0}, []byte{' '})))
		}
	}
	return found
}

// waitFor is a log that calls then once when it has seen word.
type waitFor struct {
	word string
	then func()
	seen bytes.Buffer
}

func (w *waitFor) Write(p []byte) (int, error) {
	w.seen.Write(p)
	if w.then != nil && strings.Contains(w.seen.String(), w.word) {
		w.then()
		w.then = nil
	}
	return len(p), nil
}

func TestRunCancelled(t *testing.T) {
	for _, level := range []string{LevelStrict, LevelNamespaces, LevelLandlock, LevelUser} {
		t.Run(level, func(t *testing.T) {
			grantLevel(t, level)
			testRunCancelled(t)
		})
	}
}

func testRunCancelled(t *testing.T) {
	k := series(t, "6.1.")
	dir := tree(t, endless(t))
	open(t, dir)
	j, _ := job(t, k, dir)
	ctx, cancel := context.WithCancel(t.Context())
	var during []string
	log := &waitFor{word: "running", then: func() {
		during = workers(t, j.Source)
		cancel()
	}}
	j.Log = log
	built, _, err := Run(ctx, j)
	if !errors.Is(err, context.Canceled) || built != nil {
		t.Errorf("%v, built %v\n%s", err, built, &log.seen)
	}
	if len(during) < 3 {
		t.Errorf("only %q ran when the build was cancelled", during)
	}
	if left := workers(t, j.Source); len(left) > 0 {
		t.Errorf("still running: %q", left)
	}
}

// kill -9 of kmodctl itself: the kernel ends what it had started.
func TestRunKilled(t *testing.T) {
	for _, level := range []string{LevelStrict, LevelNamespaces, LevelLandlock, LevelUser} {
		t.Run(level, func(t *testing.T) { testRunKilled(t, level) })
	}
}

func testRunKilled(t *testing.T, level string) {
	k := series(t, "6.1.")
	dir := tree(t, endless(t))
	open(t, dir)
	cmd := helperCommand(t.Context(), dir, k.Name)
	cmd.Env = append(cmd.Env, helperLevel+"="+level)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	log := &waitFor{word: "running", then: func() {
		if during := workers(t, dir); len(during) < 3 {
			t.Errorf("only %q ran when kmodctl was killed", during)
		}
		cmd.Process.Kill()
	}}
	io.Copy(log, out)
	if log.then != nil {
		t.Fatalf("the build never ran:\n%s", &log.seen)
	}
	cmd.Wait()
	// The kernel ends them one after the other; go test's own limit ends this loop.
	for len(workers(t, dir)) > 0 {
		time.Sleep(time.Millisecond)
	}
}

// A root that holds another machine's headers: kbuild sees those at their own
// absolute paths, some of which this machine does not have.
func TestRunUnderRoot(t *testing.T) {
	k := series(t, "6.1.")
	private := t.TempDir()
	root := filepath.Join(private, "root")
	release := k.Name + "-kmodctl-test" // no folder of this name on this machine
	copyTrees(t, k, root)
	headers := filepath.Join(root, k.Tree.Path)
	replace(t, filepath.Join(headers, ".kernelvariables"), func(s string) string { return "$(info the tree of the root)\n" + s })
	for _, name := range []string{".kernelvariables", "include/config/kernel.release", "include/generated/utsrelease.h"} {
		replace(t, filepath.Join(headers, name), func(s string) string { return strings.ReplaceAll(s, k.Name, release) })
	}
	modules := filepath.Join(root, "lib/modules", release)
	if err := os.MkdirAll(modules, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(k.Tree.Path, filepath.Join(modules, "build")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(private, 0o700); err != nil {
		t.Fatal(err)
	}

	found, err := kernel.Get(kernel.Root(root), release)
	if err != nil {
		t.Fatal(err)
	}
	if found.Tree == nil || found.Tree.Host != headers {
		t.Fatalf("found %+v, missing %v", found.Tree, found.Missing)
	}
	j, log := job(t, found, tree(t, helloTree(t)))
	j.Kernel.Root = kernel.Root(root)
	j.Manifest.Build.Prepare = [][]string{{"test", "-d", "/lib/modules/" + release}}
	built, _, err := Run(t.Context(), j)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	checkModule(t, built[0].File, release)
	if !strings.Contains(log.String(), "the tree of the root") {
		t.Errorf("built with this machine's tree:\n%s", log)
	}
	// The root has no folder for the source that a dkms.conf speaks of.
	m, files := dkmsSource()
	j, log = dkmsJob(t, found, m, files)
	if _, _, err = Run(t.Context(), j); err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	if _, err := os.Stat("/lib/modules/" + release); err == nil {
		t.Error("a mount point was left on this machine")
	}
}

// copyTrees copies this machine's header trees for k into root, as links where the
// file system allows, and gives linux-kbuild a name that this machine does not have.
func copyTrees(t *testing.T, k kernel.Release, root string) {
	t.Helper()
	scripts, err := filepath.EvalSymlinks(filepath.Join(k.Tree.Path, "scripts"))
	if err != nil {
		t.Fatal(err)
	}
	kbuild := filepath.Dir(scripts) // /usr/lib/linux-kbuild-6.1
	common := strings.TrimSuffix(k.Tree.Path, "amd64") + "common"
	for from, to := range map[string]string{k.Tree.Path: k.Tree.Path, common: common, kbuild: "/usr/lib/linux-kbuild-kmodctl-test"} {
		copyTree(t, from, filepath.Join(root, to))
	}
	links, err := filepath.Glob(filepath.Join(root, "usr/src/*/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		to, err := os.Readlink(link)
		if err != nil || !strings.Contains(to, filepath.Base(kbuild)) {
			continue
		}
		if err := os.Remove(link); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(strings.Replace(to, filepath.Base(kbuild), "linux-kbuild-kmodctl-test", 1), link); err != nil {
			t.Fatal(err)
		}
	}
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if exec.Command("cp", "-alT", from, to).Run() == nil {
		return
	}
	if out, err := exec.Command("cp", "-aT", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy %s: %v\n%s", from, err, out)
	}
}

// replace rewrites a file that may be a hard link to this machine's own.
func replace(t *testing.T, name string, edit func(string) string) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(edit(string(data))), 0o644); err != nil {
		t.Fatal(err)
	}
}
