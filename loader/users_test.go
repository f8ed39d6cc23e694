package loader_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kmodctl/loader"
	"kmodctl/loader/loadertest"
)

// TestUsers puts together who uses modules on a machine whose device numbers are those of this one's
// /dev/null (1:3) and /dev/zero (1:5).
func TestUsers(t *testing.T) {
	k := loadertest.New(t, "6.1.0-1-amd64")
	link := func(name, target string) {
		t.Helper()
		path := filepath.Join(string(k.Root), name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	// A misc device, which has no driver in sysfs.
	k.Write("sys/devices/virtual/misc/kmodctl_chardev/dev", "1:3\n")
	link("sys/dev/char/1:3", "../../devices/virtual/misc/kmodctl_chardev")
	// A device of a driver, a part of which is the device file.
	k.Write("sys/devices/pci0/0000:00:01.0/net/eth9/address", "")
	k.Write("sys/devices/pci0/0000:00:01.0/tty/ttyX0/dev", "1:5\n")
	link("sys/devices/pci0/0000:00:01.0/driver", "../../../bus/pci/drivers/mydrv")
	link("sys/bus/pci/drivers/mydrv/module", "../../../../module/my_drv")
	link("sys/bus/pci/drivers/mydrv/0000:00:01.0", "../../../../devices/pci0/0000:00:01.0")
	link("sys/module/my_drv/drivers/pci:mydrv", "../../../bus/pci/drivers/mydrv")
	link("sys/dev/char/1:5", "../../devices/pci0/0000:00:01.0/tty/ttyX0")
	link("sys/devices/pci0/0000:00:01.0/net/eth9/device", "../..")
	link("sys/class/net/eth9", "../../devices/pci0/0000:00:01.0/net/eth9")
	// Two processes, in two mount namespaces.
	for pid, comm := range map[string]string{"71": "cat", "72": "minicom"} {
		k.Write("proc/"+pid+"/comm", comm+"\n")
		link("proc/"+pid+"/ns/mnt", "mnt:["+pid+"]")
		link("proc/"+pid+"/fd/1", "/dev/null")
	}
	link("proc/72/fd/7", "/dev/zero")
	k.Write("proc/72/mountinfo", `36 35 98:0 / /mnt/a\040b rw,noatime shared:1 - myfs /dev/x rw`+"\n")
	k.Write("proc/71/mountinfo", "22 1 0:21 / /proc rw - proc proc rw\nnonsense\n")
	k.Write("lib/modules/6.1.0-1-amd64/modules.alias", "alias fs-myfs my_fs_module\nalias fs-other other\n")
	k.Write("proc/devices", "Character devices:\n  1 mem\n\nBlock devices:\n 98 ubd_drv\n")
	k.Write("proc/net/protocols", "protocol  size sockets  memory press maxhdr  slab module     cl co\nSCTP      1648      2      -1   NI       0   no   sctp        y  y\nDCCP      1400      0      -1   NI       0   no   dccp        y  y\n")
	k.Write("proc/crypto", "name : sha1\ndriver : sha1-mine\nmodule : my_sha1\nrefcnt : 2\n\nname : md5\ndriver : md5-mine\nmodule : my_md5\nrefcnt : 1\n")

	process := func(pid int, command, name string, guess bool) loader.User {
		return loader.User{Kind: loader.UserProcess, Name: name, PID: pid, Command: command, Guess: guess}
	}
	for module, want := range map[string][]loader.User{
		"chardev":      {process(71, "cat", "/dev/null", true), process(72, "minicom", "/dev/null", true)},
		"my-drv":       {process(72, "minicom", "/dev/zero", false), {Kind: loader.UserInterface, Name: "eth9"}, {Kind: loader.UserDevice, Name: "0000:00:01.0"}},
		"my_fs_module": {{Kind: loader.UserMount, Name: "/mnt/a b"}},
		"ubd_drv":      {{Kind: loader.UserMount, Name: "/mnt/a b", Guess: true}},
		"sctp":         {{Kind: loader.UserSockets, Name: "SCTP"}},
		"my_sha1":      {{Kind: loader.UserCrypto, Name: "sha1-mine"}},
		"dccp":         nil,
		"my_md5":       nil,
		"dev":          nil, // only a part of a name
	} {
		if diff := cmp.Diff(want, loader.Users(k.Root, module)); diff != "" {
			t.Errorf("%s: %s", module, diff)
		}
	}
	err := &loader.InUseError{Module: "my_drv", Refcnt: 2, Users: loader.Users(k.Root, "my_drv")}
	if want := "unload my_drv: in use by process 72 (minicom), which has /dev/zero open"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
}

// What this machine has, the finder must be able to read: it finds this process by its open device.
func TestUsersHere(t *testing.T) {
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found := loader.Users("/", "mem") // the driver of /dev/null by its number's name
	if !slices.ContainsFunc(found, func(u loader.User) bool { return u.PID == os.Getpid() && u.Name == "/dev/null" }) {
		t.Errorf("found %+v", found)
	}
}
