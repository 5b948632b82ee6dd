package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"time"
)

// portsEach is how many ports a container of the fake engine publishes.
const portsEach = 10

// fakeEngine answers as an engine does that runs many containers on one bridge.
// It stands in for a real one where that could not start so many in the time of
// a run. Nothing ever happens in it.
type fakeEngine struct {
	socket  string
	server  *http.Server
	ended   sync.WaitGroup
	list    []byte
	network []byte
	sandbox string
}

// object is a piece of JSON as the engine sends it.
type object = map[string]any

const (
	fakeNetwork = "be0c000000000000000000000000000000000000000000000000000000000000"
	fakeBridge  = "bench0"
	fakeGateway = "172.30.0.1"
	firstPort   = 8000 // in a container
)

// boxAddr is the address of container number i.
func boxAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, 30, byte(1 + i/250), byte(1 + i%250)})
}

// boxPort is where port number i is published, in the container and on the host.
func boxPort(i int) (container, host uint16) {
	return uint16(firstPort + i%portsEach), uint16(10000 + i)
}

// newFakeEngine starts to serve so many containers, each of which publishes so
// many ports. sandbox is the path of the network namespace of all of them.
func newFakeEngine(socket, sandbox string, boxes, ports int) (*fakeEngine, error) {
	f := &fakeEngine{socket: socket, sandbox: sandbox}
	var list []object
	for n := range boxes {
		list = append(list, box(n, ports))
	}
	var err error
	if f.list, err = json.Marshal(list); err != nil {
		return nil, err
	}
	if f.network, err = json.Marshal(object{
		"Id": fakeNetwork, "Name": "bench", "Driver": "bridge", "Scope": "local", "Containers": object{},
		"IPAM":    object{"Config": []object{{"Subnet": "172.30.0.0/16", "Gateway": fakeGateway}}},
		"Options": object{"com.docker.network.bridge.name": fakeBridge},
	}); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	f.server = &http.Server{Handler: f, ReadHeaderTimeout: time.Minute}
	f.ended.Go(func() { _ = f.server.Serve(l) })
	return f, nil
}

// box is a container as the engine lists it, with the labels that compose gives.
func box(n, published int) object {
	var ports []object
	for i := range published {
		_, out := boxPort(n*published + i)
		ports = append(ports, object{"IP": "0.0.0.0", "PrivatePort": firstPort + i, "PublicPort": out, "Type": "tcp"})
	}
	return object{
		"Id": fmt.Sprintf("%012x%052x", n+1, 0), "Names": []string{fmt.Sprintf("/box-%d", n)},
		"Image": "box:1", "ImageID": "sha256:b0", "State": "running", "Status": "Up 2 hours",
		"Labels": object{
			"com.docker.compose.project": fmt.Sprintf("project%d", n/10),
			"com.docker.compose.service": "box", "com.docker.compose.version": "2.20.0",
		},
		"HostConfig": object{"NetworkMode": "bench"},
		"NetworkSettings": object{"Networks": object{"bench": object{
			"NetworkID": fakeNetwork, "IPAddress": boxAddr(n).String(), "IPPrefixLen": 16, "Gateway": fakeGateway,
		}}},
		"Ports": ports, "Mounts": []object{},
	}
}

func (f *fakeEngine) close() {
	_ = f.server.Close()
	f.ended.Wait()
}

var route = regexp.MustCompile(`^(?:/v1\.\d+)?/(.*)$`)

func (f *fakeEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", "1.41")
	w.Header().Set("Content-Type", "application/json")
	what := route.FindStringSubmatch(r.URL.Path)[1]
	switch {
	case what == "_ping":
	case what == "version":
		send(w, object{"Version": "20.10.24", "ApiVersion": "1.41", "Components": []object{{"Name": "Engine", "Version": "20.10.24"}}})
	case what == "info":
		send(w, object{"ServerVersion": "20.10.24"})
	case what == "events":
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	case what == "networks":
		_, _ = fmt.Fprintf(w, "[%s]", f.network)
	case strings.HasPrefix(what, "networks/"):
		_, _ = w.Write(f.network)
	case what == "containers/json" && r.URL.Query().Get("limit") == "1":
		send(w, []object{box(0, 1)})
	case what == "containers/json":
		_, _ = w.Write(f.list)
	case strings.HasPrefix(what, "containers/"):
		id := strings.TrimSuffix(strings.TrimPrefix(what, "containers/"), "/json")
		send(w, object{"Id": id, "NetworkSettings": object{"SandboxKey": f.sandbox}})
	case strings.HasPrefix(what, "images/"):
		send(w, object{"Id": "sha256:b0", "Config": object{"Labels": object{}}})
	default:
		http.Error(w, `{"message":"page not found"}`, http.StatusNotFound)
	}
}

func send(w http.ResponseWriter, v any) {
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}
