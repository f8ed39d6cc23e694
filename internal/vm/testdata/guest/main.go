// Guest is what the tests of package vm boot.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"kmodctl/internal/vm"
)

func main() { vm.Main(run) }

func run() int {
	switch verb, args := os.Args[1], os.Args[2:]; verb {
	case "self": // how it was started, and an exit code
		dir, err := os.Getwd()
		check(err)
		var raw [][]byte // JSON strings would lose what is no UTF-8
		for _, a := range args {
			raw = append(raw, []byte(a))
		}
		check(json.NewEncoder(os.Stdout).Encode(map[string]any{
			"Args": raw, "Dir": dir, "InPID1": vm.InGuest(),
			"Env": map[string]string{"GREETING": os.Getenv("GREETING"), "KMODCTL_VM": os.Getenv("KMODCTL_VM")},
		}))
		return 7
	case "exit":
		code, err := strconv.Atoi(args[0])
		check(err)
		return code
	case "look": // mode and content of each path
		for _, name := range args {
			info, err := os.Lstat(name)
			check(err)
			var content []byte
			if info.Mode().IsRegular() {
				content, err = os.ReadFile(name)
			} else if info.Mode()&os.ModeSymlink != 0 {
				var to string
				to, err = os.Readlink(name)
				content = []byte(to)
			}
			check(err)
			fmt.Printf("%s %v %q\n", name, info.Mode(), content)
		}
	case "flood": // 1 MiB of every byte there is, no line end at its end
		chunk := make([]byte, 4096)
		for i := range chunk {
			chunk[i] = byte(i)
		}
		_, err := os.Stdout.Write(bytes.Repeat(chunk, 256))
		check(err)
	case "insert":
		inspect()
		f, err := os.Open(args[0])
		check(err)
		check(unix.FinitModule(int(f.Fd()), "numdummies=2", 0))
		state, err := os.ReadFile("/sys/module/dummy/initstate")
		check(err)
		var uts unix.Utsname
		check(unix.Uname(&uts))
		fmt.Printf("%s on %s", bytes.TrimSpace(state), unix.ByteSliceToString(uts.Release[:]))
	case "orphan":
		_, err := os.StartProcess("/init", []string{"/init", "exit", "0"}, &os.ProcAttr{})
		check(err)
	case "panic":
		check(os.WriteFile("/proc/sys/kernel/sysrq", []byte("1"), 0))
		check(os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0))
	case "signal":
		check(unix.Kill(os.Getpid(), unix.SIGKILL))
		unix.Pause()
	case "hang":
		fmt.Println("hanging")
		unix.Pause()
	case "reboot":
		check(unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
	}
	return 0
}

// inspect fails unless the guest has its mounts, scratch folders and an init
// that reaps.
func inspect() {
	for _, name := range []string{"/proc/self/stat", "/sys/kernel/notes", "/sys/kernel/security/lsm", "/dev/kmsg", "/dev/null"} {
		_, err := os.Stat(name)
		check(err)
	}
	check(os.WriteFile("/tmp/x", nil, 0o600))
	check(os.WriteFile("/run/x", nil, 0o600))
	p, err := os.StartProcess("/init", []string{"/init", "orphan"}, &os.ProcAttr{})
	check(err)
	_, err = p.Wait()
	check(err)
	for others() { // the orphan, until pid 1 has reaped it
	}
}

// others reports whether a process of this program other than pid 1 and this one
// is there, be it a zombie.
func others() bool {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	check(err)
	return slices.ContainsFunc(dirs, func(dir string) bool {
		stat, err := os.ReadFile(dir + "/stat")
		pid := filepath.Base(dir)
		return err == nil && bytes.Contains(stat, []byte("(init)")) && pid != "1" && pid != strconv.Itoa(os.Getpid())
	})
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(99)
	}
}
