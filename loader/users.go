package loader

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
)

// The kinds of a User. Interfaces and devices go away with their module and rarely
// keep it; the others do.
const (
	UserProcess   = "process"   // has a device of the module open
	UserMount     = "mount"     // of the module's file system, or of its block device
	UserSockets   = "sockets"   // of the module's protocol
	UserCrypto    = "crypto"    // an algorithm of the module that something has taken
	UserInterface = "interface" // a network interface that the module drives or made
	UserDevice    = "device"    // bound to a driver of the module
)

// User is something besides other modules that uses a module. The kernel keeps
// only the number of users; who they are is put together from proc and sysfs.
type User struct {
	Kind    string `json:"kind"`
	Name    string `json:"name"` // of the device file, mount point, protocol, algorithm, interface or device
	PID     int    `json:"pid,omitempty"`
	Command string `json:"command,omitempty"` // of the process
	Guess   bool   `json:"guess,omitempty"`   // only a name connects the two: sysfs knows no driver of the device
}

func (u User) String() string {
	text := u.Kind + " " + u.Name
	switch u.Kind {
	case UserProcess:
		text = fmt.Sprintf("process %d (%s), which has %s open", u.PID, u.Command, u.Name)
	case UserMount:
		text = "the mount at " + u.Name
	case UserSockets:
		text = "sockets of " + u.Name
	case UserCrypto:
		text = "users of the algorithm " + u.Name
	}
	if u.Guess {
		text += " (by its name)"
	}
	return text
}

// holds reports whether a user of that kind keeps the module from going.
func (u User) holds() bool { return u.Kind != UserInterface && u.Kind != UserDevice }

// Users finds who uses a module of the kernel whose proc and sys are under root.
// What this process may not look at is left out.
func Users(root kernel.Root, module string) []User {
	f := finder{root: root, module: ko.NormalizeName(module), devices: map[string]match{}}
	f.aliases = f.readAliases()
	f.processes()
	f.sockets()
	f.crypto()
	f.interfaces()
	f.bound()
	return f.users
}

// finder looks for the users of one module.
type finder struct {
	root    kernel.Root
	module  string
	aliases []string         // of the module that name a file system or a kind of interface: fs-ext4, rtnl-link-bond
	devices map[string]match // by kind and number, "char/10:200"
	users   []User
}

// match is how a device belongs to the module.
type match int

const (
	matchNot match = iota
	matchName
	matchDriver
)

func (f *finder) add(u User) {
	if !slices.Contains(f.users, u) {
		f.users = append(f.users, u)
	}
}

// readAliases reads the module's fs- and rtnl-link- aliases from the modules.alias of the kernel.
func (f *finder) readAliases() (aliases []string) {
	release := readLine(under(f.root, "proc/sys/kernel/osrelease"))
	file, err := os.Open(under(f.root, "lib/modules/"+release+"/modules.alias"))
	if err != nil {
		return nil
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) == 3 && ko.NormalizeName(words[2]) == f.module &&
			(strings.HasPrefix(words[1], "fs-") || strings.HasPrefix(words[1], "rtnl-link-")) {
			aliases = append(aliases, words[1])
		}
	}
	return aliases
}

// provides reports whether the module is what the kernel would load for a file
// system or a kind of interface.
func (f *finder) provides(prefix, name string) bool {
	return ko.NormalizeName(name) == f.module || slices.Contains(f.aliases, prefix+name)
}

// processes looks through all processes for open devices, and through their mount
// namespaces for mounts.
func (f *finder) processes() {
	dirs, _ := os.ReadDir(under(f.root, "proc"))
	seen := map[string]bool{}
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		dir := under(f.root, "proc/"+d.Name())
		if namespace, err := os.Readlink(dir + "/ns/mnt"); err == nil && !seen[namespace] {
			seen[namespace] = true
			f.mounts(dir + "/mountinfo")
		}
		fds, _ := os.ReadDir(dir + "/fd")
		for _, fd := range fds {
			f.descriptor(pid, dir, dir+"/fd/"+fd.Name())
		}
	}
}

func (f *finder) descriptor(pid int, dir, fd string) {
	var st unix.Statx_t
	// Without AT_STATX_DONT_SYNC a file server that is gone would hold us.
	if unix.Statx(unix.AT_FDCWD, fd, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st) != nil {
		return
	}
	kind := map[uint16]string{unix.S_IFCHR: "char", unix.S_IFBLK: "block"}[st.Mode&unix.S_IFMT]
	if kind == "" {
		return
	}
	if m := f.device(kind, fmt.Sprintf("%d:%d", st.Rdev_major, st.Rdev_minor)); m != matchNot {
		name, _ := os.Readlink(fd)
		f.add(User{Kind: UserProcess, Name: name, PID: pid, Command: readLine(dir + "/comm"), Guess: m == matchName})
	}
}

// mounts reads a mountinfo, proc_pid_mountinfo(5).
func (f *finder) mounts(path string) {
	text, _ := os.ReadFile(path)
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		fields, of := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(of) < 1 {
			continue
		}
		m := f.device("block", fields[2])
		if f.provides("fs-", of[0]) {
			m = matchDriver
		}
		if m != matchNot {
			f.add(User{Kind: UserMount, Name: unescape(fields[4]), Guess: m == matchName})
		}
	}
}

var escaped = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`\\[0-7]{3}`) })

// unescape undoes the \040 of mountinfo.
func unescape(s string) string {
	return escaped().ReplaceAllStringFunc(s, func(e string) string {
		n, _ := strconv.ParseUint(e[1:], 8, 8)
		return string([]byte{byte(n)})
	})
}

// device tells how the device of that kind ("char", "block") and number belongs to the
// module: sysfs links a device, or one that it is part of, to its driver and the
// driver to its module. Devices that have no driver, as those of misc_register, are
// matched by their names.
func (f *finder) device(kind, number string) match {
	key := kind + "/" + number
	m, known := f.devices[key]
	if !known {
		m = f.matchDevice(kind, number)
		f.devices[key] = m
	}
	return m
}

func (f *finder) matchDevice(kind, number string) match {
	top := under(f.root, "sys/devices")
	dir, err := filepath.EvalSymlinks(under(f.root, "sys/dev/"+kind+"/"+number))
	names := f.registered(kind, number)
	driven := false
	if err == nil {
		names = append(names, filepath.Base(dir))
		if class, err := os.Readlink(dir + "/subsystem"); err == nil {
			names = append(names, filepath.Base(class))
		}
		for ; strings.HasPrefix(dir, top+"/"); dir = filepath.Dir(dir) {
			if module, err := os.Readlink(dir + "/driver/module"); err == nil {
				driven = true
				if filepath.Base(module) == f.module {
					return matchDriver
				}
			}
		}
	}
	if !driven && slices.ContainsFunc(names, f.akin) {
		return matchName
	}
	return matchNot
}

// registered are the names under which a device's number was taken: proc_devices(5), proc_misc(5).
func (f *finder) registered(kind, number string) (names []string) {
	major, minor, _ := strings.Cut(number, ":")
	section := map[string]string{"char": "Character devices:", "block": "Block devices:"}[kind]
	text, _ := os.ReadFile(under(f.root, "proc/devices"))
	in := false
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		switch {
		case strings.HasSuffix(strings.TrimSpace(line), ":"):
			in = strings.TrimSpace(line) == section
		case in && len(words) == 2 && words[0] == major && words[1] != "misc":
			names = append(names, words[1])
		}
	}
	const misc = "10"
	if kind == "char" && major == misc {
		text, _ := os.ReadFile(under(f.root, "proc/misc"))
		for line := range strings.Lines(string(text)) {
			if words := strings.Fields(line); len(words) == 2 && words[0] == minor {
				names = append(names, words[1])
			}
		}
	}
	return names
}

// akin reports whether a name is the module's, or begins or ends with it as a word,
// or the module's with it: kvm of kvm_intel.
func (f *finder) akin(name string) bool {
	name = ko.NormalizeName(name)
	return name == f.module || strings.HasPrefix(name, f.module+"_") || strings.HasSuffix(name, "_"+f.module) ||
		strings.HasPrefix(f.module, name+"_")
}

// sockets reads proc/net/protocols (net/core/sock.c, proto_seq_printf): protocol size sockets
// memory press maxhdr slab module ...
func (f *finder) sockets() {
	text, _ := os.ReadFile(under(f.root, "proc/net/protocols"))
	for line := range strings.Lines(string(text)) {
		if w := strings.Fields(line); len(w) > 7 && w[7] == f.module && w[2] != "0" {
			f.add(User{Kind: UserSockets, Name: w[0]})
		}
	}
}

// crypto reads proc/crypto (crypto/proc.c), of which a refcnt of 1 is the registration's.
func (f *finder) crypto() {
	text, _ := os.ReadFile(under(f.root, "proc/crypto"))
	for block := range strings.SplitSeq(string(text), "\n\n") {
		fields := map[string]string{}
		for line := range strings.Lines(block) {
			key, value, _ := strings.Cut(line, ":")
			fields[strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
		if n, _ := strconv.Atoi(fields["refcnt"]); ko.NormalizeName(fields["module"]) == f.module && n > 1 {
			f.add(User{Kind: UserCrypto, Name: fields["driver"]})
		}
	}
}

// interfaces finds network interfaces by their device's driver, or by their kind.
func (f *finder) interfaces() {
	kinds := map[string]string{}
	if f.root.IsHost() {
		kinds = interfaceKinds()
	}
	names, _ := os.ReadDir(under(f.root, "sys/class/net"))
	for _, n := range names {
		module, err := os.Readlink(under(f.root, "sys/class/net/"+n.Name()+"/device/driver/module"))
		kind := kinds[n.Name()]
		if err == nil && filepath.Base(module) == f.module || kind != "" && f.provides("rtnl-link-", kind) {
			f.add(User{Kind: UserInterface, Name: n.Name()})
		}
	}
}

// interfaceKinds asks the kernel for the kinds ("veth", "bond") of the interfaces in this
// network namespace: rtnetlink(7), IFLA_LINKINFO.
func interfaceKinds() map[string]string {
	kinds := map[string]string{}
	answer, err := syscall.NetlinkRIB(syscall.RTM_GETLINK, syscall.AF_UNSPEC)
	if err != nil {
		return kinds
	}
	messages, _ := syscall.ParseNetlinkMessage(answer)
	for _, m := range messages {
		if m.Header.Type != syscall.RTM_NEWLINK {
			continue
		}
		attributes, _ := syscall.ParseNetlinkRouteAttr(&m)
		name, kind := "", ""
		for _, a := range attributes {
			switch a.Attr.Type {
			case unix.IFLA_IFNAME:
				name = unix.ByteSliceToString(a.Value)
			case unix.IFLA_LINKINFO:
				kind = infoKind(a.Value)
			}
		}
		kinds[name] = kind
	}
	return kinds
}

// infoKind finds IFLA_INFO_KIND among nested attributes: length and type, two bytes
// each, and the value, padded to four bytes.
func infoKind(nested []byte) string {
	for len(nested) >= 4 {
		size := int(binary.NativeEndian.Uint16(nested))
		if size < 4 || size > len(nested) {
			return ""
		}
		if binary.NativeEndian.Uint16(nested[2:]) == unix.IFLA_INFO_KIND {
			return unix.ByteSliceToString(nested[4:size])
		}
		nested = nested[min((size+3)&^3, len(nested)):]
	}
	return ""
}

// bound are the devices of the module's drivers: links in the drivers' folders.
func (f *finder) bound() {
	dir := under(f.root, "sys/module/"+f.module+"/drivers")
	drivers, _ := os.ReadDir(dir)
	for _, d := range drivers {
		links, _ := os.ReadDir(filepath.Join(dir, d.Name()))
		for _, l := range links {
			if target, err := os.Readlink(filepath.Join(dir, d.Name(), l.Name())); err == nil && strings.Contains(target, "/devices/") {
				f.add(User{Kind: UserDevice, Name: l.Name()})
			}
		}
	}
}
