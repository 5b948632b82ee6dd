package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/api"
)

// daemonFindings says whether somebody enforces.
func daemonFindings(f *Facts) []Finding {
	var out []Finding
	var failure *api.Error
	switch {
	case f.Daemon != nil:
		out = enforcement(f)
	case errors.Is(f.DaemonErr, api.ErrNoDaemon):
		out = append(out, Finding{
			"daemon-not-running", Error, "no nftfw daemon listens on " + f.Options.Socket,
			"rules that stand go on, but nobody follows containers: new ones stay closed, and an address keeps the permission of the container that had it",
			"systemctl enable --now nftfw",
		})
	case errors.As(f.DaemonErr, &failure) && strings.HasPrefix(failure.Message, "not allowed"):
		out = append(out, unreadableSocket("socket-unreadable", "the daemon", f.Options.Socket, f.SocketGroup))
	default:
		out = append(out, Finding{
			"daemon-unreachable", Error, fmt.Sprintf("the daemon does not answer: %v", f.DaemonErr),
			"nobody may be following containers, and no command reaches the daemon",
			"journalctl -u nftfw; systemctl restart nftfw",
		})
	}
	if f.Daemon == nil && f.Kernel.Err == nil && !f.tableStands() {
		out = append(out, Finding{
			"not-enforced", Error, fmt.Sprintf("there is no table inet %s in the kernel", f.Options.Table),
			"nothing is closed: every published port is open to everybody",
			"nftfw apply, or systemctl start nftfw",
		})
	}
	return out
}

func (f *Facts) tableStands() bool {
	for _, t := range f.Kernel.Tables {
		if t.Family == "inet" && t.Name == f.Options.Table {
			return true
		}
	}
	return false
}

// unreadableSocket tells about a socket that this user may not open.
func unreadableSocket(id, whose, path, group string) Finding {
	remedy := "run nftfw doctor as root"
	if group != "" && group != "root" {
		remedy += fmt.Sprintf(", or join the group that owns it: usermod -aG %s USER", group)
	}
	return Finding{
		id, Warning, fmt.Sprintf("the socket of %s, %s, cannot be opened by this user", whose, path),
		"what lies behind it was not looked at", remedy,
	}
}

// enforcement judges what the daemon says of itself.
func enforcement(f *Facts) []Finding {
	var out []Finding
	s := f.Daemon
	switch {
	case s.Mode == "observe":
		out = append(out, Finding{
			"observe-mode", Warning, "the policy in force only observes",
			"nothing is refused, not even what is blocked: every published port is open",
			"set `mode: enforce` in " + f.Options.PolicyPath + ", then nftfw apply --confirm 60s",
		})
	case !s.Enforced:
		out = append(out, Finding{
			"not-enforced", Error, "the daemon runs and does not enforce",
			"nothing is closed: every published port is open to everybody",
			"nftfw apply, or systemctl restart nftfw",
		})
	}
	if !s.Docker.Connected && s.Docker.Error != "" {
		out = append(out, Finding{
			"daemon-without-docker", Error, "the daemon is not connected to Docker: " + s.Docker.Error,
			"containers that start now stay closed, and changes of labels go unseen",
			"systemctl status docker; the daemon connects by itself when Docker answers; for a host without Docker: nftfw run --no-docker",
		})
	}
	return append(out, sourceFindings(s)...)
}

// sourceFindings says which sources of sets are not as they should be.
func sourceFindings(s *api.Status) []Finding {
	var out []Finding
	for _, source := range s.Sources {
		what := fmt.Sprintf("%s of set %s: %s", source.Source, source.Set, source.Error)
		switch {
		case source.Error == "":
		case source.LastGood == nil:
			out = append(out, Finding{
				"source-never-read", Error, what,
				"the set has no entry from there: who should be let in is not, and who should be blocked is not either",
				"correct what the message says; it is tried again by itself, and nftfw status shows how it stands",
			})
		default:
			out = append(out, Finding{
				"source-not-read", Warning, what,
				fmt.Sprintf("the last good list, of %s, stays in force, and changes since then are missing", source.LastGood.Format(time.RFC3339)),
				"correct what the message says; it is tried again by itself, and nftfw status shows how it stands",
			})
		}
		if source.Warning != "" {
			out = append(out, Finding{
				"source-read-in-part", Warning, fmt.Sprintf("%s of set %s: %s", source.Source, source.Set, source.Warning),
				"what was passed over is not in force", "correct it at the source, or take no notice if that is meant",
			})
		}
	}
	return out
}

// policyFindings says whether the policy file is what counts.
func policyFindings(f *Facts) []Finding {
	var out []Finding
	trouble := ""
	if f.Daemon != nil {
		trouble = f.Daemon.Policy.Error
	}
	switch {
	case f.File.Err != nil && errors.Is(f.File.Err, fs.ErrPermission):
		// Seen by others, not by us.
	case f.File.Err != nil:
		out = append(out, Finding{
			"policy-file-invalid", Error, fmt.Sprintf("the policy file cannot be used: %v", f.File.Err),
			"the last good policy holds, or the embedded default where there is none; at a start as well",
			"nftfw check " + f.Options.PolicyPath + ", correct it, then nftfw apply",
		})
	case trouble != "":
		out = append(out, Finding{
			"policy-not-in-force", Warning, "the daemon does not use the policy file: " + trouble,
			"what the file says does not hold", "nftfw apply --confirm 60s, then nftfw confirm",
		})
	case f.File.Known && f.File.Hash != f.File.Applied:
		out = append(out, Finding{
			"policy-not-in-force", Warning, f.Options.PolicyPath + " is not what was last put in force",
			"what the file says now does not hold until it is applied",
			"nftfw apply --dry-run to see what it changes, then nftfw apply --confirm 60s and nftfw confirm",
		})
	}
	return out
}

// openFindings says where everybody may write the policy.
func openFindings(f *Facts) []Finding {
	if len(f.File.Open) == 0 {
		return nil
	}
	return []Finding{{
		"policy-file-open", Error, strings.Join(f.File.Open, " and ") + " may be written to by everybody",
		"any user or process of the host can open every port at the next reload or start",
		"chmod o-w " + strings.Join(f.File.Open, " "),
	}}
}

func stateFindings(f *Facts) []Finding {
	dir := f.Options.StateDir
	var out []Finding
	if f.State.Exists && f.State.Mode.Perm()&0o077 != 0 {
		out = append(out, Finding{
			"state-dir-open", Warning, fmt.Sprintf("the state directory %s has mode %#o", dir, f.State.Mode.Perm()),
			"others than root can read who may connect, or change what is loaded at the next start",
			"chmod 0700 " + dir,
		})
	}
	if f.State.Exists && !f.State.Writable {
		out = append(out, Finding{
			"state-dir-read-only", Error, fmt.Sprintf("the state directory %s cannot be written to", dir),
			"sets and policies cannot be saved, so every change of them is refused",
			"mount it read-write, or name another one with --state-dir",
		})
	}
	return out
}

func kernelFindings(f *Facts) []Finding {
	switch err := f.Kernel.Err; {
	case err == nil:
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return []Finding{{
			"rules-unreadable", Warning, "the kernel's rules cannot be read without CAP_NET_ADMIN",
			"the rules of nftfw and of other firewalls were not looked at",
			"run nftfw doctor as root",
		}}
	default:
		return []Finding{{
			"nf-tables-missing", Error, err.Error(),
			"nftfw cannot enforce anything here",
			"modprobe nf_tables, or a kernel with CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET",
		}}
	}
	var out []Finding
	if err := f.Kernel.Refusal; err != nil {
		out = append(out, Finding{
			"kernel-feature-missing", Error, fmt.Sprintf("the kernel would not take the table of this policy: %v", err),
			"the policy cannot be enforced here",
			"a kernel with nft_ct, nft_limit, nft_log, nft_reject_inet and interval sets: install the distribution's full kernel and its modules",
		})
	}
	if err := f.Kernel.Conntrack; err != nil {
		out = append(out, Finding{
			"conntrack-unreadable", Error, err.Error(),
			"connections that lose their permission cannot be found and cut",
			"modprobe nf_conntrack_netlink",
		})
	}
	return out
}
