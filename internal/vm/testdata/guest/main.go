// Guest is what the tests of package vm boot.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"kmodctl/internal/vm"
)

func main() { vm.Main(run) }

func run() int {
	switch os.Args[1] {
	case "exit":
		code, _ := strconv.Atoi(os.Args[2])
		return code
	case "self": // what it was started with
		dir, err := os.Getwd()
		check(err)
		check(json.NewEncoder(os.Stdout).Encode(map[string]any{
			"args": os.Args[1:], "env": os.Getenv("GREETING"), "marker": os.Getenv("KMODCTL_VM"), "dir": dir,
		}))
	}
	return 0
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(99)
	}
}

var _ = io.EOF
var _ = syscall.EINVAL
var _ = unix.EINVAL
