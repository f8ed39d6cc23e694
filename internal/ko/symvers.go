package ko

import (
	"fmt"
	"strings"
)

// Symvers is what modpost writes into Module.symvers of a module's exports, one line for each:
// CRC, symbol, module, kind of export, namespace (scripts/mod/modpost.c, write_dump; five columns
// since Linux 5.7); module is the file's name without .ko. Another build that is given it in
// KBUILD_EXTRA_SYMBOLS can use them.
func (i *Info) Symvers(module string) string {
	var text strings.Builder
	for _, e := range i.Exports {
		kind := "EXPORT_SYMBOL"
		if e.GPL {
			kind = "EXPORT_SYMBOL_GPL"
		}
		fmt.Fprintf(&text, "0x%08x\t%s\t%s\t%s\t%s\n", e.CRC, e.Name, module, kind, e.Namespace)
	}
	return text.String()
}
