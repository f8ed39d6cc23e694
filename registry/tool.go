package registry

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Tool returns what PutTool kept for the program at path, as long as the file it
// leads to is the same: path, size, mtime and inode. A wrapper such as ccache
// stays the same file when the compiler behind it changes.
func (r *Registry) Tool(path string) (identity string, ok bool, err error) {
	file, info, inode, err := toolFile(path)
	if err != nil {
		return "", false, fmt.Errorf("look at tool %s: %w", path, err)
	}
	found, err := collect(r.db, scanText,
		`SELECT identity FROM tool WHERE path = ? AND resolved = ? AND size = ? AND mtime = ? AND inode = ?`,
		path, file, info.Size(), info.ModTime().UnixNano(), inode)
	if err != nil {
		return "", false, fmt.Errorf("read tool %s: %w", path, err)
	}
	if len(found) == 0 {
		return "", false, nil
	}
	return found[0], true, nil
}

// PutTool keeps what the program at path said of itself, such as the first line
// of `gcc --version`.
func (r *Registry) PutTool(path, identity string) error {
	file, info, inode, err := toolFile(path)
	if err != nil {
		return fmt.Errorf("look at tool %s: %w", path, err)
	}
	err = r.write(func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT OR REPLACE INTO tool VALUES (?, ?, ?, ?, ?, ?)`,
			path, file, info.Size(), info.ModTime().UnixNano(), inode, identity)
		return err
	})
	if err != nil {
		return fmt.Errorf("record tool %s: %w", path, err)
	}
	return nil
}

func toolFile(path string) (file string, info os.FileInfo, inode int64, err error) {
	if file, err = filepath.EvalSymlinks(path); err != nil {
		return "", nil, 0, err
	}
	if info, err = os.Stat(file); err != nil {
		return "", nil, 0, err
	}
	return file, info, int64(info.Sys().(*syscall.Stat_t).Ino), nil
}
