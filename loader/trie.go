package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A trie is an index in depmod's binary form, modules.*.bin: keys of 7-bit text,
// each with values. Numbers are big endian.
//
//	file:  magic u32, version u32, root u32 (an offset)
//	node:  [prefix "text\0"] [first u8, last u8, child u32 x (last-first+1)] [count u32, {priority u32, "value\0"} x count]
//
// The parts that a node has are in the upper bits of the offset that leads to it
// (kmod, libkmod/libkmod-index.c). A look-up reads the few blocks that it passes.
type trie struct {
	file   io.ReaderAt
	size   int64
	root   uint32
	blocks map[int64][]byte // what was read, by its offset
	nodes  int              // how many nodes and values were visited
}

const (
	trieMagic   = 0xB007F457
	trieVersion = 0x0002_0001

	nodePrefix = 0x8000_0000
	nodeValues = 0x4000_0000
	nodeChilds = 0x2000_0000
	nodeOffset = 0x0FFF_FFFF

	trieBlock = 4096
	trieDepth = 4096    // bytes of the longest key
	trieNodes = 1 << 22 // Debian's largest index has 140,000
)

// errTrie tells a file that is not what depmod wrote.
var errTrie = errors.New("damaged")

func openTrie(file io.ReaderAt, size int64) (*trie, error) {
	t := &trie{file: file, size: size, blocks: make(map[int64][]byte)}
	var head [12]byte
	if _, err := file.ReadAt(head[:], 0); err != nil {
		return nil, fmt.Errorf("%w: no head", errTrie)
	}
	if magic := binary.BigEndian.Uint32(head[:]); magic != trieMagic {
		return nil, fmt.Errorf("%w: begins with %#x", errTrie, magic)
	}
	if version := binary.BigEndian.Uint32(head[4:]); version != trieVersion {
		return nil, fmt.Errorf("version %#x instead of %#x", version, trieVersion)
	}
	t.root = binary.BigEndian.Uint32(head[8:])
	return t, nil
}

// entry is a key of an index and one of its values.
type entry struct{ key, value string }

// get returns the values of a key, in the order of their priority.
func (t *trie) get(key string) (values []string, ok bool, err error) {
	n, err := t.node(t.root)
	for err == nil {
		if len(key) < len(n.prefix) || key[:len(n.prefix)] != n.prefix {
			return nil, false, nil
		}
		if key = key[len(n.prefix):]; key == "" {
			values, err = n.values(t)
			return values, n.flags&nodeValues != 0, err
		}
		child := n.child(key[0])
		if child&nodeOffset == 0 {
			return nil, false, nil
		}
		key = key[1:]
		n, err = t.node(child)
	}
	return nil, false, err
}

// match returns the entries whose key is a pattern that fits name.
func (t *trie) match(name string) ([]entry, error) {
	m := trieMatch{t: t, name: name}
	err := m.walk(t.root, name)
	return m.found, err
}

// all returns every entry, sorted by key.
func (t *trie) all() entries {
	return func(yield func(entry, error) bool) {
		m := trieMatch{t: t, every: true, yield: yield}
		if err := m.below(t.root, 0); err != nil && err != errStop {
			yield(entry{}, err)
		}
	}
}

var errStop = errors.New("enough")

// trieMatch is a search under way.
type trieMatch struct {
	t     *trie
	name  string
	key   []byte // of the node that is looked at
	found []entry

	every bool // every key fits
	yield func(entry, error) bool
}

// walk follows rest, the part of the name that is not matched yet, as long as
// the key is plain text. From a wildcard on, all keys below are tried.
func (m *trieMatch) walk(at uint32, rest string) error {
	kept := len(m.key)
	defer func() { m.key = m.key[:kept] }()
	for {
		n, err := m.t.node(at)
		if err != nil {
			return err
		}
		for i := 0; i < len(n.prefix); i++ {
			if isWild(n.prefix[i]) {
				return m.keys(n, n.prefix[i:])
			}
			if rest == "" || rest[0] != n.prefix[i] {
				return nil
			}
			m.key, rest = append(m.key, rest[0]), rest[1:]
		}
		for _, wild := range []byte{'*', '?', '['} {
			if child := n.child(wild); child&nodeOffset != 0 {
				m.key = append(m.key, wild)
				if err := m.below(child, len(m.key)); err != nil {
					return err
				}
				m.key = m.key[:len(m.key)-1]
			}
		}
		if rest == "" {
			return m.add(n)
		}
		child := n.child(rest[0])
		if child&nodeOffset == 0 || len(m.key) > trieDepth {
			return nil
		}
		m.key, rest = append(m.key, rest[0]), rest[1:]
		at = child
	}
}

func isWild(c byte) bool { return c == '*' || c == '?' || c == '[' || c == '\\' }

// below tries every key at and under a node.
func (m *trieMatch) below(at uint32, depth int) error {
	if depth > trieDepth {
		return fmt.Errorf("%w: a key of more than %d bytes", errTrie, trieDepth)
	}
	n, err := m.t.node(at)
	if err != nil {
		return err
	}
	return m.keys(n, n.prefix)
}

// keys is below for a node that is read, of whose prefix a part remains.
func (m *trieMatch) keys(n trieNode, prefix string) error {
	kept := len(m.key)
	defer func() { m.key = m.key[:kept] }()
	m.key = append(m.key, prefix...)
	if m.every || globMatch(string(m.key), m.name) {
		if err := m.add(n); err != nil {
			return err
		}
	}
	for i := 0; i < len(n.childs)/4; i++ {
		child := binary.BigEndian.Uint32(n.childs[4*i:])
		if child&nodeOffset == 0 {
			continue
		}
		m.key = append(m.key, n.first+byte(i))
		if err := m.below(child, len(m.key)); err != nil {
			return err
		}
		m.key = m.key[:len(m.key)-1]
	}
	return nil
}

func (m *trieMatch) add(n trieNode) error {
	values, err := n.values(m.t)
	for _, v := range values {
		e := entry{string(m.key), v}
		if m.every && !m.yield(e, nil) {
			return errStop
		}
		if !m.every {
			m.found = append(m.found, e)
		}
	}
	return err
}

// trieNode is a node without its values, which few look-ups want.
type trieNode struct {
	flags    uint32
	prefix   string
	first    byte   // the byte that leads to the first child
	childs   []byte // offsets, 0 where there is no child
	valuesAt int64
}

func (t *trie) node(at uint32) (n trieNode, err error) {
	if t.nodes++; t.nodes > trieNodes {
		return n, fmt.Errorf("%w: it leads in circles", errTrie)
	}
	n.flags = at &^ nodeOffset
	offset := int64(at & nodeOffset)
	if n.flags&nodePrefix != 0 {
		if n.prefix, err = t.text(offset); err != nil {
			return n, err
		}
		offset += int64(len(n.prefix)) + 1
	}
	if n.flags&nodeChilds != 0 {
		span, err := t.bytes(offset, 2)
		if err != nil {
			return n, err
		}
		first, last := span[0], span[1]
		if last < first {
			return n, fmt.Errorf("%w: children from %d to %d", errTrie, first, last)
		}
		n.first = first
		if n.childs, err = t.bytes(offset+2, 4*(int64(last)-int64(first)+1)); err != nil {
			return n, err
		}
		offset += 2 + int64(len(n.childs))
	}
	n.valuesAt = offset
	return n, nil
}

// child is the offset of the child that c leads to, 0 if there is none.
func (n trieNode) child(c byte) uint32 {
	i := int(c) - int(n.first)
	if i < 0 || 4*i >= len(n.childs) {
		return 0
	}
	return binary.BigEndian.Uint32(n.childs[4*i:])
}

func (n trieNode) values(t *trie) (values []string, err error) {
	if n.flags&nodeValues == 0 {
		return nil, nil
	}
	head, err := t.bytes(n.valuesAt, 4)
	if err != nil {
		return nil, err
	}
	offset := n.valuesAt + 4
	for range binary.BigEndian.Uint32(head) {
		if t.nodes++; t.nodes > trieNodes {
			return nil, fmt.Errorf("%w: more than %d values", errTrie, trieNodes)
		}
		value, err := t.text(offset + 4) // behind its priority, by which they are sorted
		if err != nil {
			return nil, err
		}
		values = append(values, value)
		offset += 4 + int64(len(value)) + 1
	}
	return values, nil
}

// text reads a text that ends with a zero byte.
func (t *trie) text(offset int64) (string, error) {
	var text []byte
	for {
		block, err := t.block(offset)
		if err != nil {
			return "", err
		}
		for i, c := range block {
			if c == 0 {
				return string(append(text, block[:i]...)), nil
			}
		}
		text = append(text, block...)
		offset += int64(len(block))
	}
}

func (t *trie) bytes(offset, n int64) ([]byte, error) {
	block, err := t.block(offset)
	if err != nil {
		return nil, err
	}
	if int64(len(block)) >= n {
		return block[:n], nil
	}
	out := append([]byte(nil), block...)
	for int64(len(out)) < n {
		if block, err = t.block(offset + int64(len(out))); err != nil {
			return nil, err
		}
		out = append(out, block[:min(int64(len(block)), n-int64(len(out)))]...)
	}
	return out, nil
}

// block returns what the file has from offset to the end of a block.
func (t *trie) block(offset int64) ([]byte, error) {
	start := offset &^ (trieBlock - 1)
	b, ok := t.blocks[start]
	if !ok {
		b = make([]byte, max(0, min(trieBlock, t.size-start)))
		if n, err := t.file.ReadAt(b, start); n < len(b) {
			return nil, err
		}
		t.blocks[start] = b
	}
	if offset-start >= int64(len(b)) {
		return nil, fmt.Errorf("%w: an offset of %d in %d bytes", errTrie, offset, t.size)
	}
	return b[offset-start:], nil
}
