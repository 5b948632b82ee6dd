package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The labels. See SPEC.md, "Labels".
const (
	labelNamespace = "nftfw"
	labelExpose    = "nftfw.expose"
	labelEgress    = "nftfw.egress"

	// maxLabelValue is the longest value that is read, in bytes.
	maxLabelValue = 64 << 10
)

const labelForms = "the labels are nftfw.expose, nftfw.expose.PORT[/PROTO], nftfw.expose.PORT-PORT[/PROTO] and nftfw.egress"

// Labels is what the nftfw labels of one container say.
type Labels struct {
	// Expose has one grant for each expose label whose port is understood,
	// those that failed among them. The one that counts for a port is the
	// first that contains it: fewest ports first, then lower first port,
	// then tcp before udp, then by key.
	Expose []LabelGrant

	// Egress is nil where no label speaks of egress or EgressErr is set.
	Egress    *Egress
	EgressErr error

	// Problems are about labels whose key is not understood; mistakes that
	// Expose and EgressErr carry are not repeated here. Label and Message
	// are set, the container is for the caller to fill in. Sorted by Label.
	// It is unknown which port such a label meant, so a port that no other
	// label decides may be that one.
	Problems []Diagnostic
}

// LabelGrant is what one label asks for.
type LabelGrant struct {
	Key   string
	Ports PortSpec
	From  From  // zero when Err is set
	Err   error // why the label grants nothing: its ports are capped at trusted
}

// ParseLabels reads the nftfw labels among labels, which are those that count
// for one container: without those that its image carries, unless
// containers.image_labels is set. p says which sets there are and how much a
// label may grant.
func ParseLabels(labels map[string]string, p *Policy) Labels {
	var l Labels
	var keys []string
	for key := range labels {
		if isOurs(key) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		switch {
		case key == labelEgress:
			l.Egress, l.EgressErr = labelEgressOf(labels[key], p)
		case key == labelExpose:
			l.Expose = append(l.Expose, newLabelGrant(key, PortSpec{All: true}, labels[key], p))
		case strings.HasPrefix(key, labelExpose+"."):
			ports, err := parseLabelPort(strings.TrimPrefix(key, labelExpose+"."))
			if err != nil {
				l.doubt(key, err.Error())
				continue
			}
			l.Expose = append(l.Expose, newLabelGrant(key, ports, labels[key], p))
		default:
			l.doubt(key, "there is no such label"+didYouMean(labelStem(key), []string{labelExpose, labelEgress})+"; "+labelForms)
		}
	}
	slices.SortFunc(l.Expose, func(a, b LabelGrant) int {
		return cmp.Or(comparePorts(a.Ports, b.Ports), strings.Compare(a.Key, b.Key))
	})
	refuseConflicts(l.Expose)
	return l
}

// labelStem is key without what stands behind its second dot.
func labelStem(key string) string {
	parts := strings.SplitN(key, ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}

func (l *Labels) doubt(key, message string) {
	l.Problems = append(l.Problems, Diagnostic{Severity: SeverityError, Label: key, Message: message})
}

// parseLabelPort reads the PORT of an expose label.
func parseLabelPort(s string) (PortSpec, error) {
	ports, err := parseContainerPort(s)
	if err == nil && ports.All {
		err = errors.New("for every port the label is nftfw.expose, without a port")
	}
	return ports, err
}

// parseContainerPort reads a port as Docker publishes them: of tcp, udp or
// sctp. "*" is every port.
func parseContainerPort(s string) (PortSpec, error) {
	ports, err := ParsePort(s)
	if err != nil || ports.All {
		return ports, err
	}
	if ports.Portless || ports.Proto != protoTCP && ports.Proto != protoUDP && ports.Proto != protoSCTP {
		return PortSpec{}, fmt.Errorf("port %s: containers publish ports of tcp, udp and sctp only: write one such as 443/tcp", quote(s))
	}
	return ports, nil
}

func newLabelGrant(key string, ports PortSpec, value string, p *Policy) LabelGrant {
	g := LabelGrant{Key: key, Ports: ports}
	if g.Err = checkLabelValue(value, fromForms); g.Err != nil {
		return g
	}
	from, err := ParseFrom(value, p.declared)
	switch {
	case err != nil:
		g.Err = p.nameSets(err)
	case !p.Containers.Grants(from):
		g.Err = fmt.Errorf("it asks for %s, and containers.labels lets labels grant %s", shorten(from.String()), p.Containers.ceiling())
	default:
		g.From = from
	}
	return g
}

func labelEgressOf(value string, p *Policy) (*Egress, error) {
	if err := checkLabelValue(value, egressForms); err != nil {
		return nil, err
	}
	e, err := ParseEgress(value, p.declared)
	if err != nil {
		return nil, p.nameSets(err)
	}
	return &e, nil
}

func checkLabelValue(value, forms string) error {
	switch {
	case len(value) > maxLabelValue:
		return fmt.Errorf("its value is %d bytes long, and %d are the most: put the addresses into a set", len(value), maxLabelValue)
	case strings.TrimSpace(value) == "":
		return errors.New("its value is empty: " + forms)
	}
	return nil
}

// refuseConflicts refuses all of the labels that speak of exactly the same
// ports, as nftfw.expose.80 and nftfw.expose.80/tcp do, when they do not say
// the same. list is sorted, so these stand side by side.
func refuseConflicts(list []LabelGrant) {
	for i := 0; i < len(list); {
		end := i + 1
		conflict := false
		for ; end < len(list) && list[end].Ports == list[i].Ports; end++ {
			conflict = conflict || list[end].Err != nil || list[i].Err != nil ||
				list[end].From.String() != list[i].From.String()
		}
		for j := i; conflict && j < end; j++ {
			if list[j].Err == nil {
				other := list[i].Key
				if j == i {
					other = list[i+1].Key
				}
				list[j].From = From{}
				list[j].Err = fmt.Errorf("it is about the same port as label %s, which says something else: remove one of them", quote(other))
			}
		}
		i = end
	}
}

// ceiling says what labels may grant, for a message.
func (c Containers) ceiling() string {
	switch {
	case c.Labels.None:
		return "nothing (none)"
	case c.LabelTrusted && len(c.Labels.Sets)+len(c.Labels.Ranges) > 0:
		return "only " + SetTrusted + "," + shorten(c.Labels.String())
	default:
		return "only " + shorten(c.Labels.String())
	}
}

// shorten cuts a list to a length that can be read.
func shorten(s string) string {
	const longest = 80
	if len(s) <= longest {
		return s
	}
	return s[:longest] + "…"
}

// declared reports whether p has a set of that name.
func (p *Policy) declared(set string) bool {
	_, ok := p.Sets[set]
	return ok
}

// nameSets adds the declared sets to an error about one that is not.
func (p *Policy) nameSets(err error) error {
	var unknown *unknownSetError
	if !errors.As(err, &unknown) {
		return err
	}
	return errors.New(unknownSet(unknown, keysOf(p.Sets)))
}
