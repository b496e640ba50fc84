package packaging

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gpuvirt/config"
)

// The manual of the daemon tells of the option of every setting, and what holds without it.
func TestManualPage(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("man", "gpuvirtd.8"))
	if err != nil {
		t.Fatal(err)
	}
	page := strings.ReplaceAll(string(data), `\-`, "-")
	for _, s := range config.Settings() {
		if s.Flag == "" {
			_, name, _ := strings.Cut(s.Key, "p2v.policy.")
			if !strings.Contains(page, "\n"+name+" "+s.Values(config.Default())[0]+"\n") {
				t.Errorf("gpuvirtd.8 does not tell of %s and its default", s.Key)
			}
			continue
		}
		_, text, found := strings.Cut(page, ".BI --"+s.Flag+` " `+s.Arg+"\"\n")
		if !found {
			t.Errorf("gpuvirtd.8 does not tell of --%s %s", s.Flag, s.Arg)
			continue
		}
		text, _, _ = strings.Cut(text, "\n.TP\n")
		if said := s.Values(config.Default()); len(said) == 1 && said[0] != "" && !strings.Contains(text, said[0]) {
			t.Errorf("gpuvirtd.8 does not tell that the default of --%s is %s:\n%s", s.Flag, said[0], text)
		}
	}
}
