package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The levels of isolation, and who can be made to build at each: root is always
// somebody else there.
var levels = []struct {
	name       string
	root, user bool
}{
	{LevelStrict, true, true}, {LevelNamespaces, true, true}, {LevelLandlock, true, true}, {LevelUser, true, false}, {LevelNone, false, true},
}

// A source tries to get out at each level; what docs/sandbox.md says of it is true.
func TestEscape(t *testing.T) {
	k := series(t, "6.1.")
	users := userNamespaces(t) // in a chroot there are none, and the table is more than can be tried
	told := sandboxTable(t)
	seen := map[string]map[string]bool{} // by what was tried, then level: whether anybody got through
	at := newOutside(t)
	for _, level := range levels {
		for _, uid := range []int{0, 12345} {
			inNamespaces := level.name == LevelStrict || level.name == LevelNamespaces
			if uid == 0 && !level.root || uid != 0 && (!level.user || inNamespaces && !users) {
				continue
			}
			t.Run(fmt.Sprintf("%s by %d", level.name, uid), func(t *testing.T) {
				for what, open := range at.escape(t, k.Name, level.name, uid) {
					if seen[what] == nil {
						seen[what] = map[string]bool{}
					}
					seen[what][level.name] = seen[what][level.name] || open
				}
			})
		}
	}
	for what, row := range seen {
		for level, open := range row {
			want := map[bool]string{true: "open", false: "stopped"}[open]
			if told[what][level] != want && (open || users) {
				t.Errorf("%s: %s at level %s, but docs/sandbox.md says %q", what, want, level, told[what][level])
			}
		}
	}
	for what := range told {
		if len(seen[what]) != len(levels) {
			t.Errorf("docs/sandbox.md has %q, which was tried at %d levels", what, len(seen[what]))
		}
	}
}

// sandboxTable reads docs/sandbox.md: by what a source tries, then level.
func sandboxTable(t *testing.T) map[string]map[string]string {
	t.Helper()
	text, err := os.ReadFile("../docs/sandbox.md")
	if err != nil {
		t.Fatal(err)
	}
	var head []string
	rows := map[string]map[string]string{}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(line, "| \n"), " | ")
		switch {
		case cells[0] == "what a source tries":
			head = cells
		case head == nil || strings.HasPrefix(cells[0], "---"):
		case len(cells) != len(head):
			return rows
		default:
			rows[cells[0]] = map[string]string{}
			for i, cell := range cells[1:] {
				rows[cells[0]][head[i+1]] = cell
			}
		}
	}
	t.Fatal("docs/sandbox.md has no table")
	return nil
}

// outside is what a source may want to reach.
type outside struct {
	dir            string // everybody may write there
	own, key, file string
	tcp, udp       string
	abstract, run  string
	shm            int
}

func newOutside(t *testing.T) outside {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	temp := func(parent string, mode fs.FileMode) string {
		dir, err := os.MkdirTemp(parent, "kmodctl-test-")
		must(err)
		t.Cleanup(func() { os.RemoveAll(dir) })
		must(os.Chmod(dir, mode))
		return dir
	}
	o := outside{dir: temp("/var/tmp", 0o777|fs.ModeSticky)} // not in /tmp, which is the build's own
	o.own = filepath.Join(o.dir, "own")
	must(os.WriteFile(o.own, nil, 0o600))
	o.file = filepath.Join(temp("/var/lib", 0o755), "registry.db")
	must(os.WriteFile(o.file, nil, 0o644))

	keys := "/etc/kmodctl/keys"
	for _, dir := range []string{filepath.Dir(keys), keys} {
		if os.Mkdir(dir, 0o700) == nil {
			t.Cleanup(func() { os.Remove(dir) })
		}
	}
	o.key = filepath.Join(temp(keys, 0o755), "signing_key.pem")
	must(os.WriteFile(o.key, nil, 0o600))

	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	must(err)
	t.Cleanup(func() { tcp.Close() })
	_, o.tcp, _ = net.SplitHostPort(tcp.Addr().String())
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	must(err)
	t.Cleanup(func() { udp.Close() })
	_, o.udp, _ = net.SplitHostPort(udp.LocalAddr().String())

	o.abstract = filepath.Base(o.dir)
	o.run = filepath.Join(temp("/run", 0o755), "socket")
	for _, name := range []string{"@" + o.abstract, o.run} {
		l, err := net.Listen("unix", name)
		must(err)
		t.Cleanup(func() { l.Close() })
	}
	must(os.Chmod(o.run, 0o777))

	o.shm = int(time.Now().UnixNano() & 0x7fffffff)
	id, err := unix.SysvShmGet(o.shm, 4096, unix.IPC_CREAT|unix.IPC_EXCL|0o666)
	must(err)
	t.Cleanup(func() { unix.SysvShmCtl(id, unix.IPC_RMID, nil) })
	return o
}

// escape builds testdata/escape at a level, and returns what was tried and whether it went well.
func (o outside) escape(t *testing.T, release, level string, uid int) map[string]bool {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("testdata/escape/escape.c")
	if err != nil {
		t.Fatal(err)
	}
	dir := tree(t, map[string]string{"escape.c": string(source), "Kbuild": "obj-m := hello.o\n", "hello.c": helloSource, ManifestFile: helloManifest + fmt.Sprintf(`
[build]
prepare = [["gcc", "-o", "escape", "escape.c"], ["./escape", %q, %q, %q, %q, %q, %q, %q, %q, "%d", %q], ["false"]]
`, o.dir, o.own, o.key, o.file, o.tcp, o.udp, o.abstract, o.run, o.shm, host)})
	open(t, dir)
	if err := os.Chown(o.own, uid, uid); err != nil {
		t.Fatal(err)
	}
	cmd := helperCommand(t.Context(), dir, release)
	cmd.Env = append(cmd.Env, helperLevel+"="+level)
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
		if err := prepareCopy(dir, wall{Isolation: Isolation{UID: uid}, GID: uid}); err != nil {
			t.Fatal(err)
		}
	}
	out, err := cmd.CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("tried all\n")) || !bytes.Contains(out, []byte("isolation: "+level+": ")) {
		t.Fatalf("%v\n%s", err, out)
	}
	got := map[string]bool{
		"leave a daemon behind":    len(running(t, "sleep\x0098765.4322\x00")) > 0,
		"leave a set-user-ID file": hasSetID(t, dir),
	}
	for line := range strings.Lines(string(out)) {
		if what, ok := strings.CutPrefix(line, "tried: "); ok {
			what, how, _ := strings.Cut(strings.TrimSpace(what), ": ")
			got[what] = how == "open"
		}
	}
	if !got["make a set-user-ID file"] {
		t.Error("there never was a set-user-ID file")
	}
	delete(got, "make a set-user-ID file")
	for _, written := range []string{filepath.Join(o.dir, "written"), "/lib/modules/escaped"} {
		os.Remove(written)
	}
	return got
}

func hasSetID(t *testing.T, dir string) (found bool) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(dir, "set-uid")); err != nil {
		t.Fatal(err)
	}
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, _ error) error {
		info, err := d.Info()
		found = found || err != nil || info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0
		return nil
	})
	return found
}

// Each of the two that cut the network does it alone.
func TestNetworkIsCutTwice(t *testing.T) {
	k := series(t, "6.1.")
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, c := range []struct {
		name   string
		offers []uintptr
		filter bool
		want   string
	}{
		{"namespace", []uintptr{allNamespaces}, false, "Network is unreachable"},
		{"seccomp", []uintptr{unix.CLONE_NEWNS | unix.CLONE_NEWPID}, true, "Address family not supported by protocol"},
		{"neither", []uintptr{unix.CLONE_NEWNS | unix.CLONE_NEWPID}, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			grantLevel(t, LevelNamespaces)
			old := canFilter
			t.Cleanup(func() { canFilter = old })
			offers, canFilter = c.offers, func() bool { return c.filter }
			j, log := job(t, k, tree(t, helloTree(t)))
			j.Manifest.Build.Prepare = [][]string{{"bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/" + port}, {"false"}}
			_, isolation, err := Run(t.Context(), j)
			var failed *Error
			if !errors.As(err, &failed) {
				t.Fatalf("%v\n%s", err, log)
			}
			if got := errors.Is(err, ErrNoNetwork); got != (c.want != "") || !strings.Contains(failed.Line, c.want) {
				t.Errorf("%v\n%s", err, log)
			}
			if isolation.Level() != LevelNamespaces || strings.Contains(log.String(), "the network is open") != (c.want == "") {
				t.Errorf("%v\n%s", isolation, log)
			}
		})
	}
}

// A manifest that loads something fails with the reason, at each level, and not for
// what follows from it.
func TestRunWithoutNetwork(t *testing.T) {
	k := series(t, "6.1.")
	for _, level := range []string{LevelStrict, LevelNamespaces, LevelLandlock, LevelUser} {
		t.Run(level, func(t *testing.T) {
			grantLevel(t, level)
			files := helloTree(t)
			files["Makefile"] = "fetch:\n\tbash -c 'exec 3<>/dev/tcp/example.org/80'\n"
			j, log := job(t, k, tree(t, files))
			open(t, j.Source)
			j.Manifest.Build.Prepare = [][]string{{"make", "fetch"}}
			_, _, err := Run(t.Context(), j)
			want := "build hello for " + k.Name + ": the build has no network: the source must be complete: "
			if !errors.Is(err, ErrNoNetwork) || !strings.HasPrefix(err.Error(), want) || !strings.Contains(err.Error(), "example.org: ") {
				t.Errorf("%v\n%s", err, log)
			}
		})
	}
}

// What a program says of the network is no reason where a compiler says what is wrong.
func TestNetworkIsNotBlamed(t *testing.T) {
	var said telling
	for _, line := range []string{"fatal: unable to access 'https://example.org/': Could not resolve host: example.org", "hello.c:3:1: error: no", "make: *** [x] Error 1"} {
		said.read(line)
	}
	if line, _ := said.explain(t.TempDir(), "/w"); line != "hello.c:3:1: error: no" || said.offline() {
		t.Errorf("%s", line)
	}
}

const bomb = `#include <stdio.h>
#include <unistd.h>
int main(void) { for (;;) if (fork() < 0) { write(1, "full\n", 5); pause(); } }
`

// A fork bomb is bounded, and ends with its build.
func TestForkBomb(t *testing.T) {
	k := series(t, "6.1.")
	old := maxProcesses
	t.Cleanup(func() { maxProcesses = old })
	maxProcesses = 300 // others build as this user too
	for _, level := range []string{LevelStrict, LevelNamespaces, LevelLandlock, LevelUser} {
		t.Run(level, func(t *testing.T) {
			grantLevel(t, level)
			files := helloTree(t)
			files["bomb.c"] = bomb
			j, _ := job(t, k, tree(t, files))
			open(t, j.Source)
			j.Manifest.Build.Prepare = [][]string{{"gcc", "-o", "bomb", "bomb.c"}, {"./bomb"}}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			log := &waitFor{word: "full\n", then: cancel}
			j.Log = log
			if _, _, err := Run(ctx, j); !errors.Is(err, context.Canceled) {
				t.Errorf("%v\n%s", err, &log.seen)
			}
			if left := workers(t, j.Source); len(left) > 0 {
				t.Errorf("still running: %d", len(left))
			}
		})
	}
}

// A build that fills its disk ends before that is full. This one stops by itself when
// there is next to nothing left, and waits.
func TestRunFillsTheDisk(t *testing.T) {
	k := series(t, "6.1.")
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m,mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	if err := os.CopyFS(dir, os.DirFS(tree(t, helloTree(t)))); err != nil {
		t.Fatal(err)
	}
	j, log := job(t, k, dir)
	j.Manifest.Build.Prepare = [][]string{{"sh", "-c", "head -c $((63 << 20)) /dev/zero > big; while head -c 16384 /dev/zero; do :; done >> big; sleep 100000"}}
	_, _, err := Run(t.Context(), j)
	if want := "build hello for " + k.Name + ": prepare: ended before it fills the disk: no space left on device"; !errors.Is(err, unix.ENOSPC) || err.Error() != want {
		t.Errorf("%v, want %s\n%s", err, want, log)
	}
	if left := workers(t, j.Source); len(left) > 0 {
		t.Errorf("still running: %q", left)
	}
}

func TestRunTakesTooLong(t *testing.T) {
	k := series(t, "6.1.")
	for _, level := range []string{LevelStrict, LevelUser} {
		t.Run(level, func(t *testing.T) {
			grantLevel(t, level)
			j, log := job(t, k, tree(t, endless(t)))
			open(t, j.Source)
			j.TimeLimit = time.Second
			_, _, err := Run(t.Context(), j)
			var slow *TimeLimitError
			if !errors.As(err, &slow) || slow.Limit != time.Second || !strings.HasSuffix(err.Error(), ": not done after 1s, the time limit") {
				t.Errorf("%v\n%s", err, log)
			}
			if left := workers(t, j.Source); len(left) > 0 {
				t.Errorf("still running: %q", left)
			}
		})
	}
}

// A level is not taken for a better one.
func TestLevel(t *testing.T) {
	whole := Isolation{Namespaces: allNamespaces, Landlock: 1, Seccomp: true}
	without := func(change func(*Isolation)) Isolation { i := whole; change(&i); return i }
	for _, c := range []struct {
		Isolation
		want string
	}{
		{whole, LevelStrict},
		{without(func(i *Isolation) { i.Caller = true }), LevelStrict},
		{without(func(i *Isolation) { i.Seccomp = false }), LevelNamespaces},
		{without(func(i *Isolation) { i.Landlock = 0 }), LevelNamespaces},
		{without(func(i *Isolation) { i.Namespaces &^= unix.CLONE_NEWNET }), LevelNamespaces},
		{without(func(i *Isolation) { i.Namespaces = 0 }), LevelLandlock},
		{Isolation{Seccomp: true}, LevelUser},
		{Isolation{Seccomp: true, Caller: true}, LevelNone},
	} {
		if got := c.Level(); got != c.want {
			t.Errorf("%v: %s", c.Isolation, got)
		}
	}
}
