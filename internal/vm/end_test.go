package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTimeout(t *testing.T) {
	t.Parallel()
	_, image := release(t, "6.1")
	e := fails(t, Config{Image: image, Args: []string{"hang"}, Timeout: 4 * time.Second})
	if !strings.Contains(e.Reason, "within 4s") { // how far it came depends on the machine
		t.Errorf("reason %q", e.Reason)
	}
}

// writerFunc is called with what the program prints.
type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

func TestCancelLeavesNothing(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	_, image := release(t, "6.1")
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	exit, err := Run(ctx, Config{
		Image: image, Init: guest, Args: []string{"hang"},
		Output: writerFunc(func([]byte) { cancel(enough) }),
	})
	if exit != -1 || !errors.Is(err, enough) {
		t.Errorf("exit code %d, error %v; want -1 and the cause of the cancel", exit, err)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
	if left := children(t, os.Getpid()); len(left) > 0 {
		t.Errorf("still running: %v", left)
	}
}

// Not even a kill -9 of the caller leaves an emulator or a file behind.
func TestKillLeavesNothing(t *testing.T) {
	_, image := release(t, "6.1")
	temp := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), hangOn+"="+image, "KMODCTL_VM_TEST_INIT="+guest, "TMPDIR="+temp)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "hanging\n" {
		t.Fatalf("the guest printed %q: %v", line, err)
	}
	emulators := children(t, cmd.Process.Pid)
	if len(emulators) != 1 {
		t.Fatalf("children %v, want one emulator", emulators)
	}
	cmd.Process.Kill()
	cmd.Wait()
	for alive(emulators[0]) { // go test has the deadline
		time.Sleep(10 * time.Millisecond)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

// children lists the processes that a process has started (proc(5)).
func children(t *testing.T, pid int) (pids []string) {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lists {
		if list, err := os.ReadFile(l); err == nil {
			pids = append(pids, strings.Fields(string(list))...)
		}
	}
	return pids
}

// alive is false for a process that only waits to be reaped.
func alive(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// A /dev/kvm that cannot run a kernel costs one trial and no result, whatever it
// does to QEMU: here on the machine's own, and on one that spins.
func TestBrokenKVM(t *testing.T) {
	_, image := release(t, "6.1")
	real, err := exec.LookPath(qemu)
	if err != nil {
		t.Fatalf("%s is missing: install qemu-system-x86", qemu)
	}
	spin := filepath.Join(t.TempDir(), qemu)
	script := "#!/bin/sh\ncase \" $* \" in *' kvm '*) exec sleep 1000;; esac\nexec " + real + " \"$@\"\n"
	if err := os.WriteFile(spin, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv(accelVariable, "")
	t.Cleanup(func() { kvm.proven, kvm.broken = false, "" })
	for name, path := range map[string]string{"own": real, "spins": spin} {
		t.Run(name, func(t *testing.T) {
			kvm.proven, kvm.broken = false, ""
			m, err := prepare(Config{Image: image, Init: guest, Args: []string{"exit", "7"}})
			if err != nil {
				t.Fatal(err)
			}
			defer m.close()
			m.qemu = path
			if exit, err := m.try(t.Context()); exit != 7 || err != nil {
				t.Errorf("exit code %d, error %v; want 7 and none", exit, err)
			}
			if name == "own" {
				return
			}
			if accel, reason := Accel(); accel != "tcg" || reason != "a guest under KVM gave no sign of life" {
				t.Errorf("after it: %s, %s", accel, reason)
			}
		})
	}
}

func TestOverrideOfTheAccelerator(t *testing.T) {
	_, image := release(t, "6.1")
	t.Setenv(accelVariable, "hvf")
	_, err := Run(t.Context(), Config{Image: image, Init: guest})
	if want := "boot " + image + `: KMODCTL_VM_ACCEL="hvf" is neither kvm nor tcg`; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestNoQEMU(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := Run(t.Context(), Config{Image: "/boot/x", Init: guest}); !errors.Is(err, ErrNoQEMU) {
		t.Errorf("error %v, want ErrNoQEMU", err)
	}
}

func TestBadConfig(t *testing.T) {
	_, image := release(t, "6.1")
	dynamic, err := exec.LookPath("cat")
	if err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no kernel\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for want, c := range map[string]Config{
		"boot /none: open /none: no such file or directory":                                               {Image: "/none", Init: guest},
		"boot " + text + ": neither a vmlinuz (bzImage) nor a vmlinux":                                    {Image: text, Init: guest},
		"boot " + guest + ": vmlinux is not for x86_64 or has no PVH note (CONFIG_PVH): give its vmlinuz": {Image: guest, Init: guest},
		"boot " + image + ": init " + dynamic + " is not static (built with CGO_ENABLED=1?)":              {Image: image, Init: dynamic},
		"boot " + image + ": write initramfs: add /a/../b: \"/a/../b\" is not a clean absolute path":      {Image: image, Init: guest, Files: []File{{Guest: "/a/../b"}}},
		"boot " + image + ": write initramfs: add /a: /a is given twice":                                  {Image: image, Init: guest, Files: []File{{Guest: "/a"}, {Guest: "/a"}}},
		"boot " + image + ": write initramfs: add /a/b: /a is a file, not a folder":                       {Image: image, Init: guest, Files: []File{{Guest: "/a"}, {Guest: "/a/b"}}},
		"boot " + image + ": write initramfs: add /a: /dev/null is neither file, folder nor link":         {Image: image, Init: guest, Files: []File{{Guest: "/a", Host: "/dev/null"}}},
	} {
		if _, err := Run(t.Context(), c); err == nil || err.Error() != want {
			t.Errorf("error %v\n want %s", err, want)
		}
	}
}
