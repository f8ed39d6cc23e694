package registry

import (
	"bufio"
	"context"
	"database/sql"
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

func TestAbsentRegistryIsEmpty(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	r := reader(t, dir)
	srcs, err := r.Sources()
	if err != nil || len(srcs) != 0 {
		t.Errorf("sources: %v %v", srcs, err)
	}
	if what, holder, err := r.Unfinished(); len(what) != 0 || holder != "" || err != nil {
		t.Errorf("unfinished: %v %q %v", what, holder, err)
	}
	if _, err := r.Blob(strings.Repeat("0", 64)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("blob: %v", err)
	}
	if _, _, err := r.PutBlob(t.Context(), strings.NewReader("")); !errors.Is(err, ErrReadOnly) {
		t.Errorf("put: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a reader made the folder: %v", err)
	}
}

func TestArtifactsAndAttempts(t *testing.T) {
	dir := t.TempDir()
	r := writer(t, dir, "/")
	mustPut(t, r, "net", "1", "net=1")
	second := mustPut(t, r, "net", "1", "net=2", "net_extra=2")
	begun, err := r.BeginAttempt(Attempt{Op: "build", Package: "net", Version: "1", Release: release})
	must(t, err)
	begun.Outcome, begun.Error, begun.Class = "failed", "no", "api"
	must(t, r.FinishAttempt(begun))
	_, err = r.BeginAttempt(Attempt{Op: "build", Package: "disk", Version: "1", Release: "1.1.1"})
	must(t, err)

	ro := reader(t, dir)
	a, ok, err := ro.Artifact("net", "1", release)
	must(t, err)
	if !ok || a.Digest != second.Digest || len(a.Modules) != 2 || a.Modules[1].File != "net-extra.ko" {
		t.Errorf("artifact: %+v", a)
	}
	if as, err := ro.Artifacts(); err != nil || len(as) != 1 {
		t.Errorf("artifacts: %+v %v", as, err)
	}
	if _, ok, err := ro.Artifact("net", "2", release); ok || err != nil {
		t.Errorf("absent artifact: %v %v", ok, err)
	}
	if as, err := ro.Attempts("", "", 1); err != nil || len(as) != 1 || as[0].Package != "disk" || as[0].Outcome != "" {
		t.Errorf("newest attempt: %+v %v", as, err)
	}
	if as, err := ro.Attempts("net", release, 0); err != nil || len(as) != 1 || as[0].Error != "no" || as[0].Class != "api" || as[0].Seconds <= 0 {
		t.Errorf("attempts of net: %+v %v", as, err)
	}
	what, holder, err := ro.Unfinished()
	must(t, err)
	equal(t, "unfinished", what, []string{"build of disk@1 for 1.1.1"})
	if want := fmt.Sprintf("pid %d (kmodctl test)", os.Getpid()); !strings.HasPrefix(holder, want+" since 20") {
		t.Errorf("holder %q, want %q", holder, want)
	}

	// The record is a blob of its own, and the artifact's digest is its name.
	blob, err := ro.Blob(second.Digest)
	must(t, err)
	defer blob.Close()
	text, err := io.ReadAll(blob)
	if err != nil || !strings.Contains(string(text), second.Modules[0].Digest) {
		t.Errorf("record %s: %v", text, err)
	}
}

func TestPutArtifactRefuses(t *testing.T) {
	r := writer(t, t.TempDir(), "/")
	file := filepath.Join(t.TempDir(), "x.ko")
	must(t, os.WriteFile(file, []byte("x"), 0o644))
	for _, m := range []Module{
		{Name: "x", File: "../x.ko"}, {Name: "x", File: "x"}, {Name: "x", File: ".ko"}, {Name: "y", File: "x.ko"},
		{Name: "x", File: "x.ko", Digest: strings.Repeat("0", 64)},
	} {
		if _, err := r.PutArtifact(t.Context(), Artifact{Modules: []Module{m}}, map[string]string{"x": file, "y": file}); err == nil {
			t.Errorf("%+v was taken", m)
		}
	}
	if _, err := r.PutArtifact(t.Context(), Artifact{Modules: []Module{{Name: "x", File: "x.ko"}}}, nil); err == nil {
		t.Error("a module without a file was taken")
	}
	if as, err := r.Artifacts(); err != nil || len(as) > 0 {
		t.Errorf("artifacts: %+v %v", as, err)
	}
}

// Nothing but a file of its own is read, however it is put in the place of one.
func TestModuleIsNoFile(t *testing.T) {
	r := writer(t, t.TempDir(), "/")
	dir, outside := t.TempDir(), tree(t, "secret.ko=secret")
	must(t, os.WriteFile(filepath.Join(dir, "fine.ko"), []byte("fine"), 0o600))
	must(t, os.Symlink(filepath.Join(outside, "secret.ko"), filepath.Join(dir, "link.ko")))
	must(t, os.Symlink(outside, filepath.Join(dir, "sub")))
	must(t, unix.Mkfifo(filepath.Join(dir, "pipe.ko"), 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "folder.ko"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "big.ko"), nil, 0o600))
	must(t, os.Truncate(filepath.Join(dir, "big.ko"), maxModule+1))
	to := filepath.Join(t.TempDir(), "copy.ko")
	for _, file := range []string{"link.ko", "sub/secret.ko", "pipe.ko", "folder.ko", "big.ko", "absent.ko"} {
		if err := TakeFile(dir, file, to); err == nil {
			t.Errorf("%s was taken", file)
		}
		if _, err := os.Lstat(to); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("a copy of %s: %v", file, err)
		}
		if file == "sub/secret.ko" { // PutArtifact trusts the folder it is given
			continue
		}
		name := strings.TrimSuffix(file, ".ko")
		a := Artifact{Modules: []Module{{Name: name, File: file}}}
		if _, err := r.PutArtifact(t.Context(), a, map[string]string{name: filepath.Join(dir, file)}); err == nil {
			t.Errorf("%s was stored", file)
		}
	}
	must(t, TakeFile(dir, "fine.ko", to))
	if text, err := os.ReadFile(to); err != nil || string(text) != "fine" {
		t.Errorf("copy: %q %v", text, err)
	}
	if names, err := readNames(r.tree, blobDir); err != nil || len(names) > 0 {
		t.Errorf("blobs: %q %v", names, err)
	}
}

func TestDamagedBlob(t *testing.T) {
	r := writer(t, t.TempDir(), "/")
	digest, n, err := r.PutBlob(t.Context(), strings.NewReader("content"))
	must(t, err)
	if n != 7 {
		t.Errorf("size %d", n)
	}
	info, err := os.Stat(r.BlobPath(digest))
	must(t, err)
	if info.Mode() != 0o444 {
		t.Errorf("mode %v", info.Mode())
	}
	read := func() error {
		f, err := r.Blob(digest)
		must(t, err)
		defer f.Close()
		_, err = io.Copy(io.Discard, f)
		return err
	}
	must(t, read())
	flipBit(t, r.BlobPath(digest))
	var e *CorruptError
	if err := read(); !errors.As(err, &e) || e.Want != digest || e.Path != r.BlobPath(digest) {
		t.Errorf("read of a damaged blob: %v", err)
	}
	_, _, err = r.PutBlob(t.Context(), strings.NewReader("content"))
	must(t, err)
	must(t, read()) // healed
	for _, bad := range []string{"", "../lock", strings.Repeat("g", 64)} {
		if _, err := r.Blob(bad); err == nil {
			t.Errorf("blob %q was opened", bad)
		}
	}
}

func TestFileFact(t *testing.T) {
	t.Parallel() // it waits
	dir := t.TempDir()
	r := writer(t, dir, "/")
	cc, link := filepath.Join(dir, "gcc-12"), filepath.Join(dir, "gcc")
	put := func(text string) {
		must(t, os.WriteFile(cc, []byte(text), 0o755))
		waitForGrain(t, cc)
	}
	put("1")
	must(t, os.Symlink("gcc-12", link))
	asked := 0
	fact := func(r *Registry, want string, asks int) {
		t.Helper()
		asked = 0
		got, err := r.FileFact(link, "text", func(path string) (string, error) {
			asked++
			text, err := os.ReadFile(path)
			return string(text), err
		})
		if got != want || err != nil || asked != asks {
			t.Errorf("%q %v, asked %d times; want %q, %d", got, err, asked, want, asks)
		}
	}
	fact(r, "1", 1)
	fact(r, "1", 0)
	must(t, os.Chtimes(cc, time.Now(), time.Unix(1, 0)))
	waitForGrain(t, cc)
	fact(r, "1", 1)
	info, err := os.Stat(cc)
	must(t, err)
	put("2") // size, inode and mtime stay
	must(t, os.Chtimes(cc, time.Now(), info.ModTime()))
	waitForGrain(t, cc)
	fact(r, "2", 1)
	must(t, r.Close())
	fact(reader(t, dir), "2", 0)
	must(t, os.WriteFile(cc+".new", []byte("3"), 0o755))
	must(t, os.Rename(cc+".new", cc))
	fact(reader(t, dir), "3", 1)
	r = writer(t, dir, "/")
	fact(r, "3", 1)
	fact(r, "3", 1) // it may change again within the grain of its times
	must(t, os.Remove(cc))
	if _, err := r.FileFact(link, "text", nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
}

// waitForGrain waits until what is now known of a file can be kept.
func waitForGrain(t *testing.T, path string) {
	t.Helper()
	s, err := stateOf(path)
	must(t, err)
	time.Sleep(time.Until(time.Unix(0, max(s.mtime, s.ctime)).Add(2*time.Second + 10*time.Millisecond)))
}

func TestFutureSchemaIsRefused(t *testing.T) {
	dir := t.TempDir()
	r := writer(t, dir, "/")
	must(t, r.write(func(tx *sql.Tx) error {
		_, err := tx.Exec(`UPDATE meta SET value = CASE key WHEN 'schema' THEN '7' ELSE '9.1.0' END`)
		return err
	}))
	must(t, r.Close())
	_, rerr := Open(t.Context(), dir)
	_, werr := OpenWriter(t.Context(), dir, "/", WriterOptions{})
	for _, err := range []error{rerr, werr} {
		var e *SchemaError
		if !errors.As(err, &e) || e.Schema != "7" || e.WrittenBy != "9.1.0" {
			t.Errorf("error: %v", err)
		}
	}
}

func init() {
	// Holds the lock, says so, and waits for its end.
	helpers["hold"] = func(args []string) error {
		r, err := OpenWriter(context.Background(), args[0], "/", WriterOptions{Command: "kmodctl hold a\nb"})
		if err != nil {
			return err
		}
		dir, _, err := r.NewWork("../a b")
		if err != nil {
			return err
		}
		if _, err := r.tree.Create(filepath.Join(blobDir, blobTemp+"x")); err != nil {
			return err
		}
		if _, err := r.BeginAttempt(Attempt{Op: "build", Package: "net", Version: "1", Release: release}); err != nil {
			return err
		}
		worker := exec.Command("sleep", "1000")
		worker.Env = append(os.Environ(), workEnv+"="+dir+"/src")
		if err := worker.Start(); err != nil {
			return err
		}
		fmt.Println(worker.Process.Pid)
		io.Copy(io.Discard, os.Stdin)
		return nil
	}
}

// startHolder starts a writer in another process and returns it, its standard
// input, whose end ends it, and the pid of its worker.
func startHolder(t *testing.T, dir string) (cmd *exec.Cmd, stdin io.Closer, worker int) {
	t.Helper()
	cmd = helper("hold", dir)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	_, err = fmt.Sscan(line, &worker)
	must(t, err)
	return cmd, in, worker
}

func TestWritersQueue(t *testing.T) {
	dir := t.TempDir()
	cmd, stdin, worker := startHolder(t, dir)
	t.Cleanup(func() { unix.Kill(worker, unix.SIGKILL) })

	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	_, err := OpenWriter(ctx, dir, "/", WriterOptions{Waiting: func(string) { cancel(enough) }})
	if !errors.Is(err, enough) {
		t.Fatalf("cancelled wait: %v", err)
	}
	for _, patience := range []time.Duration{-1, time.Millisecond} {
		_, err = OpenWriter(t.Context(), dir, "/", WriterOptions{Timeout: patience})
		var busy *BusyError
		if !errors.As(err, &busy) || !strings.Contains(busy.Holder, "kmodctl hold") {
			t.Fatalf("patience %v: %v", patience, err)
		}
	}
	var waited []string
	r, err := OpenWriter(t.Context(), dir, "/", WriterOptions{Waiting: func(holder string) {
		waited = append(waited, holder)
		stdin.Close()
	}})
	must(t, err)
	defer r.Close()
	if want := fmt.Sprintf("pid %d (kmodctl hold a\nb) since 20", cmd.Process.Pid); len(waited) != 1 || !strings.HasPrefix(waited[0], want) {
		t.Errorf("holders: %q, want %q", waited, want)
	}
}

func init() {
	// Tries to take the writer's lock with no more than the right to read.
	helpers["flock"] = func(args []string) error {
		f, err := os.Open(filepath.Join(args[0], lockFile))
		if errors.Is(err, os.ErrPermission) {
			return nil
		} else if err != nil {
			return err
		}
		defer f.Close()
		return fmt.Errorf("uid %d opened %s, flock: %v", os.Getuid(), f.Name(), kernel.Flock(f, unix.LOCK_EX|unix.LOCK_NB))
	}
}

// Who may only read cannot keep a writer waiting.
func TestUserCannotLock(t *testing.T) {
	dir := t.TempDir()
	openDirs(t, dir)
	must(t, os.WriteFile(filepath.Join(dir, lockFile), nil, 0o644)) // as older versions made it
	must(t, writer(t, dir, "/").Close())
	cmd := helper("flock", dir)
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	must(t, cmd.Run())
}

// A name that was left behind is nobody's, even when its number lives again.
func TestHolderIsGone(t *testing.T) {
	dir := t.TempDir()
	r := writer(t, dir, "/")
	_, err := r.BeginAttempt(Attempt{Op: "build", Package: "net"})
	must(t, err)
	must(t, r.Close())
	must(t, os.WriteFile(filepath.Join(dir, writerFile), fmt.Appendf(nil, "1 pid %d (kmodctl build)\n", os.Getpid()), 0o644))
	if what, holder, err := reader(t, dir).Unfinished(); err != nil || len(what) != 1 || holder != "" {
		t.Errorf("unfinished: %q, held by %q, %v", what, holder, err)
	}
}

func init() {
	// Makes work folders of a build that took its own rights away, twice: they are
	// removed by done, or by the next writer.
	helpers["unreadable"] = func(args []string) error {
		for range 2 {
			r, err := OpenWriter(context.Background(), args[0], "/", WriterOptions{})
			if err != nil {
				return err
			}
			if left, err := readNames(r.tree, workDir); err != nil || len(left) > 0 {
				return fmt.Errorf("swept: %q is left, %v, %q", left, err, r.Recovered())
			}
			dir, done, err := r.NewWork("net")
			if err != nil {
				return err
			}
			if err := os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o700); err != nil {
				return err
			}
			for _, d := range []string{"a/b/c", "a/b", "a", "."} {
				if err := os.Chmod(filepath.Join(dir, d), 0o400); err != nil {
					return err
				}
			}
			if args[1] == "done" {
				done()
				if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
					return fmt.Errorf("done: %s is left: %v, close: %v", dir, err, r.Close())
				}
			}
			if err := r.Close(); err != nil {
				return err
			}
		}
		return nil
	}
}

// A folder without rights in a work folder goes like any other, though its owner
// is not root.
func TestWorkWithoutRights(t *testing.T) {
	for _, how := range []string{"done", "sweep"} {
		dir := t.TempDir()
		openDirs(t, dir)
		must(t, os.Chown(dir, 65534, 65534))
		cmd := helper("unreadable", dir, how)
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
		if err := cmd.Run(); err != nil {
			t.Errorf("%s: %v", how, err)
		}
	}
}

// A work folder that cannot be removed is told of.
func TestWorkThatStays(t *testing.T) {
	r, err := OpenWriter(t.Context(), t.TempDir(), "/", WriterOptions{})
	must(t, err)
	dir, done, err := r.NewWork("net")
	must(t, err)
	smallDisk(t, dir, 1<<16) // a mount point
	done()
	if err := r.Close(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("close: %v", err)
	}
}

func TestRecoverAfterKill(t *testing.T) {
	dir := t.TempDir()
	cmd, _, worker := startHolder(t, dir)
	fd, err := unix.PidfdOpen(worker, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, cmd.Process.Signal(syscall.SIGKILL))
	cmd.Wait()

	ro := reader(t, dir)
	what, holder, err := ro.Unfinished()
	must(t, err)
	equal(t, "unfinished", what, []string{"build of net@1 for " + release})
	if holder != "" {
		t.Errorf("holder %q is dead", holder)
	}
	r := writer(t, dir, "/")
	if err := unix.PidfdSendSignal(fd, 0, nil, 0); !errors.Is(err, unix.ESRCH) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} // a zombie until its new parent reaps it
		if n, _ := unix.Poll(poll, 0); n != 1 {
			t.Error("the worker is still there")
		}
	}
	for _, folder := range []string{workDir, blobDir} {
		if names, err := readNames(r.tree, folder); err != nil || len(names) > 0 {
			t.Errorf("%s: %q %v", folder, names, err)
		}
	}
	as, err := r.Attempts("net", "", 0)
	must(t, err)
	if as[0].Outcome != "interrupted" {
		t.Errorf("attempt: %+v", as[0])
	}
	if got := strings.Join(r.Recovered(), "\n"); strings.Count(got, "\n") != 3 || !strings.Contains(got, "interrupted") {
		t.Errorf("recovered:\n%s", got)
	}
}

// A new registry is readable by everyone whatever the umask is.
func TestModes(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	dir := filepath.Join(t.TempDir(), "lib", "kmodctl")
	r := writer(t, dir, "/")
	_, _, err := r.PutBlob(t.Context(), strings.NewReader("x"))
	must(t, err)
	work, done, err := r.NewWork("x")
	must(t, err)
	defer done()
	if info, err := os.Stat(work); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("work folder: %v %v", info, err) // the user of a build enters it
	}
	for name, want := range map[string]os.FileMode{
		".": 0o755, "..": 0o755, "blobs": 0o755, blobDir: 0o755, workDir: 0o711,
		lockFile: 0o600, writerFile: 0o644, "README": 0o644, dbFile: 0o644, dbFile + "-wal": 0o644, dbFile + "-shm": 0o644,
	} {
		info, err := os.Stat(filepath.Join(dir, name))
		must(t, err)
		if info.Mode().Perm() != want {
			t.Errorf("%s: %v, want %v", name, info.Mode().Perm(), want)
		}
	}
}
