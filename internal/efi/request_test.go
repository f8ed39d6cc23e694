package efi

import (
	"bytes"
	"crypto/x509"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
)

// mokutil runs the real one over a folder in place of efivarfs (libefivar's EFIVARFS_PATH).
func mokutil(t *testing.T, root kernel.Root, args ...string) string {
	t.Helper()
	cmd := exec.Command("mokutil", args...)
	cmd.Env = append(os.Environ(), "LIBEFIVAR_OPS=efivarfs", "EFIVARFS_PATH="+filepath.Join(string(root), varsDir)+"/")
	if os.Getuid() != 0 { // it asks to be root, of whatever
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("mokutil %q: %v: %s", args, err, out)
	}
	return string(out)
}

// files are the variables below a root, by the names of their files.
func files(t *testing.T, root kernel.Root) map[string][]byte {
	t.Helper()
	dir := filepath.Join(string(root), varsDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{}
	for _, e := range entries {
		if all[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func hashFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "hash")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestRequestEqualsMokutil: after the same request on two copies of a firmware all variables are the same, byte for byte.
func TestRequestEqualsMokutil(t *testing.T) {
	ours, other := certificate(t, "ours"), certificate(t, "another")
	own, err := HashPassword("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	lists := func(certs ...*x509.Certificate) (data []byte) {
		for _, c := range certs {
			data = append(data, FormatLists([]Entry{entry(c)})...)
		}
		return data
	}
	for _, c := range []struct {
		name      string
		variables map[string][]byte
		hash      string
		nothing   error
	}{
		{"first request", nil, own.String(), nil},
		{"salt of openssl", nil, "$6$ab$xHwOjuwSZpLVfO9NlVI4GoCtrZf0ZnZpDKr6yOPHIZAo52kHWpjlwo4nsbhmP1sNyIZdXHUVnyWk7LHlEnG1z.", nil},
		{"rounds", nil, "$6$rounds=1000$saltsalt$" + strings.Repeat("./0Zz", 17) + "/", nil},
		{"another one is asked for", map[string][]byte{shimFile("MokNew"): lists(other), shimFile("MokAuth"): make([]byte, 172)}, own.String(), nil},
		{"another one is enrolled", map[string][]byte{shimFile("MokListRT"): lists(other)}, own.String(), nil},
		{"asked for", map[string][]byte{shimFile("MokNew"): lists(other, ours)}, own.String(), ErrPending},
		{"enrolled by the firmware", map[string][]byte{dbFile: lists(other, ours)}, own.String(), ErrEnrolled},
		{"enrolled by shim", map[string][]byte{shimFile("MokListRT"): lists(ours)}, own.String(), ErrEnrolled},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.variables == nil {
				c.variables = map[string][]byte{}
			}
			c.variables[secureBootFile] = []byte{1}
			mine, theirs := firmware(t, c.variables), firmware(t, c.variables)
			der := filepath.Join(t.TempDir(), "cert.der")
			if err := os.WriteFile(der, ours.Raw, 0o644); err != nil {
				t.Fatal(err)
			}
			mokutil(t, theirs, "--import", der, "--hash-file", hashFile(t, c.hash+"\n"))

			hash, err := ParseCrypt(c.hash)
			if err != nil {
				t.Fatal(err)
			}
			request, err := NewRequest(mine, ours, hash)
			if !errors.Is(err, c.nothing) {
				t.Fatalf("%v, want %v", err, c.nothing)
			}
			if err == nil {
				if err := request.Write(mine); err != nil {
					t.Fatal(err)
				}
			}
			got, want := files(t, mine), files(t, theirs)
			for name := range want {
				if !bytes.Equal(got[name], want[name]) {
					t.Errorf("%s:\n%x\nmokutil:\n%x", name, got[name], want[name])
				}
			}
			if len(got) != len(want) {
				t.Errorf("%d variables, mokutil leaves %d", len(got), len(want))
			}
			if c.nothing == nil && !ReadState(mine).EnrolmentOf(ours).Pending {
				t.Error("what was written is not pending")
			}
		})
	}
}

// TestPassword: hashes are those of crypt(3), which openssl has too, for passwords and salts of many lengths.
func TestPassword(t *testing.T) {
	for _, n := range []int{1, 2, 15, 16, 63, 64, 65, 128, 256} {
		password, salt := strings.Repeat("pa ss~W0rd", 26)[:n], "./09AZaz"[:min(n, 8)]
		got, err := hashPassword(password, salt)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("openssl", "passwd", "-6", "-salt", salt, "-stdin")
		cmd.Stdin = strings.NewReader(password + "\n")
		want, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, want)
		}
		if got.String() != strings.TrimSpace(string(want)) {
			t.Errorf("password of %d characters: %s, openssl %s", n, got, want)
		}
	}
	for _, password := range []string{"", strings.Repeat("x", 257), "schlüssel", "tab\t"} {
		if _, err := HashPassword(password); !errors.Is(err, ErrPassword) {
			t.Errorf("%q: %v", password, err)
		}
	}
	one, _ := HashPassword("same")
	two, _ := HashPassword("same")
	if one.String() == two.String() {
		t.Error("two hashes with the same salt")
	}
}

// TestRequestWithoutPassword: where MokAuth cannot be written, MokNew is what it was.
func TestRequestWithoutPassword(t *testing.T) {
	ours, other := certificate(t, "ours"), certificate(t, "another")
	hash, err := HashPassword("secret")
	if err != nil {
		t.Fatal(err)
	}
	for name, before := range map[string]map[string][]byte{
		"nothing before":     {secureBootFile: {1}},
		"one request before": {secureBootFile: {1}, shimFile("MokNew"): FormatLists([]Entry{entry(other)})},
	} {
		root := firmware(t, before)
		request, err := NewRequest(root, ours, hash)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(string(root), varsDir, shimFile("MokAuth")), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := request.Write(root); !errors.Is(err, unix.EISDIR) {
			t.Errorf("%s: %v", name, err)
		}
		got, err := Read(root, "MokNew", Shim)
		if want := before[shimFile("MokNew")]; !bytes.Equal(got.Data, want) || (err != nil) != (want == nil) {
			t.Errorf("%s: MokNew is %x, %v", name, got.Data, err)
		}
	}
}

// FuzzCrypt: a text is a hash whose bytes and salt have their places, or an error.
func FuzzCrypt(f *testing.F) {
	f.Add("$6$rounds=1000$saltsalt$" + strings.Repeat("./0Zz", 17) + "/")
	f.Add("$6$$")
	f.Add("$5$salt$hash")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseCrypt(text)
		if err == nil && (len(c.auth()) != 172 || !slices.Contains(strings.Split(text, "$"), c.salt)) {
			t.Errorf("%q: %+v", text, c)
		}
	})
}
