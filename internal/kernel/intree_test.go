package kernel

import (
	"os"
	"path/filepath"
	"testing"
)

func TestOwnModule(t *testing.T) {
	root := t.TempDir()
	for _, file := range []string{"kernel/arch/x86/notes.txt", "kernel/fs/ext4/ext4.ko.xz", "updates/mine.ko"} {
		name := filepath.Join(root, "lib/modules/9.9.9", file)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	k := Release{Name: "9.9.9", Root: Root(root), Modules: "/lib/modules/9.9.9"}
	if got, err := k.OwnModule(); err != nil || got != "/lib/modules/9.9.9/kernel/fs/ext4/ext4.ko.xz" {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.RemoveAll(filepath.Join(root, "lib/modules/9.9.9/kernel")); err != nil {
		t.Fatal(err)
	}
	if got, err := k.OwnModule(); err != nil || got != "" {
		t.Errorf("without: %q, %v", got, err)
	}
	if got, err := (Release{}).OwnModule(); err != nil || got != "" {
		t.Errorf("no modules folder: %q, %v", got, err)
	}
}
