package build

import (
	"os"
	"path/filepath"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// landlockABI is the version of Landlock that this kernel has: 1 since 5.13; 0 when it has none, or
// does not use it (the lsm= list).
var landlockABI = func() int {
	version, err := ll.LandlockGetABIVersion()
	if err != nil {
		return 0
	}
	return version
}

// system is what a build reads of this machine: programs, libraries, headers, and of /etc
// what the C library, compilers, Perl and Python open to start.
var system = []string{
	"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", // /opt: compilers of vendors
	"/usr/src", "/usr/local", "/lib/modules", // these may be links to elsewhere
	"/proc", "/sys/devices/system/cpu", "/sys/kernel/btf",
	"/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload",
	"/etc/nsswitch.conf", "/etc/passwd", "/etc/group", "/etc/localtime", "/etc/locale.alias",
	"/etc/*-release", "/etc/debian_version", "/etc/dpkg", "/etc/rpm", // what distribution it is
	"/etc/perl", "/etc/python3*", "/etc/magic*", "/etc/gitconfig", "/etc/wgetrc", // these refuse to run when theirs cannot be read
	"/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf", "/etc/crypto-policies",
	"/dev/random", "/dev/urandom",
}

var devices = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/tty"}

// landlock limits this process and its children for good to those paths, the build tree, the copy
// and the own /tmp; to no TCP port (ABI 4), no process or abstract socket of others (ABI 6), no socket
// file of others (ABI 9), no UDP port (ABI 10). Processes outside cannot be traced at any ABI.
func (w *wall) landlock() error {
	read := w.Trees
	for _, b := range w.Binds {
		read = append(read, b.At)
	}
	for _, pattern := range system {
		found, _ := filepath.Glob(pattern)
		read = append(read, found...)
	}
	var write []string
	for _, c := range w.copies() {
		write = append(write, c.At)
	}
	if w.Work != "" {
		write = append(write, "/tmp") // our own
	}
	copies := landlock.RWDirs(write...)
	if w.Landlock > 1 { // ABI 1 lets no file move to another folder
		copies = copies.WithRefer()
	}
	dirs, files := there(read)
	_, devs := there(devices)
	if w.Fifo != "" {
		devs = append(devs, w.fifo()) // make opens it from 4.4 on
	}
	return failed("landlock", landlock.V10.BestEffort().Restrict(landlock.RODirs(dirs...), landlock.ROFiles(files...), landlock.RWFiles(devs...), copies))
}

// there sorts paths into folders and others, and leaves out what this process does not find.
func there(paths []string) (dirs, files []string) {
	for _, path := range paths {
		switch info, err := os.Stat(path); {
		case err != nil:
		case info.IsDir():
			dirs = append(dirs, path)
		default:
			files = append(files, path)
		}
	}
	return dirs, files
}
