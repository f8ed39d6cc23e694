package registry

import (
	"context"
	"errors"
	"io"

	"kmodctl/internal/kernel"
)

const schemaVersion = "1"

var errTODO = errors.ErrUnsupported

type Registry struct{}
type WriterOptions struct {
	Command string              // our own words for the lock file: "kmodctl build"
	Version string              // of kmodctl, kept in the meta table
	Waiting func(holder string) // called once when another writer holds the lock
}

func Open(ctx context.Context, dir string) (*Registry, error) { return nil, errTODO }
func OpenWriter(ctx context.Context, dir string, root kernel.Root, o WriterOptions) (*Registry, error) {
	return nil, errTODO
}
func (r *Registry) Recovered() []string                                   { return nil }
func (r *Registry) Unfinished() (what []string, holder string, err error) { return nil, "", errTODO }
func (r *Registry) Close() error                                          { return nil }
func (r *Registry) AddSource(ctx context.Context, dir, name, version, manifest string) (src Source, changed bool, err error) {
	return Source{}, false, errTODO
}
func Digest(dir string) (digest string, files []File, err error) { return "", nil, errTODO }
func (r *Registry) Sources() ([]Source, error)                   { return nil, errTODO }
func (r *Registry) Source(name, version string) (Source, error)  { return Source{}, errTODO }
func (r *Registry) RemoveSource(name, version string) error      { return errTODO }
func (r *Registry) Extract(src Source, dir string) error         { return errTODO }
func (r *Registry) NewWork(label string) (string, func(), error) { return "", nil, errTODO }
func (r *Registry) PutArtifact(ctx context.Context, a Artifact, files map[string]string) (Artifact, error) {
	return a, errTODO
}
func (r *Registry) Artifact(pkg, version, release string) (Artifact, bool, error) {
	return Artifact{}, false, errTODO
}
func (r *Registry) ArtifactByInput(hash string) (Artifact, bool, error) {
	return Artifact{}, false, errTODO
}
func (r *Registry) Artifacts() ([]Artifact, error)          { return nil, errTODO }
func (r *Registry) BeginAttempt(a Attempt) (Attempt, error) { return a, errTODO }
func (r *Registry) FinishAttempt(a Attempt) error           { return errTODO }
func (r *Registry) Attempts(pkg, release string, n int) ([]Attempt, error) {
	return nil, errTODO
}
func (r *Registry) Blob(digest string) (io.ReadCloser, error) { return nil, errTODO }
func (r *Registry) BlobPath(digest string) string             { return "" }
func (r *Registry) PutBlob(ctx context.Context, src io.Reader) (digest string, size int64, err error) {
	return "", 0, errTODO
}
func (r *Registry) Installs() ([]Install, error) { return nil, errTODO }
func (r *Registry) Install(ctx context.Context, release string, as []Artifact) (Result, error) {
	return Result{}, errTODO
}
func (r *Registry) Uninstall(ctx context.Context, release string, pkgs []string) (Result, error) {
	return Result{}, errTODO
}
func (r *Registry) Verify(root kernel.Root) ([]Drift, error)               { return nil, errTODO }
func (r *Registry) Tool(path string) (identity string, ok bool, err error) { return "", false, errTODO }
func (r *Registry) PutTool(path, identity string) error                    { return errTODO }
