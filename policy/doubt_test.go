package policy

import (
	"testing"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// unnamed is c where nobody could be asked what its image is called.
func unnamed(c inventory.Container) inventory.Container {
	c.Image, c.ImageID = "", "sha256:0"
	return c
}

func imageless(c inventory.Container) inventory.Container {
	c.Image, c.ImageID = "", ""
	return c
}

// TestRulesInDoubt is about rules of which it is not known whether they speak of a
// container: what they and what would count without them both let in is let in.
func TestRulesInDoubt(t *testing.T) {
	shop := labels{composeProject: "shop", "nftfw.expose": "any"}
	const why = "the name of the container's image is not known"
	run(t, []verdicts{
		{
			name:       "one that closes may be about a container whose image has no known name",
			policy:     `containers: {rules: [{match: {image: "web:*"}, expose: {"*": none}}]}`,
			containers: []inventory.Container{unnamed(container("web", labels{"nftfw.expose": "any"}, "8080:80/tcp"))},
			drop:       packets(from(dnat, web+":80", stranger, trusted), from(input, host1+":8080", stranger, trusted)),
		},
		{
			name:       "one that opens may not be about it, and leaves it to trusted",
			policy:     `containers: {rules: [{match: {image: "*"}, expose: {80/tcp: any}}]}`,
			containers: []inventory.Container{unnamed(container("web", labels{"nftfw.expose": "any"}, "8080:80/tcp", "8081:81/tcp"))},
			accept:     packets(dnat(trusted, web+":80"), dnat(stranger, web+":81")),
			drop:       packets(dnat(stranger, web+":80")),
		},
		{
			name:       "one without an image is not in doubt",
			policy:     `containers: {rules: [{match: {image: "*"}, expose: {80/tcp: none}}]}`,
			containers: []inventory.Container{imageless(container("web", labels{"nftfw.expose": "any"}, "8080:80/tcp"))},
			accept:     packets(dnat(stranger, web+":80")),
		},
		{
			name: "what closes without it closes",
			policy: `containers: {rules: [{match: {image: "web:*"}, expose: {80/tcp: any, 81/tcp: office}},
				{match: {name: web}, expose: {80/tcp: none}}]}`,
			containers: []inventory.Container{unnamed(container("web", labels{"nftfw.expose.81": "none"}, "8080:80/tcp", "8081:81/tcp"))},
			drop:       packets(dnat(trusted, web+":80"), dnat(trusted, web+":81")),
		},
		{
			name: "one whose other parts speak of another is not in doubt, and neither is one behind one that is certain",
			policy: `containers: {rules: [{match: {name: db, image: "web:*"}, expose: {"*": none}},
				{match: {name: web}, expose: {"*": any}}, {match: {image: "web:*"}, expose: {"*": none}}]}`,
			containers: []inventory.Container{unnamed(container("web", nil, "8080:80/tcp"))},
			accept:     packets(dnat(stranger, web+":80")),
		},
		{
			name:       "with the image gone a rule by label closes what it may be about",
			policy:     `containers: {default: any, rules: [{match: {project: shop}, expose: {"*": none}}, {match: {name: "*"}, expose: {"*": any}}]}`,
			containers: []inventory.Container{unknownImage(container("web", shop, "8080:80/tcp"))},
			drop:       packets(from(dnat, web+":80", stranger, trusted)),
			says:       []string{"warning: container web: label nftfw.expose: does not count while the image cannot be inspected…"},
		},
		{
			name: "of two egresses the narrower counts",
			policy: `containers: {rules: [{match: {image: "a:*"}, egress: any}, {match: {image: "b:*"}, egress: office},
				{match: {name: db}, egress: none}]}`,
			containers: []inventory.Container{unnamed(container("web", nil)), unnamed(appContainer("db", nil))},
			accept:     packets(leave(web, office+":1")),
			drop:       packets(leave(web, stranger+":1"), leave(app, office+":1")),
		},
		{
			name:       "of two of which neither is the narrower none does",
			policy:     `containers: {egress: [":443/tcp"], rules: [{match: {project: shop}, egress: office}]}`,
			containers: []inventory.Container{imageUnknown(container("web", labels{composeProject: "shop"}))},
			drop:       packets(leave(web, office+":1"), leave(web, office+":443"), leave(web, stranger+":443")),
		},
	})
	t.Run("why", func(t *testing.T) {
		p, _, err := Parse("policy.yaml", []byte("version: 1\ncontainers: {rules: [{match: {image: \"web:*\"}, expose: {\"*\": none}}]}\n"))
		if err != nil {
			t.Fatal(err)
		}
		got, _ := Decide(p, inventory.Snapshot{Containers: []inventory.Container{unnamed(container("web", nil, "8080:80/tcp"))}})
		if len(got) == 0 || got[0].By != ByRule || got[0].Err != why+", and this rule may be about it" {
			t.Errorf("decided: %+v", got)
		}
	})
}
