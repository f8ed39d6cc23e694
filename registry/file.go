package registry

import (
	"database/sql"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// fileState tells one content of a file from the next, as far as stat(2) can: ctime
// changes with the content whatever mtime is set to. A wrapper such as ccache stays
// the same file when the compiler behind it changes.
type fileState struct{ dev, inode, size, mtime, ctime int64 }

func stateOf(path string) (s fileState, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return s, fmt.Errorf("look at %s: %w", path, err)
	}
	return fileState{int64(st.Dev), int64(st.Ino), st.Size, st.Mtim.Nano(), st.Ctim.Nano()}, nil
}

// fileFact is a question about a file.
type fileFact struct{ path, what string }

type fileAnswer struct {
	fileState
	answer string
}

// FileFact returns what ask says of the file at path (links are followed) or, while that
// file is the same, what it said before: of a compiler its version, of a kernel's
// Module.symvers its digest. what names the question. A writer keeps the answer; a reader, who cannot, asks
// each time that no writer has.
func (r *Registry) FileFact(path, what string, ask func(path string) (string, error)) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.readFacts(); err != nil {
		return "", fmt.Errorf("read what is known of %s: %w", path, err)
	}
	now, err := stateOf(path)
	if err != nil {
		return "", err
	}
	key := fileFact{path, what}
	if known := r.facts[key]; known.fileState == now {
		return known.answer, nil
	}
	answer, err := ask(path)
	if err != nil {
		return "", err
	}
	// Times of files have a grain of up to 2 s: what was changed just now may change again unseen.
	const grain = 2 * time.Second
	after, err := stateOf(path)
	if r.lock == nil || err != nil || after != now || time.Since(time.Unix(0, max(now.mtime, now.ctime))) < grain {
		return answer, nil
	}
	r.keepFact(key, fileAnswer{now, answer})
	return answer, nil
}

// ConfFact returns what ask says of a source's dkms.conf for a kernel release or, while given, a digest of all that
// this depends on, is the same, what it said before. It is kept among the facts of files, as one of no file.
func (r *Registry) ConfFact(src Source, release, given string, ask func() (string, error)) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.readFacts(); err != nil {
		return "", fmt.Errorf("read what is known of %s@%s: %w", src.Name, src.Version, err)
	}
	key := fileFact{what: "conf " + src.Name + "@" + src.Version + " " + release} // by which a removal finds it
	given += "\n"
	if answer, same := strings.CutPrefix(r.facts[key].answer, given); same {
		return answer, nil
	}
	answer, err := ask()
	if err == nil && r.lock != nil {
		r.keepFact(key, fileAnswer{answer: given + answer})
	}
	return answer, err
}

// keepFact keeps an answer, if it can: else it is asked again, for no full disk stands between a user and an answer.
func (r *Registry) keepFact(key fileFact, a fileAnswer) {
	err := r.write(func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT OR REPLACE INTO file VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
			key.path, key.what, a.dev, a.inode, a.size, a.mtime, a.ctime, a.answer)
		return err
	})
	if err == nil {
		r.facts[key] = a
	}
}

// readFacts reads, once, all that is known of files: there are a few for each kernel.
func (r *Registry) readFacts() error {
	if r.facts != nil {
		return nil
	}
	type row struct {
		fileFact
		fileAnswer
	}
	rows, err := collect(r.db, func(rows *sql.Rows, f *row) error {
		return rows.Scan(&f.path, &f.what, &f.dev, &f.inode, &f.size, &f.mtime, &f.ctime, &f.answer)
	}, `SELECT path, what, dev, inode, size, mtime, ctime, answer FROM file`)
	if err != nil {
		return err
	}
	r.facts = map[fileFact]fileAnswer{}
	for _, f := range rows {
		r.facts[f.fileFact] = f.fileAnswer
	}
	return nil
}
