package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/urfave/cli/v2"

	"kmodctl/internal/kernel"
	"kmodctl/internal/keys"
	"kmodctl/internal/ko"
)

func cmdSign(e *env) *cli.Command {
	return &cli.Command{
		Name:      "sign",
		Usage:     "put a signature at the end of module files, or sign what is installed",
		ArgsUsage: "FILE.ko ...|NAME|NAME@VERSION ...",
		Description: examples("As the kernel's scripts/sign-file, byte for byte with keys of RSA: in place, or to another file with -o. A signature that\n"+
			"is there is replaced. A compressed file is unpacked, signed, and compressed again. The key is the machine's\n"+
			"active one (kmodctl key), or the one of --key and --cert.\n\n"+
			"Of packages, what is installed is signed with the machine's key, whatever the configuration says of them. Nothing is built.",
			"kmodctl sign ./hello.ko", "kmodctl sign hello", "kmodctl sign --all -k 6.1.0-56-amd64", "kmodctl sign hello.ko --key mok.key --cert mok.der --hash sha512 -o signed.ko"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "key", Usage: "sign with the private key in `FILE`: PEM, with a passphrase or without, or PKCS#8 in DER"},
			&cli.StringFlag{Name: "cert", Usage: "its certificate, `FILE` in PEM or DER"},
			&cli.StringFlag{Name: "hash", Usage: "sign over `HASH`: sha256, sha384, sha512, ...; default: sign.hash of the configuration, else sha256"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE` and leave the input as it is"},
			&cli.BoolFlag{Name: "all", Usage: "all packages that are installed"},
			kernelFlag("of packages: only for kernel `RELEASE` (repeatable)"),
		},
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			files := slices.ContainsFunc(c.Args().Slice(), isModuleFile)
			ofFiles := c.IsSet("key") || c.IsSet("cert") || c.IsSet("hash") || c.IsSet("output")
			switch {
			case c.NArg() == 0 && !c.Bool("all"):
				return usagef("sign takes files or packages: kmodctl sign FILE.ko, kmodctl sign NAME")
			case !files && ofFiles:
				return usagef("sign: --key, --cert, --hash and -o are for files: kmodctl sign ./FILE.ko")
			case !files:
				return e.signInstalled(c.Context, signingCommand{"sign", c.Args().Slice(), c.Bool("all"), c.StringSlice("kernel"), false})
			case c.Bool("all") || c.IsSet("kernel") || !allFiles(c.Args().Slice()):
				return usagef("sign takes files or packages, not both")
			case c.String("output") != "" && c.NArg() > 1:
				return usagef("sign: -o takes one file, not %d", c.NArg())
			case (c.String("key") == "") != (c.String("cert") == ""):
				return usagef("sign: --key and --cert go together")
			}
			s, err := e.fileSigner(c)
			if err != nil {
				return err
			}
			return s.all(c.Context, c.Args().Slice(), c.String("output"))
		},
	}
}

func allFiles(args []string) bool {
	return !slices.ContainsFunc(args, func(arg string) bool { return !isModuleFile(arg) })
}

// fileSigner signs files that are named on the command line.
type fileSigner struct {
	*env
	key    keys.Key
	signer keys.Signer
	hash   string
	doc    signDocument
}

// signDocument is the document of sign.
type signDocument struct {
	DryRun bool         `json:"dry_run,omitempty"`
	Key    string       `json:"key"`
	SHA256 string       `json:"sha256"` // of the certificate
	Hash   string       `json:"hash"`
	Files  []signedFile `json:"files"`
}

// signedFile is what became of a file.
type signedFile struct {
	File        string `json:"file"`
	Output      string `json:"output"`
	Compression string `json:"compression,omitempty"`
	Changed     bool   `json:"changed"` // false: it was signed so before
	Note        string `json:"note,omitempty"`
	Error       string `json:"error,omitempty"`
}

// fileSigner opens the key that the command names, or the machine's.
func (e *env) fileSigner(c *cli.Context) (*fileSigner, error) {
	s := &fileSigner{env: e, hash: c.String("hash")}
	conf, err := e.signConfig(c.Context)
	if err != nil {
		return nil, err
	}
	store := conf.store(e)
	if file := c.String("key"); file != "" { // of this machine, wherever the root is
		key, keyErr := filepath.Abs(file)
		cert, certErr := filepath.Abs(c.String("cert"))
		if err := errors.Join(keyErr, certErr); err != nil {
			return nil, err
		}
		store = keys.Open("/").With(keys.Config{Key: key, Cert: cert, Lax: true})
	}
	if s.hash == "" {
		s.hash = conf.Hash
	}
	if fault := (signConfig{Hash: s.hash}).fault(); fault != "" {
		return nil, usagef("sign: %v", &keys.HashError{Name: s.hash})
	}
	if s.key, err = store.Active(); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	s.signer, err = store.Signer(s.key, e.passphrase(s.key.Name))
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	s.doc = signDocument{DryRun: e.dryRun, Key: s.key.Name, SHA256: s.key.Fingerprint(), Hash: s.hash, Files: []signedFile{}}
	return s, nil
}

// all signs each file, and goes on when one fails.
func (s *fileSigner) all(ctx context.Context, files []string, output string) error {
	var errs []error
	for _, file := range files {
		out := output
		if out == "" {
			out = file
		}
		done, err := s.sign(ctx, file, out)
		if err != nil {
			err = fmt.Errorf("sign %s: %w", file, err)
			done.Error = err.Error()
			errs = append(errs, err)
			if len(files) > 1 {
				s.report(err)
			}
		}
		s.doc.Files = append(s.doc.Files, done)
		if ctx.Err() != nil {
			break
		}
	}
	if s.json && (len(errs) == 0 || len(files) > 1) {
		if err := s.document("sign", s.doc); err != nil {
			return err
		}
	}
	switch {
	case len(errs) == 0:
		return nil
	case len(files) == 1:
		return errs[0]
	}
	return partly{failed: len(errs), of: len(files), err: errs[len(errs)-1]}
}

func (s *fileSigner) sign(ctx context.Context, file, out string) (signedFile, error) {
	done := signedFile{File: file, Output: out}
	data, mode, err := readModule(file)
	if err != nil {
		return done, err
	}
	elf, compression, err := ko.Decompress(data)
	if err != nil {
		return done, err
	}
	done.Compression = compression
	info, err := ko.Read(elf)
	if err != nil {
		return done, err // a signature on something else helps nobody
	}
	signed, err := s.signer.Sign(ctx, elf, s.hash)
	if err != nil {
		return done, err
	}
	if signed, err = ko.Compress(signed, compression); err != nil {
		return done, err
	}
	done.Note = s.refusal(info.Release())
	if done.Note != "" {
		s.say("note: %s: %s", file, done.Note)
	}
	done.Changed = out != file || !bytes.Equal(signed, data)
	what := fmt.Sprintf("with %s (%s) over %s", s.key.Cert.Subject.CommonName, s.key.Name, s.hash)
	if compression != "" {
		what += ", compressed with " + compression + " again"
	}
	switch {
	case !done.Changed:
		s.say("nothing to do: %s is signed %s", file, what)
		return done, nil
	case s.dryRun:
		s.would("sign %s %s", out, what)
		return done, nil
	}
	if err := replaceFile(out, signed, mode); err != nil {
		return done, err
	}
	s.changed("signed %s %s", out, what)
	return done, nil
}

// refusal says why the kernel that a module is for would not verify the signature, as far as that kernel is here.
func (s *fileSigner) refusal(release string) string {
	k, err := kernel.Get(s.root, release)
	if err != nil {
		return ""
	}
	if why, err := s.key.Refusal(k, s.hash); err == nil && why != "" {
		return release + " will not take it: " + why
	}
	return ""
}

// readModule reads a regular file, and says which mode it has.
func readModule(file string) ([]byte, os.FileMode, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, errors.New("not a regular file")
	}
	data, err := io.ReadAll(f)
	return data, info.Mode().Perm(), err
}

// replaceFile puts content into a file, whole or not at all: what a link leads to, not the link.
func replaceFile(file string, content []byte, mode os.FileMode) error {
	if target, err := filepath.EvalSymlinks(file); err == nil {
		file = target
	}
	temp, err := os.CreateTemp(filepath.Dir(file), ".kmodctl-sign-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name()) // once it has its name, there is none of this one
	_, err = temp.Write(content)
	if info, statErr := os.Stat(file); err == nil && statErr == nil && os.Getuid() == 0 {
		owner := info.Sys().(*syscall.Stat_t)
		err = temp.Chown(int(owner.Uid), int(owner.Gid))
	}
	if err = errors.Join(err, temp.Chmod(mode), temp.Sync(), temp.Close()); err != nil {
		return err
	}
	return os.Rename(temp.Name(), file)
}
