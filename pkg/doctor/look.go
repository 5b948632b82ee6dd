package doctor

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/dockerwatch"
	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/links"
	"github.com/nftfw/nftfw/pkg/store"
	"github.com/nftfw/nftfw/policy"
)

// patience is how long the daemon and the engine may take to answer.
const patience = 5 * time.Second

// Look sees what it may of the host, in the network namespace of the calling
// thread. It needs no right at all: what it may not see is an error in Facts.
func Look(ctx context.Context, o Options) *Facts {
	f := &Facts{Options: o, SocketGroup: groupOf(o.Socket)}
	f.askDaemon(ctx)
	f.readPolicy()
	f.readSets()
	f.lookAtState()
	f.askDocker(ctx)
	if f.listed() {
		_, f.Diagnostics = policy.Compile(f.Policy, nil, f.Docker.Inventory)
	}
	f.askKernel(ctx)
	f.readProc("/proc")
	f.readLegacy("/proc", legacyHolds)
	return f
}

func (f *Facts) askDaemon(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	status, err := api.NewClient(f.Options.Socket).Status(ctx)
	if err != nil {
		f.DaemonErr = err
		return
	}
	f.Daemon = &status
}

// groupOf names the group of a file, "" where there is none.
func groupOf(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	id := strconv.FormatUint(uint64(st.Gid), 10)
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}

func hash(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// readPolicy finds the policy in force: the one that was saved as such, else
// the file, else the default. It makes no state directory.
func (f *Facts) readPolicy() {
	f.Policy = policy.Default(nil)
	switch text, err := os.ReadFile(filepath.Clean(f.Options.PolicyPath)); {
	case err == nil:
		f.File.Exists, f.File.Hash = true, hash(text)
		p, _, err := policy.Parse(f.Options.PolicyPath, text)
		if f.File.Err = err; err == nil {
			f.Policy = p
		}
	case !errors.Is(err, fs.ErrNotExist):
		f.File.Exists, f.File.Err = true, err
	}
	for _, path := range []string{filepath.Dir(f.Options.PolicyPath), f.Options.PolicyPath} {
		// In a folder with the sticky bit nobody replaces the files of another.
		if info, err := os.Stat(path); err == nil && info.Mode()&(0o002|fs.ModeSticky) == 0o002 {
			f.File.Open = append(f.File.Open, path)
		}
	}
	if f.Daemon != nil {
		f.File.Known, f.File.Applied = true, f.Daemon.Policy.Hash
	}
	if _, err := os.Stat(f.Options.StateDir); err != nil {
		return
	}
	st, err := store.Open(f.Options.StateDir)
	if err != nil {
		return
	}
	text, name, err := st.LoadPolicy()
	if err != nil {
		return
	}
	if !f.File.Known {
		f.File.Known = true
		if len(text) > 0 {
			f.File.Applied = hash(text)
		}
	}
	if len(text) == 0 {
		f.Policy = policy.Default(nil)
	} else if p, _, err := policy.Parse(name, text); err == nil {
		f.Policy = p
	}
}

// readSets joins the policy's sets with what was added to them by command. It
// makes no state directory.
func (f *Facts) readSets() {
	f.Sets = policy.Sets{}
	for name, s := range f.Policy.Sets {
		f.Sets[name] = f.Sets[name].Add(s.Entries...)
	}
	if _, err := os.Stat(f.Options.StateDir); err != nil {
		return
	}
	st, err := store.Open(f.Options.StateDir)
	if err != nil {
		return
	}
	added, _ := st.LoadSets() // what cannot be read is reported by the daemon
	for name, s := range added {
		if _, ok := f.Sets[name]; ok {
			f.Sets[name] = f.Sets[name].Add(s.Prune(time.Now()).Entries()...)
		}
	}
}

func (f *Facts) lookAtState() {
	info, err := os.Stat(f.Options.StateDir)
	if err != nil {
		f.State.Err = err
		return
	}
	f.State = StateDir{
		Exists: true, Mode: info.Mode(),
		Writable: os.Geteuid() != 0 || unix.Access(f.Options.StateDir, unix.W_OK) == nil,
	}
}

func (f *Facts) askDocker(ctx context.Context) {
	path, local := strings.CutPrefix(f.Options.DockerHost, "unix://")
	if local {
		f.Docker.Group = groupOf(path)
	}
	dirs := []string{links.DefaultSandboxDir}
	if f.Options.NoDocker {
		f.Docker.Inventory.Engine = inventory.EngineAbsent
	} else {
		o := dockerwatch.Options{Host: f.Options.DockerHost, Timeout: patience}
		if f.Docker.Info, f.Docker.Err = dockerwatch.AskInfo(ctx, o); f.Docker.Err == nil {
			f.Docker.Inventory, f.Docker.Err = dockerwatch.List(ctx, o)
		}
		if dir := f.Docker.Info.SandboxDir; dir != "" {
			dirs = append(dirs, dir)
		}
	}
	f.Links, f.LinkErr = links.Read(dirs)
	f.Docker.Inventory.Links = spare(f.Links)
}

// spare marks veths that we may not look behind, so that they are not taken for
// strangers.
func spare(list []inventory.Link) []inventory.Link {
	out := slices.Clone(list)
	if os.Geteuid() == 0 {
		return out
	}
	for i := range out {
		if out[i].Kind == "veth" && out[i].Sandbox == "" {
			out[i].Settling = true
		}
	}
	return out
}

// probeTable is the name of the table that the kernel is asked about. It is
// never made.
const probeTable = "nftfw-doctor"

func (f *Facts) askKernel(ctx context.Context) {
	k, err := nft.Open()
	if err != nil {
		f.Kernel.Err = err
		return
	}
	defer func() { _ = k.Close() }()
	if f.Kernel.Tables, f.Kernel.Err = k.Tables(ctx); f.Kernel.Err != nil {
		return
	}
	t, _ := policy.Compile(f.Policy, nil, f.Docker.Inventory)
	t = policy.WithCuts(t)
	probe := *t
	probe.Name = probeTable
	f.Kernel.Refusal = k.Check(ctx, nft.Diff(nft.StateOf(nil), &probe, time.Now()))
	f.Kernel.Conntrack = k.CheckConntrack(ctx)
}

// readProc reads what the kernel shows of the namespace below proc.
func (f *Facts) readProc(proc string) {
	for _, line := range readLines(filepath.Join(proc, "thread-self", "net", "ip_vs")) {
		// After two lines of heading: "TCP  C6120001:0050 rr", and its servers.
		if kind, rest, ok := strings.Cut(line, " "); ok && slices.Contains([]string{"TCP", "UDP", "SCTP", "FWM"}, kind) {
			f.IPVS = append(f.IPVS, kind+" "+strings.TrimSpace(rest))
		}
	}
	bridge := filepath.Join(proc, "sys", "net", "bridge")
	f.BridgeNF4 = isOne(filepath.Join(bridge, "bridge-nf-call-iptables"))
	f.BridgeNF6 = isOne(filepath.Join(bridge, "bridge-nf-call-ip6tables"))
	found, _ := filepath.Glob(filepath.Join(proc, "sys", "net", "ipv4", "conf", "*", "route_localnet")) // the pattern is well formed
	for _, path := range found {
		if isOne(path) {
			f.RouteLocalnet = append(f.RouteLocalnet, filepath.Base(filepath.Dir(path)))
		}
	}
}

// readLegacy finds the tables of iptables-legacy that hold something. A mere
// `iptables-legacy -L` makes a table, which stays.
func (f *Facts) readLegacy(proc string, holds func(table string, v6 bool) (bool, error)) {
	for file, v6 := range map[string]bool{"ip_tables_names": false, "ip6_tables_names": true} {
		for _, table := range readLines(filepath.Join(proc, "thread-self", "net", file)) {
			switch held, err := holds(table, v6); {
			case err != nil:
				f.LegacyUnread = append(f.LegacyUnread, table)
			case held:
				f.LegacyTables = append(f.LegacyTables, table)
			}
		}
	}
	for _, list := range []*[]string{&f.LegacyTables, &f.LegacyUnread} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
}

func isOne(path string) bool {
	lines := readLines(path)
	return len(lines) == 1 && lines[0] == "1"
}

// readLines gives the lines of a file that are not empty; none where it cannot
// be read, which is how the kernel says that it does not have the thing.
func readLines(path string) []string {
	file, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil
	}
	defer file.Close()
	var out []string
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if line := strings.TrimSpace(lines.Text()); line != "" {
			out = append(out, line)
		}
	}
	return out
}
