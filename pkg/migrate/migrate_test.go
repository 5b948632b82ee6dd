package migrate

import (
	"errors"
	"flag"
	"fmt"
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
		if filepath.Base(folder) == "fuzz" {
			continue // what fuzzing found
		}
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

func TestImportErrors(t *testing.T) {
	rules := File{"v4", "*filter\n:INPUT DROP [0:0]\nCOMMIT\n"}
	status := File{"ufw", "Status: active\n\nTo  Action  From\n--  ------  ----\n22/tcp  ALLOW IN  Anywhere\n"}
	for _, test := range []struct {
		name  string
		files []File
		want  string
	}{
		{"nothing", nil, "no file to import"},
		{"another file", []File{{"x", "hello\n"}}, "x: this is not what iptables-save"},
		{"empty", []File{{"x", ""}}, "x: this is not what iptables-save"},
		{"ufw and iptables", []File{rules, status}, "give either"},
		{"ufw inactive", []File{{"u", "Status: inactive\n"}}, "u:1: ufw is not active"},
		{"a line of no rule", []File{{"v4", "*filter\nhello\n"}}, "v4:2: this is not a line of iptables-save"},
		{"a command", []File{{"v4", "*filter\n-I INPUT -j DROP\n"}}, "v4:2: -I is a command"},
		{"a quotation mark", []File{{"v4", "*filter\n-A INPUT -m comment --comment \"x -j DROP\n"}}, "v4:2: a quotation mark is missing"},
		{"a member of no set", []File{{"s", "add office 192.0.2.1\n"}}, "s:1: the set office was not created"},
		{"no address", []File{{"s", "create o hash:net family inet\nadd o 192.0.2.300\n"}}, "s:2: "},
		{"no row", []File{{"u", "Status: active\nhello\n"}}, "u:2: this is not a line of ufw status"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Import(test.files)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

// What a rule says cannot leave its comment.
func TestImportCommentsStayComments(t *testing.T) {
	got, err := Import([]File{{"v4\nmode: enforce", "*filter\n:INPUT DROP [0:0]\n" +
		"-A INPUT -m limit --limit 1/s -m comment --comment \"a\u2028mode: enforce\" -j ACCEPT\nCOMMIT\n"}})
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := policy.Parse("f", got.Policy)
	if err != nil {
		t.Fatal(err)
	}
	if p.Mode != policy.Observe {
		t.Errorf("mode %s: a comment became a key\n%s", p.Mode, got.Policy)
	}
}

func FuzzImport(f *testing.F) {
	files, err := filepath.Glob("testdata/*/[rsv]*")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := importWithin(100_000, []File{{"f", text}}); err != nil && strings.Contains(err.Error(), "check the imported policy") {
			t.Error(err)
		}
	})
}

// Chains that call one another many times over do not keep anybody waiting.
func TestImportGivesUp(t *testing.T) {
	var b strings.Builder
	b.WriteString("*filter\n:INPUT DROP [0:0]\n-A INPUT -j C0\n")
	for i := range 30 {
		for range 4 {
			fmt.Fprintf(&b, "-A C%d -m limit --limit 1/s -j C%d\n", i, i+1)
		}
	}
	b.WriteString(":C30 - [0:0]\nCOMMIT\n")
	if _, err := importWithin(1_000_000, []File{{"v4", b.String()}}); !errors.Is(err, errTooMuch) {
		t.Errorf("error %v, want %v", err, errTooMuch)
	}
}
