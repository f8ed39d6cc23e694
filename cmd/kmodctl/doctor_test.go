package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kmodctl/internal/efi"
)

// TestDoctor makes a machine that is well ill in each way, and well again.
func TestDoctor(t *testing.T) {
	rels := releases(t)
	root := newRoot(t, rels...)
	at := func(name string) string { return filepath.Join(root, name) }
	file := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(at(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	installed := func(names ...string) (text string) {
		for _, n := range names {
			text += "Package: " + n + "\nStatus: install ok installed\nVersion: 1\n\n"
		}
		return text
	}
	dpkg := installed("linux-image-"+rels[0], "linux-image-amd64", "linux-headers-amd64")
	file("var/lib/dpkg/status", dpkg)
	dir, _ := examplePaths(t)
	hello := filepath.Join(dir, "hello")
	text, err := os.ReadFile(filepath.Join(hello, "kmod.toml"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, hello, "kmod.toml", "initramfs = true\n"+string(text))
	file("usr/sbin/update-initramfs", "")
	says(t, must(t, "--root", root, "build", hello).stderr, "the initramfs of "+rels[0]+" is to be remade")
	must(t, "--root", root, "hooks", "install")
	if r := must(t, "--root", root, "hook", "initramfs", rels[0]); r.out != "hello\n" || r.stderr != "" {
		t.Errorf("in the initramfs of %s: %q, %s", rels[0], r.out, r.stderr)
	}

	// found is what a check says, "" when all is ok.
	found := func(check string) (what string) {
		t.Helper()
		r := kmodctl(t, "--root", root, "--json", "doctor")
		checkDocumented(t, r.out)
		var doc struct{ Checks []finding }
		if err := json.Unmarshal([]byte(r.out), &doc); err != nil {
			t.Fatalf("%v: %s%s", err, r.out, r.stderr)
		}
		fails := false
		for _, f := range doc.Checks {
			fails = fails || f.State == findingFail
			if f.Check == check && f.State != findingOK {
				what += f.State + ": " + f.What + ": " + f.Try + "\n"
			}
		}
		if fails != (r.code == exitFailed) || !fails && r.code != 0 {
			t.Errorf("exit %d for\n%s", r.code, r.out)
		}
		return what
	}
	if r := kmodctl(t, "--root", root, "doctor"); r.code != 0 {
		t.Fatalf("a machine that is well: exit %d\n%s%s", r.code, r.out, r.stderr)
	}
	old := time.Now().Add(-time.Hour)
	for _, c := range []struct {
		check string
		words []string
		hurt  func()
		heal  func()
	}{
		{"hooks", []string{"fail: /etc/kernel/postinst.d/dkms is off", "kmodctl hooks install"},
			func() { os.Chmod(at("etc/kernel/postinst.d/dkms"), 0o644) },
			func() { must(t, "--root", root, "hooks", "install") }},
		{"hooks", []string{"dkms_autoinstaller is DKMS's"},
			func() { file("usr/lib/dkms/dkms_autoinstaller", "#!/bin/sh\n") },
			func() { os.Remove(at("usr/lib/dkms/dkms_autoinstaller")) }},
		{"headers", []string{"linux-image-6.12-amd64 brings newer kernels", "apt install linux-headers-6.12-amd64"},
			func() { file("var/lib/dpkg/status", dpkg+installed("linux-image-6.12-amd64")) },
			func() { file("var/lib/dpkg/status", dpkg) }},
		{"headers", []string{"fail: " + rels[1], "apt install linux-headers-" + rels[1]},
			func() { os.Rename(at("usr/src/linux-headers-"+rels[1]), at("away")) },
			func() { os.Rename(at("away"), at("usr/src/linux-headers-"+rels[1])) }},
		{"builds", []string{"fail: hello 1.0.0 for " + rels[1], "kmodctl log hello -k " + rels[1]},
			func() {
				source := filepath.Join(hello, "hello.c")
				c, _ := os.ReadFile(source)
				os.WriteFile(source, append(c, "garbage;\n"...), 0o644)
				kmodctl(t, "--root", root, "build", hello)
				os.WriteFile(source, c, 0o644)
			},
			func() { must(t, "--root", root, "build", hello) }},
		{"secure-boot", []string{"fail: Secure Boot is on: 2 kernels here take signed modules only, and this machine has no signing key", "key new", "key enroll"},
			func() { setVariables(t, root, secureBootOn) },
			func() { setVariables(t, root, efi.Variable{Name: "SecureBoot", Owner: efi.Global, Data: []byte{0}}) }},
		{"initramfs", []string{"the initramfs of " + rels[0] + " is older than /lib/modules/" + rels[0], "/usr/sbin/update-initramfs -u -k " + rels[0]},
			func() {
				file("boot/initrd.img-"+rels[0], "")
				os.Chtimes(at("boot/initrd.img-"+rels[0]), old, old)
			},
			func() { os.Chtimes(at("boot/initrd.img-"+rels[0]), time.Now(), time.Now()) }},
		{"machine", []string{"this is a container"},
			func() { file("run/.containerenv", "") },
			func() { os.Remove(at("run/.containerenv")) }},
	} {
		c.hurt()
		what := found(c.check)
		says(t, what, c.words...)
		c.heal()
		if what := found(c.check); what != "" {
			t.Errorf("%s is well again, and says:\n%s", c.check, strings.TrimSpace(what))
		}
	}

	// A disk on which no second kernel has room.
	f, err := os.Create(at("boot/initrd.img-" + rels[1]))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(1 << 42); err != nil { // a hole
		t.Fatal(err)
	}
	f.Close()
	says(t, found("space"), "fail: /boot has", "and needs")
}
