package loader

import (
	"maps"
	"testing"
)

func TestKeyringIDs(t *testing.T) {
	got := keyringIDs("1ae5a7c8 I------     1 perm 1f0b0000     0     0 keyring   .machine: 1\n" +
		"2a000001 I------     1 perm 1f0b0000     0     0 keyring   .platform: empty\n" +
		"3b000001 I------     1 perm 1f030000     0     0 asymmetri Debian Secure Boot CA: 6ccece7e: X509.rsa bb419ea1 []\n" +
		"zz I------     1 perm 1f0b0000     0     0 keyring   .odd: 1\n\nshort\n")
	want := map[string]int{".machine": 0x1ae5a7c8, ".platform": 0x2a000001}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
