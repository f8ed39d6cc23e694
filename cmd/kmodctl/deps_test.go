package main

import (
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// rules are the walls of the house: what a room may not import, and why.
var rules = []struct{ room, not, why string }{
	{"kmodctl/build", "kmodctl/registry", "the rooms are sequenced by cmd/kmodctl/job.go alone"},
	{"kmodctl/build", "kmodctl/loader", "the rooms are sequenced by cmd/kmodctl/job.go alone"},
	{"kmodctl/registry", "kmodctl/build", "the rooms are sequenced by cmd/kmodctl/job.go alone"},
	{"kmodctl/registry", "kmodctl/loader", "the rooms are sequenced by cmd/kmodctl/job.go alone"},
	{"kmodctl/loader", "kmodctl/build", "the rooms are sequenced by cmd/kmodctl/job.go alone"},
	{"kmodctl/loader", "kmodctl/registry", "load takes a lookup function instead"},
	{"kmodctl/internal/kernel", "kmodctl/internal/ko", "ko is above kernel"},
	{"kmodctl/internal/kernel", "github.com/", "kernel is std and x/sys only"},
	{"kmodctl/internal/vm", "kmodctl/internal/ko", "a virtual machine knows nothing of modules"},
	{"kmodctl/internal/vm", "kmodctl/internal/kernel", "a virtual machine is given an image"},
	{"kmodctl/build", "kmodctl/internal/kabi", "whether a build is needed is decided before it"},
	{"kmodctl/registry", "kmodctl/internal/kabi", "the registry keeps what it is given"},
	{"kmodctl/internal/vmlinux", "kmodctl/", "an image is bytes"},
	{"kmodctl/internal/modsig", "kmodctl/", "a signature is bytes"},
	{"kmodctl/internal/keys", "kmodctl/internal/ko", "a key signs bytes"},
	{"kmodctl/build", "kmodctl/internal/keys", "the builder never sees a key"},
	{"kmodctl/registry", "kmodctl/internal/keys", "the registry keeps what was signed"},
	{"kmodctl/loader", "kmodctl/internal/keys", "the kernel judges signatures"},
	{"kmodctl/internal/seccomp", "kmodctl/", "a filter is numbers"},
	{"kmodctl/loader", "kmodctl/internal/efi", "the loader is given certificates, wherever they are from"},
	{"kmodctl/build", "kmodctl/internal/headers", "a build is given a kernel, wherever its headers are"},
	{"kmodctl/registry", "kmodctl/internal/headers", "the registry keeps a folder, whoever fills it"},
	{"kmodctl/internal/ko", "modernc.org/sqlite", "facts are read from files"},
	{"kmodctl/registry", "github.com/urfave/cli/v2", "only cmd speaks to people"},
	{"kmodctl/loader", "github.com/urfave/cli/v2", "only cmd speaks to people"},
	{"kmodctl/build", "github.com/urfave/cli/v2", "only cmd speaks to people"},
}

func TestWalls(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "kmodctl/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	imports := map[string][]string{}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := d.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		imports[p.ImportPath] = p.Imports
		for _, i := range p.Imports {
			if i == "kmodctl/cmd/kmodctl" {
				t.Errorf("%s imports %s", p.ImportPath, i)
			}
		}
	}
	for _, r := range rules {
		if _, ok := imports[r.room]; !ok {
			t.Errorf("the room %s is gone: mend the rule", r.room)
		}
		if i := slices.IndexFunc(imports[r.room], func(i string) bool { return strings.HasPrefix(i, r.not) }); i >= 0 {
			t.Errorf("%s imports %s: %s", r.room, imports[r.room][i], r.why)
		}
	}
}
