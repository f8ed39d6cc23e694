package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/urfave/cli/v2"

	"kmodctl/loader"
)

// guestModules is where a run's own modules are in the guest.
const guestModules = "/modules"

// cmdGuest is what run starts in its virtual machine.
func cmdGuest(e *env) *cli.Command {
	return &cli.Command{
		Name:      "guest",
		Usage:     "load and unload modules in the virtual machine of kmodctl run",
		ArgsUsage: "+MODULE [PARAMETER=VALUE ...] ...",
		Hidden:    true,
		Action: func(c *cli.Context) error {
			return e.guest(c.Context, c.Args().Slice())
		},
	}
}

// complaint is a line by which a kernel says that something went badly wrong.
var complaint = sync.OnceValue(func() *regexp.Regexp { // only the guest pays for it
	return regexp.MustCompile(`^(BUG:|WARNING:|Oops|general protection fault|kernel BUG at|INFO: task .* blocked|UBSAN:|KASAN:)`)
})

// clock tells a line that a kernel prints of its clocks some seconds after boot,
// whatever the module does.
func clock(line string) bool {
	return strings.HasPrefix(line, "tsc: ") || strings.HasPrefix(line, "clocksource: ")
}

func (e *env) guest(ctx context.Context, args []string) error {
	e.quiet = true // what the modules print is the output, not our own steps
	log, err := followKernelLog(e.out)
	if err != nil {
		return err
	}
	release, err := e.running()
	if err != nil {
		return err
	}
	index := e.index(release)
	find := func(module, _ string) (string, bool) {
		path := guestModules + "/" + module + ".ko"
		_, err := os.Stat(path)
		return path, err == nil
	}
	var loaded []string
	for len(args) > 0 && err == nil {
		name := strings.TrimPrefix(args[0], guestModule)
		n := 1
		for n < len(args) && !strings.HasPrefix(args[n], guestModule) {
			n++
		}
		params := args[1:n]
		args = args[n:]
		err = e.guestStep(ctx, func(st *loader.State) (*loader.Plan, error) {
			return loader.PlanLoad(loader.LoadRequest{Name: name, Params: params, Index: index, Lookup: find, State: st, Release: release})
		})
		if err == nil {
			loaded = append(loaded, name)
		}
	}
	for _, name := range slices.Backward(loaded) {
		err = errors.Join(err, e.guestStep(ctx, func(st *loader.State) (*loader.Plan, error) {
			return loader.PlanUnload(loader.UnloadRequest{Name: name, WithUnused: true, State: st})
		}))
	}
	var refused *loader.KernelError
	if errors.As(err, &refused) {
		refused.Log = nil // it has been printed as it came
	}
	bad, logErr := log.finish()
	if err = errors.Join(err, logErr); err == nil && bad != "" {
		err = fmt.Errorf("the kernel complained: %s", bad)
	}
	return err
}

func (e *env) guestStep(ctx context.Context, plan func(*loader.State) (*loader.Plan, error)) error {
	st, err := loader.ReadState(e.root)
	if err != nil {
		return err
	}
	p, err := plan(st)
	if err != nil {
		return err
	}
	l := loader.New(loader.DefaultTimeout)
	defer l.Close()
	return e.act(ctx, l, p)
}

// kernelLog prints the records of /dev/kmsg as they come.
type kernelLog struct {
	fd  int
	out io.Writer
	bad string // the first complaint
	end chan error
}

// followKernelLog begins with the next record that the kernel logs.
func followKernelLog(out io.Writer) (*kernelLog, error) {
	fd, err := syscall.Open("/dev/kmsg", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/kmsg: %w", err)
	}
	if _, err := syscall.Seek(fd, 0, io.SeekEnd); err != nil {
		return nil, fmt.Errorf("seek /dev/kmsg: %w", err)
	}
	k := &kernelLog{fd: fd, out: out, end: make(chan error, 1)}
	go func() { k.end <- k.follow() }()
	return k, nil
}

// lastRecord is written to the log to know that all before it has been read. It
// needs its newline: a record without one is not shown until the next comes.
const lastRecord = "kmodctl: end of the run"

func (k *kernelLog) follow() error {
	record := make([]byte, 8192) // CONSOLE_EXT_LOG_MAX
	for {
		n, err := syscall.Read(k.fd, record)
		if err == syscall.EPIPE || err == syscall.EINTR {
			continue // EPIPE: records were overwritten before they were read
		}
		if err != nil {
			return fmt.Errorf("read /dev/kmsg: %w", err)
		}
		_, text, _ := strings.Cut(string(record[:n]), ";")
		text, _, _ = strings.Cut(text, "\n")
		if text == lastRecord {
			return nil
		}
		if k.bad == "" && complaint().MatchString(text) {
			k.bad = text
		}
		if !clock(text) {
			fmt.Fprintln(k.out, text)
		}
	}
}

// finish waits for all that was logged so far and returns the first complaint.
func (k *kernelLog) finish() (string, error) {
	if _, err := syscall.Write(k.fd, []byte("<6>"+lastRecord+"\n")); err != nil {
		return "", fmt.Errorf("write /dev/kmsg: %w", err)
	}
	err := <-k.end
	return k.bad, err
}
