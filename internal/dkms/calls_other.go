//go:build !amd64

package dkms

import "golang.org/x/sys/unix"

const renameat = 38 // of arm64; riscv64 and loong64 have none, and nothing else by that number

var oldCalls = []uint32{renameat}

var opens = []opener{{unix.SYS_OPENAT, 2}}
