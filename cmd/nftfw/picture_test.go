package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/api"
)

// threeContainers is a small host with one port of each kind.
func threeContainers() (api.Ports, map[string]int) {
	port := func(container, ip string, host, inside uint16, from ...string) api.Port {
		return api.Port{Container: container, Project: "shop", Service: strings.TrimPrefix(container, "shop-"), HostIP: ip, HostPort: host, ContainerPort: inside, Proto: "tcp", From: from}
	}
	wiki := port("wiki <x>", "198.51.100.2", 8083, 80, "office", "203.0.113.0/24")
	wiki.Project = ""
	return api.Ports{Enforced: true, Ports: []api.Port{
		port("shop-web", "0.0.0.0", 443, 8443, "any"), port("shop-web", "::", 443, 8443, "any"),
		port("shop-web", "0.0.0.0", 9100, 9100, "trusted"),
		port("shop-db", "0.0.0.0", 5432, 5432, "none"), port("shop-db", "127.0.0.1", 5433, 5432, "any"),
		port("shop-db", "0.0.0.0", 5434, 5434, "partners"),
		wiki,
	}}, map[string]int{"trusted": 1, "office": 3, "partners": 0, "blocked": 0}
}

// sixtyContainers is a large host.
func sixtyContainers() (api.Ports, map[string]int) {
	froms := [][]string{{"trusted"}, {"trusted"}, {"any"}, {"office"}, {"office", "vpn"}, {"none"}, {"trusted"}, {"monitoring"}, {"partners", "198.51.100.0/24"}, {"trusted"}}
	services := []string{"web", "api", "db", "cache", "worker", "mail-relay-with-a-long-name"}
	out := api.Ports{Enforced: true}
	for n := range 60 {
		project := fmt.Sprintf("project-%02d", n/6)
		for i := range 1 + n%3 {
			for _, ip := range []string{"0.0.0.0", "::"} {
				out.Ports = append(out.Ports, api.Port{
					Container: fmt.Sprintf("%s-%s-1", project, services[n%6]), Project: project, Service: services[n%6],
					HostIP: ip, HostPort: uint16(8000 + 10*n + i), ContainerPort: uint16(80 + i), Proto: "tcp", From: froms[(n*7+i)%len(froms)],
				})
			}
		}
	}
	return out, map[string]int{"trusted": 2, "office": 14, "vpn": 1, "monitoring": 4, "partners": 0}
}

func TestPortsPicture(t *testing.T) {
	for name, host := range map[string]func() (api.Ports, map[string]int){"ports-3": threeContainers, "ports-60": sixtyContainers} {
		ports, entries := host()
		got := portsPicture(ports, entries)
		path := filepath.Join("testdata", name+".svg")
		if *updateDocs {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		for d := xml.NewDecoder(strings.NewReader(got)); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s is no XML: %v", name, err)
			}
		}
		if n := strings.Count(got, ">"+ports.Ports[0].Container); n == 0 {
			t.Errorf("%s does not name %s", name, ports.Ports[0].Container)
		}
	}
}

// What is open is green, and what is open to nobody is not.
func TestPictureRows(t *testing.T) {
	ports, entries := threeContainers()
	got := map[string]bool{}
	for _, r := range pictureRows(ports.Ports, entries) {
		got[r.host] = r.open
	}
	want := map[string]bool{
		"*:443/tcp": true, "*:9100/tcp": true, "198.51.100.2:8083/tcp": true,
		"*:5432/tcp":         false, // none
		"127.0.0.1:5433/tcp": false, // the host's alone
		"*:5434/tcp":         false, // a set that is empty
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("open ports (-want +got):\n%s", diff)
	}
}
