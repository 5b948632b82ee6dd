package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// packageConfig is what of packaging/nfpm.yaml the tests look at.
type packageConfig struct {
	Contents []struct {
		Src string `yaml:"src"`
		Dst string `yaml:"dst"`
	} `yaml:"contents"`
	Scripts map[string]string `yaml:"scripts"`
}

func readPackageConfig(t *testing.T) packageConfig {
	t.Helper()
	text, err := os.ReadFile("../packaging/nfpm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var config packageConfig
	if err := yaml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	return config
}

// What the packages are made of is there, and their scripts can be read by a
// shell. `make test-packages` installs them.
func TestPackageSources(t *testing.T) {
	config := readPackageConfig(t)
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

// link finds what documents lead to, in Markdown and for editors of YAML.
var link = regexp.MustCompile(`\]\(([^)#]+)[^)]*\)|\$schema=(\S+)`)

// What the shipped documents lead to is shipped, too.
func TestPackageLinks(t *testing.T) {
	shipped := map[string]string{} // where a file will be, and where it is
	for _, c := range readPackageConfig(t).Contents {
		found, err := filepath.Glob(filepath.Join("..", c.Src))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			to := c.Dst
			if strings.HasSuffix(to, "/") {
				to = filepath.Join(to, filepath.Base(path))
			}
			for at := to; at != "/"; at = filepath.Dir(at) {
				shipped[at] = "" // a folder
			}
			shipped[to] = path
		}
	}
	links := 0
	for to, path := range shipped {
		if !slices.Contains([]string{".md", ".yaml"}, filepath.Ext(path)) {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			target := m[1] + m[2]
			if strings.Contains(target, "://") {
				continue
			}
			links++
			if !filepath.IsAbs(target) {
				target = filepath.Join(filepath.Dir(to), target)
			}
			if _, ok := shipped[filepath.Clean(target)]; !ok {
				t.Errorf("%s leads to %s, which is not shipped", to, target)
			}
		}
	}
	if links < 40 {
		t.Errorf("only %d links in what is shipped", links)
	}
}
