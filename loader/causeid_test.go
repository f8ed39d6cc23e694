package loader

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Programs read the causes, so docs/loader.md must list each and no other.
func TestCausesAreDocumented(t *testing.T) {
	words := func(file, pattern string) (all []string) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
			all = append(all, m[1])
		}
		slices.Sort(all)
		return all
	}
	code, docs := words("causeid.go", `CauseID = "(.*?)"`), words("../docs/loader.md", "(?m)^\\| `([a-z-]+)` \\| [^|]*\\| (?:yes|no)[^|]* \\| ")
	if len(code) < 30 {
		t.Fatalf("%d causes in the code", len(code))
	}
	if diff := cmp.Diff(code, docs); diff != "" {
		t.Errorf("in causeid.go (-) and docs/loader.md (+):\n%s", diff)
	}
}
