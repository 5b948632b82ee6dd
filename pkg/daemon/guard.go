package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/links"
	"github.com/nftfw/nftfw/pkg/ruleset"
	"github.com/nftfw/nftfw/pkg/sockets"
)

// guard refuses a table that would cut an established connection of the
// host's sshd which the table in force lets live. It looks at the sockets of
// sshd, so that it also protects a session behind sudo, tmux or su.
func (c *core) guard(want *ruleset.Table) error {
	sessions := c.host.sshd(sockets.Established)
	if len(sessions) == 0 {
		return nil
	}
	routes, err := links.ReadRoutes()
	if err != nil {
		return err
	}
	for _, s := range sessions {
		p := ruleset.Packet{
			IIf: routes.Link(s.Remote.Addr()), Proto: protoTCP,
			Src: s.Remote.Addr(), SPort: s.Remote.Port(), Dst: s.Local.Addr(), DPort: s.Local.Port(),
			State: ruleset.StateNew, Time: c.now(),
		}
		if !arrives(want, p) && (c.table == nil || arrives(c.table, p)) {
			try := "try the change with `apply --confirm 60s`"
			if c.alone { // nobody would put the former policy back
				try = "start the daemon (`systemctl start nftfw` or `nftfw run`) and " + try
			}
			return api.Failedf("refused: it would cut the SSH connection from %s to %s; let %s in first, or %s, or repeat with --force",
				s.Remote, s.Local, s.Remote.Addr(), try)
		}
	}
	return nil
}

// guardSet is guard for a table that differs from the one in force in n entries of
// a set. Where they let in as many as before nobody's connection is looked at: the
// kernel takes milliseconds to list them. To compare very many takes longer.
func (c *core) guardSet(want *ruleset.Table, n int) error {
	if n < manyEntries {
		plan := nft.Diff(nft.StateOf(c.table), want, c.now())
		if !c.narrows(plan) {
			return nil
		}
	}
	return c.guard(want)
}

// protoTCP is IANA's number for TCP.
const protoTCP = 6

// arrives tells whether a packet to the host itself gets through.
func arrives(t *ruleset.Table, p ruleset.Packet) bool {
	for _, hook := range []ruleset.Hook{ruleset.Prerouting, ruleset.Input} {
		p.Hook = hook
		if t.Decide(p) == ruleset.Drop {
			return false
		}
	}
	return true
}

// spareSessions keeps a start from cutting an SSH connection by a policy that was
// never in force. The very first one on a host then only observes until somebody
// applies the policy, and still does after a restart that found nothing applied
// meanwhile; a later one goes on with the policy that was in force last.
func (c *core) spareSessions() {
	last, err := lastGood(c.store, c.cfg.PolicyPath)
	first := errors.Is(err, fs.ErrNotExist) && (!c.have.Exists() || observes(c.have.Table()))
	changed := err == nil && last.identity() != c.policy.identity()
	if !first && !changed {
		return
	}
	refused := c.guard(c.compile())
	switch {
	case refused == nil:
	case first:
		c.setPolicy(c.policy.observe(fmt.Errorf("first start on this host stays in observe mode, nothing is refused: %w", refused)))
	default:
		c.setPolicy(fallbackPolicy(c.cfg.PolicyPath, c.store, fmt.Errorf("the policy file changed and is not loaded: %w", refused)))
	}
}

// observes tells whether a table that stands lets everything pass.
func observes(t *ruleset.Table) bool {
	return !slices.ContainsFunc(t.Chains, func(c *ruleset.Chain) bool { return c.Hook != "" && c.Policy == ruleset.Drop })
}
