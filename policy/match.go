package policy

import (
	"strings"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// Labels that Docker Compose puts on its containers.
// See https://docs.docker.com/reference/compose-file/services/#labels.
const (
	composeProject = "com.docker.compose.project"
	composeService = "com.docker.compose.service"
)

// Labels that Docker puts on the containers of a swarm's services, and docker
// stack deploy on the services as well.
// See moby's daemon/cluster/executor/container/container.go.
const (
	stackNamespace = "com.docker.stack.namespace"
	swarmService   = "com.docker.swarm.service.name"
)

// names reports whether m is about a container or a service by its name, rather than
// about many that it happens to be among.
func (m Match) names() bool {
	literal := func(pattern string) bool { return pattern != "" && !strings.ContainsAny(pattern, "*?") }
	return literal(m.Name) || literal(m.Service)
}

// Container reports whether m selects a container. image is the image as the
// operator wrote it; "" matches nothing. labels are those that count: without
// those that an image carries, unless containers.image_labels is set. HostIP is
// not looked at: it selects ways to a container, not containers.
func (m Match) Container(name, image string, labels map[string]string) bool {
	if !partMatches(m.Name, name, true) || !partMatches(m.Image, image, image != "") {
		return false
	}
	if !m.belongs(labels) {
		return false
	}
	for key, pattern := range m.Label {
		if value, ok := labels[key]; !ok || !glob(pattern, value) {
			return false
		}
	}
	return true
}

// mayBe reports whether m selects c, or would if more were known of its image: its
// name, and which labels are not the operator's. labels are those that count.
func (m Match) mayBe(c *inventory.Container, labels map[string]string) bool {
	if imageUnnamed(c) {
		m.Image = ""
	}
	if c.ImageUnknown {
		labels = c.Labels
	}
	return m.Container(c.Name, c.Image, labels)
}

// imageUnnamed reports whether c has an image whose name is not known.
func imageUnnamed(c *inventory.Container) bool { return c.Image == "" && c.ImageID != "" }

// belongs compares the project and the service: those of Compose, or the stack
// and the service of a swarm. The name of a stack's service may be written with
// the stack before it, as the engine has it, or without, as the stack's file.
func (m Match) belongs(labels map[string]string) bool {
	project, inProject, service, ofService := membership(labels)
	if !partMatches(m.Project, project, inProject) {
		return false
	}
	short, inStack := strings.CutPrefix(service, project+"_")
	return partMatches(m.Service, service, ofService) || partMatches(m.Service, short, ofService && inProject && inStack)
}

// membership reads the project and the service out of labels.
func membership(labels map[string]string) (project string, inProject bool, service string, ofService bool) {
	project, inProject = labels[composeProject]
	service, ofService = labels[composeService]
	if !inProject && !ofService {
		project, inProject = labels[stackNamespace]
		service, ofService = labels[swarmService]
	}
	return project, inProject, service, ofService
}

// partMatches compares one part of a Match: "" in the Match says nothing, and
// what the container does not have matches no pattern.
func partMatches(pattern, value string, present bool) bool {
	return pattern == "" || present && glob(pattern, value)
}

// glob reports whether all of s fits pattern, in which * stands for any run
// of characters and ? for any one. Every other character stands for itself.
// It takes len(pattern)*len(s) steps at most.
func glob(pattern, s string) bool {
	p, text := []rune(pattern), []rune(s)
	i, star, mark := 0, -1, 0
	for j := 0; j < len(text); {
		switch {
		case i < len(p) && p[i] == '*':
			star, mark = i, j
			i++
		case i < len(p) && (p[i] == '?' || p[i] == text[j]):
			i++
			j++
		case star >= 0:
			// Let the last * take one character more.
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(string(p[i:]), "*") == ""
}

// Compose gives the project and the service of Compose, or the stack and the
// service of a swarm, that a container belongs to, as its labels say so far as
// they count; "" for none.
func Compose(p *Policy, c *inventory.Container) (project, service string) {
	project, _, service, _ = membership(operatorLabels(p, c))
	return project, service
}
