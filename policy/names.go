package policy

import (
	"strings"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

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

// ValidTableName reports whether nftables takes name for a table
// (NFT_NAME_MAXLEN is more) and nft reads it without quotes: a letter, then
// letters, digits, _ and -, 64 in all at the most, and no keyword of nft.
func ValidTableName(name string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	return name != "" && len(name) <= 64 && !ruleset.IsKeyword(name) && strings.Trim(name[:1], letters) == "" && strings.Trim(name, letters+"0123456789_-") == ""
}
