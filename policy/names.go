package policy

import "regexp"

// ProtocolName gives the word for a protocol that has ports (tcp, udp, …), and
// its IANA number for any other.
func ProtocolName(proto uint8) string { return protocolName(proto) }

// Names gives f as the list of words and addresses that make it up; FROM
// trusted, any and none are lists of that one word.
func (f From) Names() []string {
	if f.Any || f.None || len(f.Sets)+len(f.Ranges) == 0 {
		return []string{f.String()}
	}
	out := append([]string{}, f.Sets...)
	for _, r := range f.Ranges {
		out = append(out, r.String())
	}
	return out
}

// tableName is what nft reads as a table's name without quotes.
var tableName = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_-]{0,63}$`)

// ValidTableName reports whether nftables and nft accept name for a table.
func ValidTableName(name string) bool { return tableName.MatchString(name) }
