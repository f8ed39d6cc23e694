package ko

import (
	"bytes"
	"slices"
	"strings"
)

// thisModule is the section of struct module. Every module has it and no other
// object does: modpost writes it into the .mod.c file.
const thisModule = ".gnu.linkonce.this_module"

// readModinfo takes in the NUL-separated key=value strings of .modinfo.
func (i *Info) readModinfo(data []byte) {
	for s := range strings.SplitSeq(string(data), "\x00") {
		if s == "" {
			continue // padding
		}
		key, value, _ := strings.Cut(s, "=")
		i.Fields = append(i.Fields, Field{key, value})
	}
	i.Name = NormalizeName(i.Field("name"))
	i.Vermagic = i.Field("vermagic")
	i.Version = i.Field("version")
	i.SrcVersion = i.Field("srcversion")
	i.License = i.Field("license")
	if depends := i.Field("depends"); depends != "" {
		i.Depends = strings.Split(depends, ",")
	}
	i.Params = params(i.Fields)
}

// params joins the parm (NAME:DESCRIPTION) and parmtype (NAME:TYPE) fields. A
// repeated one replaces the former, and one without a colon names no parameter.
func params(fields []Field) []Param {
	var list []Param
	index := map[string]int{}
	for _, f := range fields {
		name, text, ok := strings.Cut(f.Value, ":")
		if !ok || f.Key != "parm" && f.Key != "parmtype" {
			continue
		}
		n, seen := index[name]
		if !seen {
			n = len(list)
			index[name] = n
			list = append(list, Param{Name: name})
		}
		if f.Key == "parm" {
			list[n].Description = text
		} else {
			list[n].Type = text
		}
	}
	// The compiler emits them last to first.
	slices.Reverse(list)
	return list
}

// undescribed takes in a parameter of which .modinfo may say nothing: module_param_cb writes no type, and not every author a
// description.
func (i *Info) undescribed(name string) {
	if !slices.ContainsFunc(i.Params, func(p Param) bool { return NormalizeName(p.Name) == name }) {
		i.Params = append(i.Params, Param{Name: name})
	}
}

// structName reads the name out of struct module, which begins with
//
//	enum module_state state; struct list_head list; char name[MODULE_NAME_LEN];
//
// with MODULE_NAME_LEN = 64 - sizeof(unsigned long) (include/linux/module.h).
func structName(o *object) string {
	word := layouts[o.class].word
	data := o.section(thisModule)
	from, to := 3*word, 3*word+64-word
	if len(data) < to {
		return ""
	}
	name, _, _ := bytes.Cut(data[from:to], []byte{0})
	return string(name)
}
