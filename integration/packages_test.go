package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// What the packages are made of is there, and their scripts can be read by a
// shell. `make test-packages` installs them.
func TestPackageSources(t *testing.T) {
	text, err := os.ReadFile("../packaging/nfpm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Contents []struct {
			Src string `yaml:"src"`
			Dst string `yaml:"dst"`
		} `yaml:"contents"`
		Scripts map[string]string `yaml:"scripts"`
	}
	if err := yaml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	if len(config.Contents) < 10 || len(config.Scripts) != 3 {
		t.Fatalf("%d files and %d scripts", len(config.Contents), len(config.Scripts))
	}
	for _, c := range config.Contents {
		if c.Src == "" || strings.HasPrefix(c.Src, "dist/") { // made by make dist
			continue
		}
		if found, err := filepath.Glob(filepath.Join("..", c.Src)); err != nil || len(found) == 0 {
			t.Errorf("%s for %s is not there (%v)", c.Src, c.Dst, err)
		}
	}
	for when, script := range config.Scripts {
		if out, err := exec.Command("sh", "-n", filepath.Join("..", script)).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", when, err, out)
		}
	}
	if out, err := exec.Command("sh", "-n", "../packaging/image/build.sh").CombinedOutput(); err != nil {
		t.Errorf("build.sh: %v: %s", err, out)
	}
}
