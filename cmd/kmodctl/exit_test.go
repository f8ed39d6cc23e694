package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/internal/keys"
	"kmodctl/loader"
	"kmodctl/registry"
)

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, exitDone},
		{errors.New("anything"), exitFailed},
		{usagef("wrong"), exitUsage},
		{partly{failed: 1, of: 2, err: &build.Error{}}, exitPartly},
		{partly{failed: 2, of: 2, err: &build.Error{}}, exitBuild},
		{&registry.NotFoundError{}, exitNotFound},
		{&kernel.NotFoundError{}, exitNotFound},
		{&loader.NotFoundError{}, exitNotFound},
		{fmt.Errorf("build: %w", &build.Error{}), exitBuild},
		{&loader.KernelError{Errno: unix.EEXIST}, exitRefused},
		{&loader.CheckError{Findings: []loader.Finding{{}}}, exitRefused},
		{&loader.InUseError{}, exitRefused},
		{&loader.StuckError{}, exitFailed},
		{&loader.NoWayBackError{}, exitFailed},
		{&loader.SwapError{Err: &loader.KernelError{}}, exitRefused},
		{fmt.Errorf("load: %w", loader.ErrLocked), exitBusy},
		{fmt.Errorf("load: %w", loader.ErrNoModules), exitRefused},
		{loader.ErrNoCapability, exitRefused},
		{loader.ErrModulesDisabled, exitRefused},
		{loader.ErrPermanent, exitRefused},
		{fmt.Errorf("alias x: %w", &loader.PolicyError{}), exitRefused},
		{commandError{}, exitRefused},
		{loader.ErrBuiltin, exitRefused},
		{guestFailed{code: exitRefused}, exitRefused},
		{findings{n: 1}, exitFailed},
		{&exec.Error{Name: "make", Err: exec.ErrNotFound}, exitBuild},
		{missingHeaders{}, exitFailed},
		{otherPin{}, exitRefused},
		{&loader.ParamError{}, exitRefused},
		{loadTimeError{}, exitRefused},
		{stillDenied{}, exitRefused},
		{&loader.NotLiveError{}, exitNotFound},
		{fmt.Errorf("dyndbg: %w", loader.ErrNoDynamicDebug), exitRefused},
		{&registry.NoPreviousError{}, exitFailed},
		{interrupted{syscall.SIGINT}, exitInterrupted},
		{context.Canceled, exitInterrupted},
		{interrupted{syscall.SIGTERM}, exitTerminated},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%v: exit %d, want %d", c.err, got, c.want)
		}
	}
}

// TestHints holds what a user is told to do next.
func TestHints(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&registry.NotFoundError{Name: "helo", Near: []string{"hello"}}, "hello (the nearest name)"},
		{&registry.NotFoundError{Name: "x"}, "kmodctl add DIR"},
		{&kernel.NotFoundError{Name: "6.1"}, "kmodctl kernels"},
		{&build.ManifestError{}, "docs/manifest.md"},
		{&configError{}, "docs/config.md"},
		{noKeyError{"mok9"}, "kmodctl key list"},
		{keys.ErrNoKey, "kmodctl key new"},
		{keys.ErrEncrypted, "KMODCTL_SIGN_PASSPHRASE_FILE=FILE"},
		{&keys.UnsafeError{File: "/k"}, "chmod 600 /k"},
		{&keys.MismatchError{}, "kmodctl key import"},
		{&keys.WaitingError{Name: "mok2"}, "mok2 signs from now on"},
		{&build.Error{Package: "hello", Release: "6.1.0"}, "kmodctl log hello -k 6.1.0"},
		{&build.Error{Package: "hello", Release: "6.1.0", Err: &build.TimeLimitError{Limit: time.Hour}}, "kmodctl build hello -k 6.1.0 --time-limit 2h0m0s"},
		{unlogged{&build.Error{}}, "with -v prints"},
		{unlogged{&build.Error{Class: build.ClassHeader, Header: "stdio.h"}}, "no C library"},
		{&build.Error{Class: build.ClassHeader, Header: "openssl/evp.h"}, "apt install libssl-dev, or dnf install openssl-devel"},
		{&build.Error{Class: build.ClassAPI, Package: "hello"}, "a newer version of hello"},
		{failedBuild{error: &build.Error{Class: build.ClassSymbol, Package: "hello"}, lastRelease: "6.1.0"}, "boot 6.1.0 (kmodctl build hello -k 6.1.0)"},
		{failedBuild{error: &build.Error{Class: build.ClassNamespace, Package: "hello", Release: "6.1.0"}, lastVersion: "0.9"}, "kmodctl build hello@0.9 -k 6.1.0"},
		{&build.Error{Class: build.ClassWerror}, "-Wno-error"},
		{&build.CheckError{Tool: build.CheckClang}, "--check sparse"},
		{&build.CheckError{Tool: build.CheckCheckpatch}, "kernel-devel"},
		{unlogged{&exec.Error{Name: "sparse"}}, "apt install sparse"},
		{&build.Error{Class: build.ClassDisk, Err: unix.ENOSPC}, "make room"},
		{missingHeaders{kernel.Release{Name: "6.1.0", Missing: []kernel.Missing{{What: "x", Remedy: "apt install y"}}}}, "apt install y"},
		{ofPackage{&loader.KernelError{Module: "stack_user", Release: "6.1.0", BuiltFor: "6.12.0"}, "stack"}, "kmodctl build stack -k 6.1.0"},
		{&loader.InUseError{Module: "stack", Holders: []string{"stack_user"}}, "kmodctl unload --with-holders stack"},
		{&loader.InUseError{Module: "chardev", Refcnt: 1}, "kmodctl unload chardev --wait 30s"},
		{&loader.InUseError{Module: "chardev", Refcnt: 1, Users: []loader.User{{Kind: loader.UserProcess, Name: "/dev/x", PID: 7, Command: "cat"}}}, "end process 7 (cat)"},
		{&loader.InUseError{Module: "ext4", Refcnt: 1, Users: []loader.User{{Kind: loader.UserMount, Name: "/mnt"}}}, "umount /mnt"},
		{&loader.StuckError{Op: loader.Insert, Module: "hello", Died: true}, "virtual machine"},
		{&loader.StuckError{Op: loader.Insert, Module: "hello", Waited: 3 * time.Minute}, "--timeout 6m0s"},
		{loader.ErrLocked, "--lock-timeout"},
		{&loader.NoWayBackError{Module: "hello"}, "kmodctl reload hello --force"},
		{&loader.CheckError{Findings: []loader.Finding{{}}}, "--unchecked"},
		{ofPackage{&loader.CheckError{Release: "6.1.0", Findings: []loader.Finding{{Cause: loader.CauseModuleLayout}}}, "stack"}, "kmodctl build stack -k 6.1.0"},
		{&loader.CheckError{Findings: []loader.Finding{{Module: "hello", Cause: loader.CauseParamUnknown}}}, "--allow-unknown-parameters"},
		{&loader.KernelError{CauseID: loader.CauseUnsigned}, "kmodctl key enroll"},
		{ofPackage{&loader.KernelError{CauseID: loader.CauseSignatureDiffers}, "hello"}, "kmodctl resign hello"},
		{&loader.NotLiveError{Module: "hello"}, "kmodctl load hello"},
		{loader.ErrNoModules, "kmodctl run DIR"},
		{&loader.PolicyError{Module: "a", Rule: "module_blacklist=a", Boot: true}, "boot without module_blacklist=a"},
		{&loader.PolicyError{Module: "a", Rule: "blacklist a", At: "/etc/modprobe.d/x.conf:1"}, "kmodctl load a"},
		{&loader.PolicyError{Module: "a", Rule: "install a /bin/false", At: "/etc/modprobe.d/x.conf:1"}, "--ignore-install a"},
		{&loader.PolicyError{Module: "a", Rule: "install a /bin/false", At: "/etc/modprobe.d/kmodctl.conf:1"}, "kmodctl allow a"},
		{commandError{"a", "modprobe b"}, "--run-commands"},
		{loader.ErrNoCapability, "sudo"},
		{registry.ErrNoDepmod, "apt install kmod"},
		{fmt.Errorf("write: %w", unix.ENOSPC), "make room"},
		{&os.PathError{Err: unix.EROFS}, "read-write"},
		{&registry.NoPreviousError{Package: "hello"}, "kmodctl history hello"},
		{otherPin{pin: registry.Pin{Package: "hello"}}, "kmodctl unpin hello"},
		{otherPin{pin: registry.Pin{Package: "hello", Release: "6.1.0"}}, "kmodctl unpin hello -k 6.1.0"},
		{&loader.ParamError{Module: "hello", Param: "cuont=1", Near: "count"}, "count (the nearest name)"},
		{&loader.ParamError{Module: "hello", Param: "count=x"}, "kmodctl params hello"},
		{stillDenied{module: "hello"}, "--ignore-install hello hello"},
		{loadTimeError{module: "hello", sets: []string{"a=1", "b=x y"}}, "kmodctl load hello a=1 'b=x y'"},
		{loadTimeError{module: "hello", state: "live", sets: []string{"a=1"}}, "kmodctl reload hello a=1"},
		{loadTimeError{module: "unix", state: builtIn, sets: []string{"a=1", "b=2"}}, "unix.a=1 unix.b=2 on the kernel's command line"},
		{notBuilt{name: "hello"}, "kmodctl build hello"},
		{&registry.ExistsError{Name: "hello", Version: "1"}, "kmodctl remove hello@1"},
		{&registry.PackageError{Package: "b", Err: &registry.OwnedError{Module: "m", Owner: "a"}}, "kmodctl uninstall a"},
		{&registry.PackageError{Package: "hello", Err: fmt.Errorf("module hello: %w", unix.ENOENT)}, "kmodctl repair"},
		{&build.Error{Package: "hello", Err: unix.ENOSPC}, "make room"},
		{rollbackFailed{unix.EIO, "hello", "6.1.0"}, "kmodctl rollback hello -k 6.1.0"},
		{rollbackFailed{unix.ENOSPC, "hello", "6.1.0"}, "make room, then kmodctl rollback hello -k 6.1.0"},
		{rollbackFailed{registry.ErrNoDepmod, "hello", "6.1.0"}, "apt install kmod"},
	} {
		if got := strings.Join(hints(c.err), "\n"); !strings.Contains(got, c.want) {
			t.Errorf("%v: hints %q, want %q", c.err, got, c.want)
		}
	}
	if got := hints(unix.EPERM); (len(got) > 0) != (os.Getuid() != 0) {
		t.Errorf("for uid %d: hints %q", os.Getuid(), got)
	}
	// What the kernel answers means other things than what a file system answers.
	for _, errno := range []unix.Errno{unix.ENOSPC, unix.EROFS, unix.EACCES} {
		if got := hints(&loader.KernelError{Module: "hello", Errno: errno}); len(got) > 0 {
			t.Errorf("a module refused with %v: hints %q", errno, got)
		}
	}
}

// TestReport holds the shape of an error that the kernel's own words explain.
func TestReport(t *testing.T) {
	var stderr bytes.Buffer
	e := &env{err: newScreen(&stderr)}
	e.report(ofPackage{&loader.KernelError{
		Op: loader.Insert, Module: "hello", Release: "6.1.0-56-amd64", BuiltFor: "6.12.117+deb12-amd64", Errno: unix.ENOEXEC,
		Log:   []string{"hello: disagrees about version of symbol module_layout"},
		Cause: "the file was built for 6.12.117+deb12-amd64",
	}, "hello"})
	want := `kmodctl: load hello: kernel 6.1.0-56-amd64 refused the module: exec format error
  kernel log: hello: disagrees about version of symbol module_layout
  why:  the file was built for 6.12.117+deb12-amd64
  try:  kmodctl build hello -k 6.1.0-56-amd64
`
	if stderr.String() != want {
		t.Errorf("got\n%swant\n%s", stderr.String(), want)
	}
}
