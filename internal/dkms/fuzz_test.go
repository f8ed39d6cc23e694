package dkms

import (
	"context"
	"errors"
	"testing"
	"time"
)

// FuzzConf: whatever a conf holds, it is read or refused with its place, and does not end the process. Programs
// are not started: the fuzzer would soon know how to.
func FuzzConf(f *testing.F) {
	for _, text := range append(snippets, beyond...) {
		f.Add(head + text)
	}
	f.Add("PACKAGE_NAME=\"a\nMAKE[0]='b\\\"c'")
	f.Fuzz(func(t *testing.T, text string) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		m := newMessage(Source{Text: []byte(text)}, ConfFile, target, Framework{})
		m.Reads = nil
		s := newShell(m)
		s.commands.Store(maxCommands) // no program
		r, err := s.evaluate(ctx)
		if err == nil {
			_, err = newConf(ConfFile, r, target)
		}
		if bad := (*Error)(nil); err != nil && (!errors.As(err, &bad) || bad.File == "" || bad.Reason == "") {
			t.Errorf("%v", err)
		}
	})
}
