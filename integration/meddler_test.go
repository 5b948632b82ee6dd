package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// recoverWithin is how long nftfw may take to follow an engine that behaves
// again: a question that was not answered is given up after ten seconds.
const recoverWithin = 60 * time.Second

// An engine that misbehaves opens nothing, closes nothing that was open, and
// keeps nobody from changing sets. When it behaves again nftfw follows it.
func TestDockerMisbehaves(t *testing.T) {
	garbage := func(string, []byte) []byte { return []byte("\x00\xff<html>{") }
	tests := []struct {
		name string
		how  lab.Mischief
		// doubtful answers may close what was open.
		doubtful bool
	}{
		{name: "hangs", how: lab.Mischief{Hang: true}},
		{name: "answers garbage", how: lab.Mischief{Alter: garbage}},
		{name: "answers halves", how: lab.Mischief{Alter: func(_ string, b []byte) []byte { return b[:len(b)/2] }}},
		{name: "answers nothing", how: lab.Mischief{Alter: func(string, []byte) []byte { return nil }}},
		{name: "answers null", how: lab.Mischief{Alter: func(string, []byte) []byte { return []byte("null") }}},
		{name: "5,000 events a second", how: lab.Mischief{Flood: 5000}},
		{name: "containers without State", how: lacking("State"), doubtful: true},
		{name: "containers without Ports", how: lacking("Ports"), doubtful: true},
		{name: "containers without NetworkSettings", how: lacking("NetworkSettings"), doubtful: true},
		{name: "containers without HostConfig", how: lacking("HostConfig"), doubtful: true},
		{name: "containers without Labels", how: lacking("Labels"), doubtful: true},
		{name: "containers without ImageID", how: lacking("ImageID"), doubtful: true},
		{name: "containers without Names and Id", how: lacking("Names", "Id"), doubtful: true},
	}
	s := bare(t)
	m, err := s.engine.Meddle()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Leave)
	s.prepareWith("version: 1"+trust, lab.FirewallOptions{Bin: built.nftfw, Flags: []string{"--docker-host", m.Host()}})
	if err := s.fw.Start(s.ctx()); err != nil {
		t.Fatal(err)
	}
	s.run("web", "-p", "8080:80", "--label", "nftfw.expose=any")
	s.run("plain", "-p", "8082:80")
	s.open(s.stranger.Namespace, "web", hostPorts("8080"))
	s.open(s.permitted.Namespace, "plain", hostPorts("8082"))
	unreached := s.hammer(s.stranger, hostPort(8082)...)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := s.in(t)
			m.Behave(tt.how)
			s.duringMischief(tt.doubtful)
			m.Behave(lab.Mischief{})
			if tt.doubtful {
				// Nothing tells that an answer lacked something: it is believed until
				// the next one, a minute at most or, as here, the engine's restart.
				m.Leave()
				if err := m.Return(); err != nil {
					t.Fatal(err)
				}
			}
			s.afterMischief()
		})
	}
	t.Run("restarts in a loop", func(t *testing.T) {
		s := s.in(t)
		for range 30 {
			m.Leave()
			<-time.After(20 * time.Millisecond)
			if err := m.Return(); err != nil {
				t.Fatal(err)
			}
			<-time.After(50 * time.Millisecond)
		}
		s.duringMischief(false)
		s.afterMischief()
	})
	unreached()
	if !s.fw.Running() {
		t.Error("nftfw has ended")
	}
}

// listedLate is how long an engine may keep a network to itself for the test: less
// than what it is given, and enough for a container to start.
const listedLate = 5 * time.Second

// An engine makes the bridge of a network before it lists the network. Until it
// does, the bridge is not known to be somebody else's, and nothing passes over it.
func TestNetworkIsListedLate(t *testing.T) {
	s := bare(t)
	m, err := s.engine.Meddle()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Leave)
	s.prepareWith("version: 1"+trust, lab.FirewallOptions{Bin: built.nftfw, Flags: []string{"--docker-host", m.Host()}})
	if err := s.fw.Start(s.ctx()); err != nil {
		t.Fatal(err)
	}
	unreached := s.hammer(s.stranger, hostPort(8080)...)
	began := sync.OnceValue(time.Now)
	m.Behave(lab.Mischief{Alter: func(path string, body []byte) []byte {
		if !strings.HasSuffix(path, "/networks") || !strings.Contains(string(body), `"late"`) {
			return body
		}
		if time.Since(began()) > listedLate {
			return body
		}
		return altered(body, func(list []map[string]json.RawMessage) []map[string]json.RawMessage {
			return slices.DeleteFunc(list, func(n map[string]json.RawMessage) bool { return string(n["Name"]) == `"late"` })
		})
	}})
	s.network("late", "172.30.7.0/24", "fd00:d0c:33::/64")
	s.run("web", "--network", "late", "-p", "8080:80")
	s.ready("web", "8080")
	m.Behave(lab.Mischief{})
	s.docker("network", "create", "another")
	s.open(s.permitted.Namespace, "web", hostPorts("8080"))
	unreached()
}

// altered makes a change to a list in JSON, and leaves what is none as it is.
func altered(body []byte, change func([]map[string]json.RawMessage) []map[string]json.RawMessage) []byte {
	var list []map[string]json.RawMessage
	if json.Unmarshal(body, &list) != nil {
		return body
	}
	var out bytes.Buffer
	if err := json.NewEncoder(&out).Encode(change(list)); err != nil {
		return nil
	}
	return out.Bytes()
}

// lacking leaves fields out of every container of a list.
func lacking(fields ...string) lab.Mischief {
	return lab.Mischief{Alter: func(path string, body []byte) []byte {
		if !strings.HasSuffix(path, "/containers/json") {
			return body
		}
		return altered(body, func(list []map[string]json.RawMessage) []map[string]json.RawMessage {
			for _, c := range list {
				for _, f := range fields {
					delete(c, f)
				}
			}
			return list
		})
	}}
}

// duringMischief looks at what must go on while a container starts of which
// nftfw hears nothing, nonsense, or late.
func (s *set) duringMischief(doubtful bool) {
	s.t.Helper()
	s.run("fresh", "-p", "8083:80", "--label", "nftfw.expose=any")
	for i := range 3 {
		began := time.Now()
		s.nftfw("sets", []string{"add", "del"}[i%2], "trusted", "203.0.113.5")
		if took := time.Since(began); took > 5*time.Second {
			s.t.Errorf("a change of a set took %s", took)
		}
	}
	s.nftfw("sets", "del", "trusted", "203.0.113.5")
	if st, err := s.fw.Status(s.ctx()); err != nil || !st.Enforced {
		s.t.Errorf("status %+v, %v", st, err)
	}
	if !doubtful {
		s.open(s.stranger.Namespace, "web", hostPorts("8080"))
		s.open(s.permitted.Namespace, "plain", hostPorts("8082"))
	}
	s.closed(s.stranger.Namespace, hostPorts("8082"))
}

// afterMischief waits until all is well, and removes what was started.
func (s *set) afterMischief() {
	s.t.Helper()
	s.eventually(recoverWithin, func() error {
		st, err := s.fw.Status(s.ctx())
		switch {
		case err != nil:
			return err
		case !st.Docker.Connected:
			return errors.New("not connected to the engine")
		}
		for port, server := range map[string]string{"8080": "web", "8083": "fresh"} {
			for _, p := range hostPorts(port) {
				if r := s.stranger.Probe(s.ctx(), p); r.Server != server {
					return fmt.Errorf("%s: %s, want an answer of %s", p, r, server)
				}
			}
		}
		return nil
	})
	s.closed(s.stranger.Namespace, hostPorts("8082"))
	s.docker("rm", "-f", "fresh")
	if s.t.Failed() {
		s.t.FailNow()
	}
}
