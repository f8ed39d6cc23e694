// Command kmodctl owns the life of out-of-tree kernel modules on a machine:
// it builds them from a kmod.toml, keeps what was built per kernel release,
// installs it under /lib/modules and loads it into the kernel.
package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"kmodctl/build"
	"kmodctl/internal/dkms"
	"kmodctl/internal/vm"
	"kmodctl/loader"
)

func main() {
	debug.SetGCPercent(400) // a command is short: rather memory than time
	build.Stage()           // returns unless this process is the isolated child of a build
	dkms.Stage()            // or the one that evaluates a dkms.conf
	loader.Stage()          // or the one that makes the loader's system calls
	vm.Main(func() int {
		ctx, stop := interruptible()
		defer stop()
		if filepath.Base(os.Args[0]) == "dkms" {
			return runDKMS(ctx, os.Args, os.Stdout, os.Stderr)
		}
		return run(ctx, os.Args, os.Stdout, os.Stderr)
	})
}

// interrupted is the cause of a context that a signal ended.
type interrupted struct{ sig syscall.Signal }

func (i interrupted) Error() string { return "interrupted by " + i.sig.String() }

// interruptible is a context that the first SIGINT or SIGTERM ends; a second one
// ends the process at once, as a terminal's user expects.
func interruptible() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		if sig, ok := <-signals; ok {
			cancel(interrupted{sig.(syscall.Signal)})
			signal.Reset()
		}
	}()
	return ctx, func() { signal.Stop(signals); close(signals) }
}
