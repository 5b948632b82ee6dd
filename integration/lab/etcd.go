package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Where a member of etcd listens: IANA's ports for it.
const (
	etcdClientPort = 2379
	etcdPeerPort   = 2380
)

// ErrNoEtcd means that there is no etcd on this machine.
var ErrNoEtcd = errors.New("no etcd on this machine")

// Etcd is a cluster of etcd, one member on each of some nodes.
type Etcd struct {
	Members []*EtcdMember
}

// EtcdMember is one member.
type EtcdMember struct {
	Node *Node
	lab  *Lab
	args []string
	log  string
	cmd  *exec.Cmd
	http *http.Client
}

// Etcd starts a cluster and waits until it answers.
func (l *Lab) Etcd(ctx context.Context, nodes ...*Node) (*Etcd, error) {
	bin, err := exec.LookPath("etcd")
	if err != nil {
		return nil, ErrNoEtcd
	}
	var peers []string
	for _, n := range nodes {
		peers = append(peers, fmt.Sprintf("%s=http://%s:%d", n.Name, n.V4, etcdPeerPort))
	}
	e := &Etcd{}
	for _, n := range nodes {
		client, peer := fmt.Sprintf("http://%s:%d", n.V4, etcdClientPort), fmt.Sprintf("http://%s:%d", n.V4, etcdPeerPort)
		dir := filepath.Join(l.dir, "etcd-"+n.Name)
		m := &EtcdMember{Node: n, lab: l, log: dir + ".log", args: []string{
			bin, "--name", n.Name, "--data-dir", dir, "--unsafe-no-fsync", "--log-level", "warn",
			"--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
			"--initial-cluster", strings.Join(peers, ","),
		}}
		m.http = &http.Client{Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return n.Dial(ctx, "tcp", m.addr(), n.V4)
			},
		}}
		e.Members = append(e.Members, m)
		if err := m.Start(ctx); err != nil {
			return nil, err
		}
	}
	return e, e.WaitReady(ctx)
}

func (m *EtcdMember) addr() netip.AddrPort { return netip.AddrPortFrom(m.Node.V4, etcdClientPort) }

// Endpoints are the URLs of the members.
func (e *Etcd) Endpoints() []string {
	var out []string
	for _, m := range e.Members {
		out = append(out, "http://"+m.addr().String())
	}
	return out
}

// WaitReady waits until every member that runs answers with a majority behind
// it.
func (e *Etcd) WaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for _, m := range e.Members {
		if m.cmd == nil {
			continue
		}
		if err := Poll(ctx, 50*time.Millisecond, func() error {
			_, err := m.Revision(ctx)
			return err
		}); err != nil {
			log, _ := os.ReadFile(m.log)
			return fmt.Errorf("wait for etcd on %s: %w\n%s", m.Node.Name, err, log)
		}
	}
	return nil
}

// Start starts the member, with the data it had.
func (m *EtcdMember) Start(ctx context.Context) error {
	log, err := os.OpenFile(m.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := m.Node.Command(context.WithoutCancel(ctx), m.args[0], m.args[1:]...)
	cmd.Env = m.lab.env()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start etcd on %s: %w", m.Node.Name, err)
	}
	m.cmd = cmd
	return nil
}

// Kill ends the member with SIGKILL.
func (m *EtcdMember) Kill() {
	if m.cmd != nil {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait() // it was killed
		m.cmd = nil
	}
}

// Revision is the newest revision of the store, found out with a majority.
func (m *EtcdMember) Revision(ctx context.Context) (string, error) {
	var out struct {
		Header struct {
			Revision string `json:"revision"`
		} `json:"header"`
	}
	err := m.call(ctx, "/v3/kv/range", map[string]any{"key": []byte("x")}, &out)
	return out.Header.Revision, err
}

// Put writes a key.
func (m *EtcdMember) Put(ctx context.Context, key, value string) error {
	return m.call(ctx, "/v3/kv/put", map[string]any{"key": []byte(key), "value": []byte(value)}, nil)
}

// Delete removes a key.
func (m *EtcdMember) Delete(ctx context.Context, key string) error {
	return m.call(ctx, "/v3/kv/deleterange", map[string]any{"key": []byte(key)}, nil)
}

// Compact forgets what was before the newest revision.
func (m *EtcdMember) Compact(ctx context.Context) error {
	revision, err := m.Revision(ctx)
	if err != nil {
		return err
	}
	return m.call(ctx, "/v3/kv/compaction", map[string]any{"revision": revision, "physical": true}, nil)
}

// call makes a request of etcd's JSON gateway.
func (m *EtcdMember) call(ctx context.Context, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://etcd"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := m.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("etcd answered %s to %s: %s", resp.Status, path, text)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(text, out)
}
