package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// table prints columns for people, aligned.
type table struct{ w *tabwriter.Writer }

func (e *env) table(head ...string) table {
	t := table{tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)}
	t.row(head...)
	return t
}

func (t table) row(cells ...string) {
	for i, c := range cells {
		if c == "" {
			cells[i] = "-"
		}
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

func (t table) flush() error { return t.w.Flush() }
