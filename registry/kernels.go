package registry

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
)

// Kernel is what the registry knows of a release that it has artifacts for.
type Kernel struct {
	Release string
	Stamp   string    // of its modules folder when something was last installed there, "" before
	Gone    time.Time // since when a writer has found it gone; zero while it is here
}

// Kernels returns the releases that there have ever been artifacts for.
func (r *Registry) Kernels() ([]Kernel, error) {
	ks, err := readKernels(r.db)
	if err != nil {
		return nil, fmt.Errorf("read kernels: %w", err)
	}
	return ks, nil
}

func readKernels(q queryer) ([]Kernel, error) {
	return collect(q, func(rows *sql.Rows, k *Kernel) error {
		var gone int64
		err := rows.Scan(&k.Release, &k.Stamp, &gone)
		if gone != 0 {
			k.Gone = time.Unix(0, gone).UTC()
		}
		return err
	}, `SELECT release, stamp, gone FROM kernel ORDER BY release`)
}

// kernelFiles are what a kernel's package or its own build leaves in its modules
// folder; depmod's index and our folder are not among them.
var kernelFiles = []string{"modules.builtin", "modules.order", "kernel", "build", "vmlinuz"}

// kernelHere reports whether a kernel is on this machine: it runs, or its modules
// folder has something of it, or its headers are here. /lib/modules/R with nothing
// in it but what we and depmod made is what a removed package leaves.
func kernelHere(root kernel.Root, release string) bool {
	if running, err := kernel.Running(); root.IsHost() && err == nil && running == release {
		return true
	}
	places := []string{"/usr/src/linux-headers-" + release, "/usr/src/kernels/" + release}
	for _, name := range kernelFiles {
		places = append(places, path.Join(modulesPath(release), name))
	}
	return slices.ContainsFunc(places, func(name string) bool {
		_, err := root.Path(name)
		return !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) // what cannot be looked at may be there
	})
}

// kernelStamp tells one package of a release from the next: size and mtime of what
// kbuild wrote at the end. Package managers restore mtimes, so that a package
// installed again has the same stamp.
func kernelStamp(tree *os.Root) (stamp string) {
	for _, name := range kernelFiles[:2] {
		if info, err := tree.Stat(name); err == nil {
			stamp += fmt.Sprintf("%s %d %d\n", name, info.Size(), info.ModTime().UnixNano())
		}
	}
	return stamp
}

func putKernel(tx *sql.Tx, release, stamp string) error {
	_, err := tx.Exec(`INSERT INTO kernel VALUES (?1, ?2, 0) ON CONFLICT (release)
		DO UPDATE SET stamp = CASE ?2 WHEN '' THEN stamp ELSE ?2 END`, release, stamp)
	return err
}

// noteKernels writes down since when a kernel is gone: GC's grace begins there.
func (r *Registry) noteKernels() error {
	ks, err := r.Kernels()
	if err != nil {
		return err
	}
	here := func(k Kernel) bool { return kernelHere(r.root, k.Release) }
	ks = slices.DeleteFunc(ks, func(k Kernel) bool { return here(k) == k.Gone.IsZero() })
	if len(ks) == 0 {
		return nil
	}
	return r.write(func(tx *sql.Tx) error {
		// A clock that is far back, as before the network is up, must not end the grace early.
		latest := time.Now().UnixNano()
		if err := tx.QueryRow(`SELECT max(?1, coalesce(max(started), 0)) FROM attempt`, latest).Scan(&latest); err != nil {
			return err
		}
		for _, k := range ks {
			gone := int64(0)
			if k.Gone.IsZero() {
				gone = latest
			}
			if _, err := tx.Exec(`UPDATE kernel SET gone = ? WHERE release = ?`, gone, k.Release); err != nil {
				return err
			}
		}
		return nil
	})
}
