package main

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"text/tabwriter"
)

// table prints columns for people, aligned.
type table struct {
	w   *tabwriter.Writer
	out *bufio.Writer // tabwriter writes cell by cell
}

func (e *env) table(head ...string) table {
	out := bufio.NewWriter(e.out)
	t := table{tabwriter.NewWriter(out, 0, 0, 2, ' ', 0), out}
	t.row(head...)
	return t
}

func (t table) row(cells ...string) {
	for i, c := range cells {
		if c == "" {
			cells[i] = "-"
		}
	}
	io.WriteString(t.w, strings.Join(cells, "\t")+"\n")
}

func (t table) flush() error { return errors.Join(t.w.Flush(), t.out.Flush()) }
