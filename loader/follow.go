package loader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
)

// LogLine is a line of the kernel's log.
type LogLine struct {
	Usec int64  // since boot
	Text string // without the level
	Lost bool   // in place of a line: the kernel had overwritten some before they were read
}

// String is the line as dmesg(1) prints it.
func (l LogLine) String() string { return fmt.Sprintf("[%5d.%06d] %s", l.Usec/1e6, l.Usec%1e6, l.Text) }

// FollowLog hands over each line about a module: with past those that the kernel still has, and then those that come, until ctx is
// done or emit fails. One descriptor reads both, so that none is missed between. The error is never nil; of
// ctx it is the cause. EPERM: kernel.dmesg_restrict is 1 and the process has no CAP_SYSLOG.
func FollowLog(ctx context.Context, root kernel.Root, module string, past bool, emit func(LogLine) error) error {
	k, err := openKmsg(root)
	if err == nil && !past {
		err = k.skip()
	}
	if err != nil {
		return fmt.Errorf("follow kernel log: %w", err)
	}
	module = ko.NormalizeName(module)
	return follow(ctx, os.NewFile(uintptr(k.fd), "/dev/kmsg"), func(f *os.File, buf []byte) error {
		n, err := f.Read(buf)
		if errors.Is(err, unix.EPIPE) {
			return emit(LogLine{Lost: true})
		}
		for _, r := range parseRecords(string(buf[:n])) {
			if named(r.text, module) {
				if err := emit(LogLine{Usec: r.usec, Text: r.text}); err != nil {
					return err
				}
			}
		}
		return err
	})
}

// Event is what became of a module of the running kernel.
type Event struct {
	Module string
	Loaded bool // its init has succeeded; else it was unloaded
	Lost   bool // in place of an event: some were not kept, as too many came at once
}

// FollowEvents hands over each load and unload of a module by whomever, as the kernel tells udev: kobject uevents,
// NETLINK_KOBJECT_UEVENT of netlink(7). It calls ready when none can be missed any more, and ends as FollowLog does.
func FollowEvents(ctx context.Context, ready func(), emit func(Event) error) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err == nil {
		if err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil { // 1: the kernel's own; udev sends to 2
			unix.Close(fd)
		}
	}
	if err != nil {
		return fmt.Errorf("follow events of modules: %w", err)
	}
	ready()
	return follow(ctx, os.NewFile(uintptr(fd), "uevents"), func(f *os.File, buf []byte) error {
		conn, err := f.SyscallConn()
		if err != nil {
			return err
		}
		var n int
		var from unix.Sockaddr
		var failed error
		err = conn.Read(func(fd uintptr) (done bool) {
			n, from, failed = unix.Recvfrom(int(fd), buf, 0)
			return failed != unix.EAGAIN
		})
		if sender, ok := from.(*unix.SockaddrNetlink); err == nil && failed == nil && (!ok || sender.Pid != 0) {
			return nil // not from the kernel
		}
		switch {
		case err != nil:
			return err
		case errors.Is(failed, unix.ENOBUFS):
			return emit(Event{Lost: true})
		case errors.Is(failed, unix.EINTR):
			return nil
		case failed != nil:
			return failed
		}
		if event, ok := parseUevent(string(buf[:n])); ok {
			return emit(event)
		}
		return nil
	})
}

// parseUevent reads "add@/module/NAME" and its NUL-separated KEY=VALUE (lib/kobject_uevent.c), and reports whether it is a
// module that came or went.
func parseUevent(message string) (e Event, ok bool) {
	head, _, _ := strings.Cut(message, "\x00")
	action, path, _ := strings.Cut(head, "@")
	e.Module, ok = strings.CutPrefix(path, "/module/")
	e.Loaded = action == "add"
	return e, ok && e.Module != "" && !strings.Contains(e.Module, "/") && (e.Loaded || action == "remove")
}

// follow calls next over and over with a file that the runtime can wait for, and closes it when ctx is done or next fails.
func follow(ctx context.Context, f *os.File, next func(f *os.File, buf []byte) error) error {
	stop := context.AfterFunc(ctx, func() { f.Close() }) // which ends a read that waits
	defer f.Close()
	defer stop()
	buf := make([]byte, 16<<10)
	for {
		if err := next(f, buf); ctx.Err() != nil {
			return context.Cause(ctx)
		} else if err != nil {
			return err
		}
	}
}
