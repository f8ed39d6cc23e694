package loader_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kmodctl/loader"
)

// Modules that no index has are users too, and by way of each other; one that the index has is the index's.
func TestUserTreeOfUninstalled(t *testing.T) {
	index := loader.OpenIndex("/", "/lib/modules/"+installed(t)[0])
	tree := index.UserTree([]string{"llc"}, map[string]loader.Uninstalled{
		"mine":      {Path: "/x/mine.ko", Depends: []string{"stp"}},
		"upon_mine": {Path: "/x/upon-mine.ko", Depends: []string{"mine", "mrp"}},
		"circle":    {Path: "/x/circle.ko", Depends: []string{"circle2"}},
		"circle2":   {Path: "/x/circle2.ko", Depends: []string{"circle"}},
		"stp":       {Path: "/x/stp.ko"},
	})
	find := func(name string) (m loader.TreeModule) {
		if i := slices.IndexFunc(tree.Modules, func(m loader.TreeModule) bool { return m.Module == name }); i >= 0 {
			m = tree.Modules[i]
		}
		return m
	}
	for _, want := range []loader.TreeModule{
		{Module: "mine", Path: "/x/mine.ko", Needs: []string{"stp"}},
		{Module: "upon_mine", Path: "/x/upon-mine.ko", Needs: []string{"mine"}},
		{}, // circle needs no llc
	} {
		name := want.Module
		if name == "" {
			name = "circle"
		}
		if diff := cmp.Diff(want, find(name)); diff != "" {
			t.Error(diff)
		}
	}
	if stp := find("stp"); stp.Path == "/x/stp.ko" || !slices.Equal(stp.Needs, []string{"llc"}) {
		t.Errorf("stp: %+v", stp)
	}
}
