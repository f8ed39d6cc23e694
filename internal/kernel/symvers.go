package kernel

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// Symbol is one line of a Module.symvers: a symbol that the kernel or one of its
// modules exports.
type Symbol struct {
	CRC       uint32 // modversions CRC; 0 on a kernel without CONFIG_MODVERSIONS
	Module    string // "vmlinux", or the module's path without .ko: "drivers/net/tun"
	Export    string // "EXPORT_SYMBOL" or "EXPORT_SYMBOL_GPL"; kernels before 5.12 have further ones
	Namespace string // "" for none; since 5.4
}

// Symbols reads the tree's Module.symvers.
func (t *Tree) Symbols() (map[string]Symbol, error) { return t.symbols(nil) }

// SymbolsOf reads the tree's Module.symvers for some symbols; those that it lacks are not in the answer. It takes
// a fifth of the time of Symbols.
func (t *Tree) SymbolsOf(names map[string]bool) (map[string]Symbol, error) {
	return t.symbols(func(name string) bool { return names[name] })
}

func (t *Tree) symbols(wanted func(name string) bool) (map[string]Symbol, error) {
	f, err := os.Open(t.Symvers)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	symbols, err := readSymvers(f, wanted)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.Symvers, err)
	}
	return symbols, nil
}

// ReadSymvers reads a Module.symvers (scripts/mod/modpost.c, write_dump) into
// its symbols by name. Lines have four fields before kernel 5.4 and five since;
// 5.4 and 5.5 had the namespace third, which is understood as well (5190044c2965
// moved it). The error names the line.
func ReadSymvers(r io.Reader) (map[string]Symbol, error) { return readSymvers(r, nil) }

// readSymvers passes over the lines of symbols that are not wanted; nil wants all.
func readSymvers(r io.Reader, wanted func(name string) bool) (map[string]Symbol, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	size := 0
	if wanted == nil {
		const bytesPerLine = 64
		size = len(text) / bytesPerLine
	}
	symbols := make(map[string]Symbol, size)
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			continue
		}
		if wanted != nil {
			_, rest, _ := strings.Cut(line, "\t")
			if name, _, ok := strings.Cut(rest, "\t"); ok && !wanted(name) {
				continue
			}
		}
		name, symbol, err := parseSymbol(strings.Split(line, "\t"))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if _, twice := symbols[name]; twice {
			return nil, fmt.Errorf("line %d: symbol %s is there twice", number, name)
		}
		symbols[name] = symbol
	}
	return symbols, nil
}

func parseSymbol(field []string) (name string, s Symbol, err error) {
	if len(field) != 4 && len(field) != 5 {
		return "", s, fmt.Errorf("%d fields, want CRC, symbol, module, export and namespace", len(field))
	}
	if len(field) == 5 {
		s.Namespace = field[4]
		if strings.HasPrefix(s.Namespace, "EXPORT_") && !strings.HasPrefix(field[3], "EXPORT_") {
			s.Namespace, field[2], field[3] = field[2], field[3], field[4]
		}
	}
	crc, err := strconv.ParseUint(field[0], 0, 32)
	if err != nil {
		return "", s, fmt.Errorf("CRC %q: %w", field[0], err)
	}
	if field[1] == "" {
		return "", s, fmt.Errorf("no symbol name")
	}
	s.CRC, s.Module, s.Export = uint32(crc), field[2], field[3]
	return field[1], s, nil
}
