package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"kmodctl/internal/keys"
)

// keyWords are what key does, in the order of a key's life.
var keyWords = []struct {
	word string
	do   func(*keyCommand) error
}{
	{"new", (*keyCommand).create},
	{"import", (*keyCommand).importPair},
	{"list", (*keyCommand).list},
	{"show", (*keyCommand).show},
	{"rotate", (*keyCommand).rotate},
	{"enroll", (*keyCommand).enroll},
}

func cmdKey(e *env) *cli.Command {
	var words []string
	for _, w := range keyWords {
		words = append(words, w.word)
	}
	return &cli.Command{
		Name:      "key",
		Usage:     "make, list, show, change and take over the keys that sign modules",
		ArgsUsage: strings.Join(words, "|") + " [ARGUMENT ...]",
		Description: examples("Keys are in /etc/kmodctl/keys, which only root can enter. One of them signs, the active one.\n\n"+
			"   new                make the first key; where one signs, nothing is done\n"+
			"   import             list the keys of DKMS, Ubuntu's shim and akmods that are on this machine\n"+
			"   import KEY CERT    take over a private key (PEM, or PKCS#8 in DER) and its certificate\n"+
			"   list               list the keys\n"+
			"   show [NAME]        print what is known of a key, the active one by default, and which kernels take it\n"+
			"   rotate             make the next key; the active one signs until the next one is trusted\n"+
			"   rotate --now       the next key signs from now on, and is made if there is none\n"+
			"   enroll [NAME|FILE] have the firmware ask at the next boot to trust a key, or the certificate in FILE (a name with a /):\n"+
			"                      the next key by default, else the active one. It prints what the blue screen will ask\n\n"+
			"A private key may have a passphrase: it is read from the terminal, or from the file that\n"+
			"$KMODCTL_SIGN_PASSPHRASE_FILE names, which may be /dev/fd/N.",
			"kmodctl key new", "kmodctl key import /var/lib/dkms/mok.key /var/lib/dkms/mok.pub", "kmodctl key show --der > mok.der", "kmodctl key rotate", "kmodctl key enroll",
			"kmodctl key enroll --generate-password"),
		Flags: append([]cli.Flag{
			&cli.IntFlag{Name: "bits", Value: 2048, Usage: "new, rotate: the length of the key, 2048 or 4096; default: 2048, which all firmware takes"},
			&cli.BoolFlag{Name: "passphrase", Usage: "new, rotate: give the key a passphrase; modules are signed only where somebody, or a file, tells it"},
			&cli.BoolFlag{Name: "now", Usage: "import, rotate: the key signs from now on, trusted or not"},
			&cli.BoolFlag{Name: "pem", Usage: "show: print the certificate, in PEM"},
			&cli.BoolFlag{Name: "der", Usage: "show: print the certificate, in DER, as mokutil --import takes it"},
		}, enrollFlags()...),
		BashComplete: func(*cli.Context) { fmt.Fprintln(e.out, strings.Join(words, "\n")) },
		Action: func(c *cli.Context) error {
			if c.NArg() == 0 {
				return usagef("key takes a word: kmodctl key %s", strings.Join(words, "|"))
			}
			i := slices.Index(words, c.Args().First())
			if i < 0 {
				return usagef("key: no word %q (%s)%s", c.Args().First(), strings.Join(words, ", "), nearestOf(c.Args().First(), words))
			}
			conf, err := e.signConfig(c.Context)
			if err != nil {
				return err
			}
			k := &keyCommand{env: e, c: c, ctx: c.Context, word: words[i], args: c.Args().Tail(), conf: conf, store: conf.store(e)}
			return keyWords[i].do(k)
		},
	}
}

// keyCommand is one run of key.
type keyCommand struct {
	*env
	c     *cli.Context
	ctx   context.Context
	word  string
	args  []string
	conf  signConfig
	store keys.Store
}

// takes refuses arguments that the word does not take.
func (k *keyCommand) takes(counts ...int) error {
	if slices.Contains(counts, len(k.args)) {
		return nil
	}
	return usagef("key %s does not take %s: kmodctl key --help", k.word, count(len(k.args), "argument"))
}

func (k *keyCommand) list() error {
	if err := k.takes(0); err != nil {
		return err
	}
	all, err := k.store.List()
	if err != nil && len(all) == 0 {
		return err
	}
	if k.json {
		return errors.Join(k.answer(false, all...), err)
	}
	t := k.table("NAME", "STATE", "ALGORITHM", "SHA256", "CREATED", "SUBJECT")
	for _, key := range all {
		created := ""
		if !key.Created.IsZero() {
			created = key.Created.Format(time.DateOnly)
		}
		t.row(key.Name, key.State, key.Algorithm(), key.Fingerprint()[:16], created, key.Cert.Subject.CommonName)
	}
	if len(all) > 0 {
		return errors.Join(t.flush(), err)
	}
	k.say("no keys: kmodctl key new")
	return nil
}
