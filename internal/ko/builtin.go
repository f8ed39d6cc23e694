package ko

import "bytes"

// Builtin is what a part of the kernel image says of itself in the content of modules.builtin.modinfo, which kbuild
// writes since Linux 5.2 (commit 898490c010b5): NUL-separated module.key=value. An Info of it has .modinfo's facts
// alone. nil: the file says nothing of that module, which may be built in all the same.
func Builtin(modinfo []byte, module string) *Info {
	prefix := []byte(NormalizeName(module) + ".")
	var own []byte
	for field := range bytes.SplitSeq(modinfo, []byte{0}) {
		if rest, ok := bytes.CutPrefix(field, prefix); ok {
			own = append(append(own, rest...), 0)
		}
	}
	if own == nil {
		return nil
	}
	info := &Info{}
	info.readModinfo(own)
	info.Name = NormalizeName(module)
	return info
}
