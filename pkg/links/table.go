package links

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// table is the links as the messages so far leave them, with what is known of
// where the ports among them lead.
type table struct {
	q      *query
	settle time.Duration

	links map[int]link
	paths map[int]answer       // by index: what looking the other end up gave
	since map[int]time.Time    // by index: when a port was first seen to wait for its other end
	known map[string]namespace // by path: what is a file of a folder of sandboxes
}

// namespace is a network namespace that has an id in ours. It has that id for
// as long as it is there, and its inode is its own meanwhile.
type namespace struct {
	dev, ino uint64
	netnsid  int
}

// answer says where the namespace netnsid lies. An empty path is an answer too:
// the folders were looked through and it was not there.
type answer struct {
	netnsid int
	path    string
}

func newTable(q *query, settle time.Duration) *table {
	return &table{q: q, settle: settle, paths: map[int]answer{}, since: map[int]time.Time{}, known: map[string]namespace{}}
}

// relist replaces everything by what the kernel says now. When it fails, what
// was known stands.
func (t *table) relist() error {
	links, err := t.q.links()
	if err != nil {
		return err
	}
	t.links = links
	for index := range t.paths {
		if _, ok := links[index]; !ok {
			delete(t.paths, index)
		}
	}
	t.forgetMisses()
	return nil
}

// forgetMisses has every port whose sandbox was not found looked up again.
func (t *table) forgetMisses() {
	for index, a := range t.paths {
		if a.path == "" {
			delete(t.paths, index)
		}
	}
}

// apply takes messages in, in the order they came.
func (t *table) apply(changes []change) {
	for _, c := range changes {
		if t.paths[c.index].path == "" {
			delete(t.paths, c.index) // any word of an unresolved port is a reason to look again
		}
		if !c.gone {
			t.links[c.index] = c.link
			continue
		}
		delete(t.links, c.index)
		delete(t.paths, c.index)
		t.refreshPeer(c.index)
	}
}

// refreshPeer asks again about the port whose other end has just left this
// namespace: the kernel reports only the end that moved, and the port itself
// not before its carrier changes, some 70 ms later with Docker.
func (t *table) refreshPeer(gone int) {
	for index, l := range t.links {
		if l.port() && l.netnsid == noNetNS && l.peer == gone {
			if now, ok := t.q.link(index); ok {
				t.links[index] = now
			}
			return
		}
	}
}

// list returns the links sorted by index, and how long it stays true without
// another message; 0 is for ever.
func (t *table) list(dirs []string, now time.Time) (list []inventory.Link, stands time.Duration) {
	t.resolve(dirs)
	list = make([]inventory.Link, 0, len(t.links))
	for _, l := range t.links {
		item := inventory.Link{Index: l.index, Name: l.name, Kind: l.kind, Master: l.master}
		if l.port() {
			item.Sandbox = t.paths[l.index].path
		}
		if left := t.settling(l, now); left > 0 {
			item.Settling = true
			if stands == 0 || left < stands {
				stands = left
			}
		}
		list = append(list, item)
	}
	for index := range t.since {
		if _, ok := t.links[index]; !ok {
			delete(t.since, index)
		}
	}
	slices.SortFunc(list, func(a, b inventory.Link) int { return cmp.Compare(a.Index, b.Index) })
	return list, stands
}

// settling returns how much longer l may count as a port on its way into a
// container, or out of one. Docker enslaves the host's end first and moves the
// other end later, and takes it back before it deletes the pair. All that time
// the other end is down, so the port has no carrier and carries nothing; with
// a carrier and no sandbox it is somebody else's from the first packet on.
func (t *table) settling(l link, now time.Time) time.Duration {
	if !l.port() || l.carrier || t.paths[l.index].path != "" {
		delete(t.since, l.index)
		return 0
	}
	since, ok := t.since[l.index]
	if !ok {
		since = now
		t.since[l.index] = now
	}
	return max(t.settle-now.Sub(since), 0)
}

// resolve finds the sandbox of every port for which that was not done yet. It
// goes through the folders at most once.
func (t *table) resolve(dirs []string) {
	wanted := map[int]string{}
	var ask []link
	for _, l := range t.links {
		if !l.port() {
			continue
		}
		if a, ok := t.paths[l.index]; ok && a.netnsid == l.netnsid {
			continue
		}
		t.paths[l.index] = answer{netnsid: l.netnsid}
		if l.netnsid != noNetNS {
			wanted[l.netnsid] = ""
			ask = append(ask, l)
		}
	}
	if len(ask) == 0 {
		return
	}
	t.findSandboxes(dirs, wanted)
	for _, l := range ask {
		t.paths[l.index] = answer{netnsid: l.netnsid, path: wanted[l.netnsid]}
	}
}

// findSandboxes fills in the path of each namespace that wanted names by id. A
// folder or file that cannot be read is none of ours, or gone in the meantime.
func (t *table) findSandboxes(dirs []string, wanted map[int]string) {
	missing := len(wanted)
	for _, dir := range dirs {
		if !strings.Contains(dir, "*") {
			dir = filepath.Join(dir, "*")
		}
		paths, _ := filepath.Glob(dir) // a pattern that is not well formed has no paths
		if len(t.known) > 2*len(paths)+64 {
			clear(t.known) // of files that are gone, most of it
		}
		for some := range slices.Chunk(paths, netnsidsAtOnce) {
			if missing == 0 {
				return
			}
			for i, id := range t.netnsidsOf(some) {
				if found, ok := wanted[id]; ok && found == "" {
					wanted[id] = some[i]
					missing--
				}
			}
		}
	}
}

// netnsidsOf asks for the id of each namespace once: a host has as many as it has
// containers, and every start of one has the folder gone through.
func (t *table) netnsidsOf(paths []string) []int {
	ids := make([]int, len(paths))
	var files []*os.File
	var at []int // of the files, in paths
	for i, path := range paths {
		ids[i] = noNetNS
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil {
			continue
		}
		if k, ok := t.known[path]; ok && k.dev == st.Dev && k.ino == st.Ino {
			ids[i] = k.netnsid
			continue
		}
		delete(t.known, path)
		// O_NONBLOCK: a pipe in the folder must not hold us up.
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		defer f.Close()
		files, at = append(files, f), append(at, i)
	}
	if len(files) == 0 {
		return ids
	}
	for n, id := range t.q.netnsids(files) {
		ids[at[n]] = id
		var st unix.Stat_t
		if id != noNetNS && unix.Fstat(int(files[n].Fd()), &st) == nil {
			t.known[paths[at[n]]] = namespace{st.Dev, st.Ino, id}
		}
	}
	return ids
}
