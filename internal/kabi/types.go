package kabi

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// types are what a kernel's BTF says, by name: "struct net_device", "func netif_rx".
type types map[string]definition

// definition is one named type. Other named types it only names, so that a change of one is a change of that alone.
type definition struct {
	text string   // offsets in bits, sizes in bytes
	refs []string // the named types in it
}

// readTypes takes a kernel's types apart. Where C files have types of one name that differ, the definition
// has all of them.
func readTypes(spec *btf.Spec) (types, error) {
	all := types{}
	for t, err := range spec.All() {
		if err != nil {
			return nil, err
		}
		name := nameOf(t)
		if name == "" {
			continue
		}
		var w writer
		w.define(t)
		d, again := all[name]
		switch {
		case !again:
			d = definition{w.text.String(), w.refs}
		case !strings.Contains(d.text, w.text.String()):
			parts := append(strings.Split(d.text, "\n"), w.text.String())
			slices.Sort(parts)
			d = definition{strings.Join(parts, "\n"), append(d.refs, w.refs...)}
		}
		all[name] = d
	}
	return all, nil
}

// changed are the types of t that other has not, or otherwise. Functions and variables have CRCs; of
// several equal ones that C files declare in other words (size_t, unsigned long), the BTF has any one.
func (t types) changed(other types) map[string]bool {
	out := map[string]bool{}
	for name, d := range t {
		if kind, _, _ := strings.Cut(name, " "); kind != "func" && kind != "var" && other[name].text != d.text {
			out[name] = true
		}
	}
	return out
}

// reaches looks for one of some types among all that a type leads to, pointers included; "" when it leads to none.
func (t types) reaches(from string, some map[string]bool) string {
	seen := map[string]bool{from: true}
	for todo := []string{from}; len(todo) > 0; todo = todo[1:] {
		name := todo[0]
		if some[name] {
			return name
		}
		for _, next := range t[name].refs {
			if !seen[next] {
				seen[next] = true
				todo = append(todo, next)
			}
		}
	}
	return ""
}

// nameOf is how definitions name a type; "" for one that is part of others.
func nameOf(t btf.Type) string {
	if t.TypeName() == "" {
		return ""
	}
	switch t.(type) {
	case *btf.Struct:
		return "struct " + t.TypeName()
	case *btf.Union:
		return "union " + t.TypeName()
	case *btf.Enum:
		return "enum " + t.TypeName()
	case *btf.Typedef:
		return "typedef " + t.TypeName()
	case *btf.Func:
		return "func " + t.TypeName()
	case *btf.Var:
		return "var " + t.TypeName()
	}
	return ""
}

// writer writes a definition.
type writer struct {
	text strings.Builder
	refs []string
}

// refer writes a type as part of another.
func (w *writer) refer(t btf.Type) {
	name := nameOf(t)
	if declared, ok := t.(*btf.Fwd); ok { // another file has it
		name = declared.Kind.String() + " " + declared.Name
	}
	if name == "" {
		w.define(t)
		return
	}
	w.text.WriteString(name)
	if !slices.Contains(w.refs, name) {
		w.refs = append(w.refs, name)
	}
}

// define writes what a type consists of.
func (w *writer) define(t btf.Type) {
	switch t := t.(type) {
	case *btf.Struct:
		w.members("struct", t.Size, t.Members)
	case *btf.Union:
		w.members("union", t.Size, t.Members)
	case *btf.Enum:
		fmt.Fprintf(&w.text, "enum %d %t {", t.Size, t.Signed)
		for _, v := range t.Values {
			fmt.Fprintf(&w.text, " %s=%d", v.Name, v.Value)
		}
		w.text.WriteString(" }")
	case *btf.Typedef:
		w.refer(t.Type)
	case *btf.Func:
		w.refer(t.Type)
	case *btf.Var:
		w.refer(t.Type)
	case *btf.FuncProto:
		w.text.WriteString("(")
		for _, p := range t.Params {
			w.refer(p.Type)
			w.text.WriteString(",")
		}
		w.text.WriteString(")")
		w.refer(t.Return)
	case *btf.Pointer:
		w.text.WriteString("*")
		w.refer(t.Target)
	case *btf.Array:
		fmt.Fprintf(&w.text, "[%d]", t.Nelems)
		w.refer(t.Type)
	case *btf.Int:
		fmt.Fprintf(&w.text, "%s:%d:%v", t.Name, t.Size, t.Encoding)
	case *btf.Float:
		fmt.Fprintf(&w.text, "%s:%d", t.Name, t.Size)
	case *btf.Const: // qualifiers change no layout
		w.refer(t.Type)
	case *btf.Volatile:
		w.refer(t.Type)
	case *btf.Restrict:
		w.refer(t.Type)
	case *btf.TypeTag:
		w.refer(t.Type)
	default: // void
		w.text.WriteString(t.TypeName() + "void")
	}
}

func (w *writer) members(kind string, size uint32, members []btf.Member) {
	fmt.Fprintf(&w.text, "%s %d {", kind, size)
	for _, m := range members {
		fmt.Fprintf(&w.text, " %s@%d:%d:", m.Name, m.Offset, m.BitfieldSize)
		w.refer(m.Type)
	}
	w.text.WriteString(" }")
}
