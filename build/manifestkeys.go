package build

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"

	toml "github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
	"github.com/xrash/smetrics"
)

// ManifestError is a manifest that cannot be read, with the place of the fault.
type ManifestError struct {
	File   string
	Line   int    // from 1
	Column int    // from 1, in bytes
	Key    string // "build.patches[1].file"; "" when the fault is not at a key
	Reason string
	Near   string // the known key that an unknown one resembles; "" when there is none
}

func (e *ManifestError) Error() string {
	s := fmt.Sprintf("read %s:%d:%d: %s", e.File, e.Line, e.Column, e.Reason)
	if e.Near != "" {
		s += fmt.Sprintf(" (nearest: %q)", e.Near)
	}
	return s
}

// manifestKeys is where each key of a manifest stands: "module[1].name" to the
// offset of its value. The decoder of go-toml gives positions only of values that
// it refuses itself, takes keys in any case and a [module] for a [[module]]; so
// its parser is walked once with the Go type as the schema.
type manifestKeys struct {
	file string
	data []byte
	at   map[string]int
	rows map[string]int // lists of tables: how many [[x]] so far
}

// table is a place in the document: the Go type of what it may hold.
type table struct {
	typ  reflect.Type
	path string
}

var manifestType = reflect.TypeFor[Manifest]()

// readKeys finds every key, and the first one that does not exist or whose value
// has the wrong type. Where the document is no TOML it stops: decoding says so.
func readKeys(file string, data []byte) (*manifestKeys, *ManifestError) {
	k := &manifestKeys{file: file, data: data, at: map[string]int{}, rows: map[string]int{}}
	root := table{typ: manifestType}
	now := root
	var p unstable.Parser
	p.Reset(data)
	for p.NextExpression() {
		n := p.Expression()
		var bad *ManifestError
		switch n.Kind {
		case unstable.Table, unstable.ArrayTable:
			now, bad = k.header(root, n)
		case unstable.KeyValue:
			bad = k.keyValue(now, n)
		}
		if bad != nil {
			return nil, bad
		}
	}
	return k, nil
}

// header follows [a.b] or [[a.b]].
func (k *manifestKeys) header(root table, n *unstable.Node) (table, *ManifestError) {
	t, key, bad := k.descend(root, n.Key())
	if bad != nil {
		return t, bad
	}
	list := t.typ.Kind() == reflect.Slice && t.typ.Elem().Kind() == reflect.Struct
	switch {
	case n.Kind == unstable.ArrayTable && list:
		t = table{t.typ.Elem(), fmt.Sprintf("%s[%d]", t.path, k.rows[t.path])}
		k.rows[t.path[:strings.LastIndexByte(t.path, '[')]]++
		k.at[t.path] = int(key.Raw.Offset)
		return t, nil
	case n.Kind == unstable.Table && t.typ.Kind() == reflect.Struct:
		return t, nil
	}
	return t, k.wrongType(t, key)
}

// descend follows a dotted key from t, and returns its last word's node too.
func (k *manifestKeys) descend(t table, it unstable.Iterator) (table, *unstable.Node, *ManifestError) {
	var key *unstable.Node
	for it.Next() {
		key = it.Node()
		if t.typ.Kind() == reflect.Slice && t.typ.Elem().Kind() == reflect.Struct {
			t = table{t.typ.Elem(), fmt.Sprintf("%s[%d]", t.path, max(k.rows[t.path]-1, 0))}
		}
		name := string(key.Data)
		field, ok := fieldOf(t.typ, name)
		if !ok {
			bad := k.fault(int(key.Raw.Offset), join(t.path, name), fmt.Sprintf("unknown key %q", name))
			bad.Near = nearestKey(t, name)
			return t, key, bad
		}
		t = table{field, join(t.path, name)}
		k.at[t.path] = int(key.Raw.Offset)
	}
	return t, key, nil
}

func (k *manifestKeys) keyValue(t table, n *unstable.Node) *ManifestError {
	t, key, bad := k.descend(t, n.Key())
	if bad != nil {
		return bad
	}
	return k.value(t, n.Value(), key)
}

// value compares a value with the type that it must have; key is where to point
// when the value has no place of its own, which the parser gives no list or table.
func (k *manifestKeys) value(t table, n, key *unstable.Node) *ManifestError {
	if n.Raw.Length > 0 {
		key = n
	}
	k.at[t.path] = int(key.Raw.Offset)
	switch {
	case t.typ.Kind() == reflect.String && n.Kind == unstable.String,
		t.typ.Kind() == reflect.Bool && n.Kind == unstable.Bool:
		return nil
	case t.typ.Kind() == reflect.Slice && n.Kind == unstable.Array:
		it := n.Children()
		for i := 0; it.Next(); {
			if it.Node().Kind == unstable.Comment {
				continue
			}
			if bad := k.value(table{t.typ.Elem(), fmt.Sprintf("%s[%d]", t.path, i)}, it.Node(), key); bad != nil {
				return bad
			}
			i++
		}
		return nil
	case t.typ.Kind() == reflect.Struct && n.Kind == unstable.InlineTable:
		it := n.Children()
		for it.Next() {
			if it.Node().Kind != unstable.KeyValue {
				continue
			}
			if bad := k.keyValue(t, it.Node()); bad != nil {
				return bad
			}
		}
		return nil
	}
	return k.wrongType(t, key)
}

func (k *manifestKeys) wrongType(t table, n *unstable.Node) *ManifestError {
	return k.fault(int(n.Raw.Offset), t.path, fmt.Sprintf("%s must be %s", t.path, typeWords(t)))
}

func (k *manifestKeys) fault(offset int, key, reason string) *ManifestError {
	before := k.data[:min(offset, len(k.data))]
	return &ManifestError{
		File: k.file, Key: key, Reason: reason,
		Line:   bytes.Count(before, []byte("\n")) + 1,
		Column: len(before) - bytes.LastIndexByte(before, '\n'),
	}
}

// bad is a fault of a key's value; where the key is absent, of what should hold it.
func (k *manifestKeys) bad(key, reason string) *ManifestError {
	place := key
	for place != "" {
		if _, ok := k.at[place]; ok {
			break
		}
		place = place[:max(strings.LastIndexAny(place, ".["), 0)]
	}
	return k.fault(k.at[place], key, key+" "+reason)
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func fieldOf(t reflect.Type, name string) (reflect.Type, bool) {
	if t.Kind() != reflect.Struct {
		return nil, false
	}
	for f := range t.Fields() {
		if f.Tag.Get("toml") == name && name != "-" {
			return f.Type, true
		}
	}
	return nil, false
}

// nearestKey is the known key that name resembles: one of the same table, or a
// key of that very name in another one.
func nearestKey(t table, name string) string {
	near, best := "", len(name)/2+1
	if t.typ.Kind() == reflect.Struct {
		for f := range t.typ.Fields() {
			known := f.Tag.Get("toml")
			if d := smetrics.WagnerFischer(strings.ToLower(name), known, 1, 1, 1); d < best {
				near, best = known, d
			}
		}
	}
	if near != "" {
		return near
	}
	for f := range manifestType.Fields() {
		in := f.Type
		if in.Kind() == reflect.Slice {
			in = in.Elem()
		}
		if _, ok := fieldOf(in, name); ok {
			return join(f.Tag.Get("toml"), name)
		}
	}
	return ""
}

func typeWords(t table) string {
	switch t.typ {
	case reflect.TypeFor[string]():
		return "a string"
	case reflect.TypeFor[bool]():
		return "true or false"
	case reflect.TypeFor[[]string]():
		return "a list of strings"
	case reflect.TypeFor[[][]string]():
		return "a list of lists of strings"
	case reflect.TypeFor[[]Module]():
		return "a list of tables, each under [[module]]"
	case reflect.TypeFor[[]Patch]():
		return `a list of tables, [{ file = "..." }]`
	case reflect.TypeFor[Patch]():
		return `a table, { file = "..." }`
	}
	return "a table, [" + t.path + "]"
}

// syntaxError is what go-toml says about a document that is no TOML.
func syntaxError(file string, err error) *ManifestError {
	bad := &ManifestError{File: file, Line: 1, Column: 1, Reason: strings.TrimPrefix(err.Error(), "toml: ")}
	var at *toml.DecodeError
	if errors.As(err, &at) {
		bad.Line, bad.Column = at.Position()
		bad.Key = strings.Join(at.Key(), ".")
	}
	return bad
}
