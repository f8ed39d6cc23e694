package kabi

import (
	"testing"

	"github.com/cilium/ebpf/btf"
)

// A change is found wherever a function leads to it, and nowhere else.
func TestReaches(t *testing.T) {
	kernel := func(size uint32, count string) types {
		inner := &btf.Struct{Name: "inner", Size: size, Members: []btf.Member{{Name: count, Type: &btf.Int{Name: "int", Size: 4}}}}
		outer := &btf.Struct{Name: "outer", Size: 16}
		outer.Members = []btf.Member{
			{Name: "self", Type: &btf.Pointer{Target: outer}}, // a circle
			{Name: "anonymous", Offset: 64, Type: &btf.Union{Size: 8, Members: []btf.Member{{Name: "in", Type: &btf.Pointer{Target: &btf.Const{Type: inner}}}}}},
		}
		proto := func(t btf.Type) *btf.FuncProto {
			return &btf.FuncProto{Return: &btf.Void{}, Params: []btf.FuncParam{{Name: "arg", Type: &btf.Pointer{Target: t}}}}
		}
		all := []btf.Type{
			inner, outer,
			&btf.Func{Name: "takes_outer", Type: proto(&btf.Typedef{Name: "outer_t", Type: outer})},
			&btf.Func{Name: "takes_callback", Type: proto(proto(outer))},
			&btf.Func{Name: "takes_int", Type: proto(&btf.Int{Name: "int", Size: 4})},
			&btf.Func{Name: "takes_declared", Type: proto(&btf.Fwd{Name: "inner"})}, // elsewhere it is defined
		}
		b, err := btf.NewBuilder(all, nil)
		if err != nil {
			t.Fatal(err)
		}
		spec, err := b.Spec()
		if err != nil {
			t.Fatal(err)
		}
		out, err := readTypes(spec)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	old := kernel(4, "n")
	if changed := old.changed(kernel(4, "n")); len(changed) != 0 {
		t.Errorf("of equal kernels differ: %v", changed)
	}
	for what, other := range map[string]types{"a size": kernel(8, "n"), "a member": kernel(4, "m")} {
		changed := old.changed(other)
		if len(changed) != 1 || !changed["struct inner"] {
			t.Errorf("%s: %v", what, changed)
		}
		for from, want := range map[string]string{
			"func takes_outer": "struct inner", "func takes_callback": "struct inner", "func takes_int": "", "func takes_declared": "struct inner", "func unknown": "",
		} {
			if got := old.reaches(from, changed); got != want {
				t.Errorf("%s: %s leads to %q, want %q", what, from, got, want)
			}
		}
	}
}
