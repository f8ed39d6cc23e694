package ko

import (
	"errors"
	"fmt"
)

// What is wrong with a file, for errors.Is. Every *FormatError wraps one of them.
var (
	ErrNotELF    = errors.New("not an ELF file")
	ErrNotModule = errors.New("not a kernel module") // an ELF file of another kind, or not a file
	ErrTruncated = errors.New("truncated")           // ends before what its headers promise, or is empty
	ErrMalformed = errors.New("malformed")
	ErrStripped  = errors.New("without a symbol table (stripped?)")
	ErrTooLarge  = errors.New("too large") // over 512 MiB, on disk or decompressed
)

// FormatError says where and why a file cannot be read as a module.
type FormatError struct {
	Path    string // "" when read from memory
	Section string // ELF section, "signature" for the trailer, "" for the file as a whole
	Offset  int64  // byte of the decompressed file where the trouble is; 0 when it has no place
	Reason  string // the detail; "" when Err says it all
	Err     error  // one of ErrNotELF, ErrNotModule, ErrTruncated, ErrMalformed, ErrStripped, ErrTooLarge
}

func (e *FormatError) Error() string {
	s := "read module"
	if e.Path != "" {
		s = "read " + e.Path
	}
	s += ": " + e.Err.Error()
	if e.Section != "" {
		s += ": " + e.Section
	}
	if e.Offset != 0 {
		s += fmt.Sprintf(" at byte %d", e.Offset)
	}
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	return s
}

func (e *FormatError) Unwrap() error { return e.Err }
