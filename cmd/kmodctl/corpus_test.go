package main

import (
	"os"
	"path/filepath"
	"testing"

	"kmodctl/build"
)

// TestCorpusManifests: the manifests of make bench-dkms, which runs seldom, are ones that this kmodctl reads.
func TestCorpusManifests(t *testing.T) {
	files, err := filepath.Glob("testdata/corpus/*/" + build.ManifestFile)
	if err != nil || len(files) == 0 {
		t.Fatalf("manifests of the corpus: %v, %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := build.ParseManifest(file, text); err != nil {
			t.Error(err)
		}
	}
}
