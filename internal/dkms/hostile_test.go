package dkms

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const head = "PACKAGE_NAME=evil\nPACKAGE_VERSION=1\nBUILT_MODULE_NAME=evil\nDEST_MODULE_LOCATION=/updates\n"

// TestHostile: a conf that tries to do something ends with an error that says where and what, and nothing has happened. In the
// files OUT is a folder that everybody may write to, and PORT is listened on.
func TestHostile(t *testing.T) {
	out := t.TempDir()
	for dir := out; dir != os.TempDir(); dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o777))
	}
	must(t, os.WriteFile(filepath.Join(out, "kept"), []byte("kept"), 0o666))
	must(t, os.WriteFile(filepath.Join(out, "grep"), []byte("#!/bin/sh\ntouch "+out+"/path\n"), 0o755))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	called := make(chan struct{}, 1)
	go func() {
		if _, err := listener.Accept(); err == nil {
			called <- struct{}{}
		}
	}()
	_, port, _ := net.SplitHostPort(listener.Addr().String())

	for name, c := range map[string]struct{ text, want string }{
		"a program":                 {`touch OUT/x`, "runs touch"},
		"by its path":               {`/usr/bin/touch OUT/x`, "runs /usr/bin/touch"},
		"one of its own":            {`OUT/grep x`, "runs OUT/grep"},
		"through PATH":              {"PATH=OUT\nMAKE=`grep -c x OUT/kept`", ""},
		"through the loader":        {"export LD_PRELOAD=OUT/kept\nMAKE=`echo x | grep x`", ""},
		"a shell":                   {`sh -c "touch OUT/x"`, "runs sh"},
		"exec":                      {`exec touch OUT/x`, "exec"},
		"command":                   {`command touch OUT/x`, "runs touch"},
		"command -p":                {`command -p touch OUT/x`, "-p"},
		"builtin":                   {`builtin eval touch OUT/x`, "eval"},
		"eval":                      {`eval "touch OUT/x"`, "eval"},
		"trap":                      {`trap "touch OUT/x" EXIT`, "trap"},
		"in a function":             {"f() { touch OUT/x; }\nf", "runs touch"},
		"a function named as grep":  {`grep() { touch OUT/x; }`, "name of a command"},
		"when read the second time": {`MAKE='$(touch OUT/x)'`, "runs touch"},
		"out of its quotes":         {`MAKE='a"; touch OUT/x; b="'`, "second time"},
		"writes":                    {`echo x > OUT/x`, "would write OUT/x"},
		"writes over":               {`: > OUT/kept`, "would write OUT/kept"},
		"appends":                   {`echo x >> OUT/kept`, "would write OUT/kept"},
		"reads and writes":          {`echo x <> OUT/kept`, "<>"},
		"a descriptor for good":     {`exec 3> OUT/x`, "descriptors"},
		"reads what is not its own": {`MAKE="$(</etc/passwd)"`, "would read /etc/passwd"},
		"sources the same":          {`. /etc/passwd`, "would read /etc/passwd"},
		"through ..":                {`. $dkms_tree/../../../etc/passwd`, "would read"},
		"grep reads the same":       {"MAKE=`grep root /etc/passwd`", ""},
		"sed writes":                {`echo x | sed "w OUT/x"`, ""},
		"sed runs":                  {`echo x | sed "s/x/touch OUT\\/x/e"`, ""},
		"sed in place":              {`sed -i s/kept/lost/ OUT/kept`, "writes files"},
		"sed in place, hidden":      {`sed -ni p OUT/kept`, ""},
		"sort writes":               {`echo x | sort -o OUT/x`, "writes files"},
		"sort writes, hidden":       {`echo x | sort -uo OUT/x`, ""},
		"uniq writes":               {`echo x | uniq - OUT/x`, ""},
		"find deletes":              {`find OUT -delete`, "writes files"},
		"find runs":                 {`find /usr/src -exec touch OUT/x ";"`, "starts programs"},
		"the network":               {`echo x > /dev/tcp/127.0.0.1/PORT`, "would write"},
		"in the background":         {`sleep 100 &`, "background"},
		"forks":                     {`f() { f | f; }; f`, ""},
		"forks programs":            {`f() { cat | f; }; f`, ""},
		"for ever":                  {`while :; do :; done`, "endless loop"},
		"for ever, by programs":     {`while :; do echo x | cat; done`, "endless loop"},
		"recursion":                 {`f() { f; }; f`, ""},
		"memory":                    {`x=xxxxxxxx; while :; do x=$x$x; done`, ""},
		"memory of an array":        {`BUILT_MODULE_NAME[1000000]=x`, "indexes"},
		"memory of a program":       {`MAKE=$(cat /dev/zero)`, ""},
		"a list too long":           {`MAKE=$(echo {1..100000000})`, ""},
		"a process substitution":    {`cat <(echo x)`, "<( )"},
		"exits":                     {`exit 0`, "exits"},
		"a path for a name":         {`PACKAGE_NAME=../../etc`, "part of a path"},
		"a module elsewhere":        {`BUILT_MODULE_LOCATION=../../etc`, "outside the source"},
		"a patch elsewhere":         {`PATCH=../../etc/passwd`, "patches"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := strings.NewReplacer("OUT", out, "PORT", port).Replace(head + c.text)
			start := time.Now()
			conf, err := Evaluate(t.Context(), Source{Text: []byte(text)}, target)
			if took := time.Since(start); took > 2*timeLimit+10*time.Second {
				t.Errorf("took %v", took)
			}
			want := strings.NewReplacer("OUT", out).Replace(c.want)
			var bad *Error
			switch {
			case want == "" && err == nil: // it may go on, as long as nothing happened
				if strings.Contains(conf.Make, "root:") {
					t.Errorf("it read: %q", conf.Make)
				}
			case !errors.As(err, &bad):
				t.Errorf("%v, %+v", err, conf)
			case !strings.Contains(bad.Reason, want):
				t.Errorf("%v, not %q", err, want)
			}
		})
	}
	t.Cleanup(func() {
		entries, err := os.ReadDir(out)
		must(t, err)
		kept, err := os.ReadFile(filepath.Join(out, "kept"))
		if len(entries) != 2 || string(kept) != "kept" || err != nil {
			t.Errorf("left behind: %v, %q, %v", entries, kept, err)
		}
		select {
		case <-called:
			t.Error("it reached the network")
		default:
		}
	})
}
