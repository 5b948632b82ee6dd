package migrate

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/policy"
)

var update = flag.Bool("update", false, "rewrite the expected policies in testdata")

// Each folder of testdata holds what Debian 12's iptables 1.8.9, ipset 7.17 and
// ufw 0.36.2 printed, and the policy that is made of it.
func TestImport(t *testing.T) {
	folders, err := filepath.Glob("testdata/*")
	if err != nil || len(folders) == 0 {
		t.Fatalf("no folders: %v", err)
	}
	for _, folder := range folders {
		t.Run(filepath.Base(folder), func(t *testing.T) {
			var files []File
			names, err := filepath.Glob(filepath.Join(folder, "*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range names {
				if filepath.Ext(name) == ".yaml" {
					continue
				}
				text, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				files = append(files, File{Name: filepath.Base(name), Text: string(text)})
			}
			got, err := Import(files)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := policy.Parse("policy.yaml", got.Policy); err != nil {
				t.Errorf("the policy does not pass check: %v", err)
			}
			golden := filepath.Join(folder, "policy.yaml")
			if *update {
				if err := os.WriteFile(golden, got.Policy, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got.Policy)); diff != "" {
				t.Errorf("policy (-want +got), -update accepts it:\n%s", diff)
			}
			for _, n := range got.Notes {
				if !strings.Contains(string(got.Policy), n.Why) {
					t.Errorf("%+v is not in the policy", n)
				}
			}
		})
	}
}
