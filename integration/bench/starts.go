package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nftfw/nftfw/integration/lab"
)

// host is a stage with a real engine.
type host struct {
	lab    *lab.Lab
	engine *lab.Engine
	others int // containers that run
}

func newHost(ctx context.Context, b *bench) (_ *host, err error) {
	h := &host{}
	defer func() {
		if err != nil {
			err = closeAll(err, h)
		}
	}()
	if h.lab, err = lab.New(ctx, b.log); err != nil {
		return nil, err
	}
	if h.engine, err = h.lab.Engine(lab.EngineOptions{}); err != nil {
		return nil, err
	}
	if err = h.engine.Start(ctx); err != nil {
		return nil, err
	}
	echo, err := lab.BuildEcho(ctx, h.lab.Dir())
	if err != nil {
		return nil, err
	}
	return h, h.engine.LoadImage(ctx, echo, lab.Image)
}

// fill starts containers until so many run, each with a published port.
func (h *host) fill(ctx context.Context, n int) error {
	const atOnce = 4
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for ; h.others < n; h.others++ {
		i := h.others
		group.Go(func() error {
			return errors.Join(h.docker(ctx, "run", "-d", "--name", otherName(i), "-p", fmt.Sprintf("%d:80", 20000+i), lab.Image))
		})
	}
	return group.Wait()
}

func otherName(i int) string { return fmt.Sprintf("other-%d", i) }

func (h *host) docker(ctx context.Context, args ...string) error {
	_, err := h.engine.Docker(ctx, args...)
	return err
}

// Close stops the engine in peace, so that the containers' control groups go
// with it.
func (h *host) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if h.engine != nil {
		_ = h.engine.Stop(ctx)
	}
	if h.lab == nil {
		return nil
	}
	return h.lab.Close()
}

// starts measures how long a started container stays closed, and how long all
// of them do when nftfw starts.
func starts(ctx context.Context, b *bench) error {
	h, err := newHost(ctx, b)
	if err != nil {
		return err
	}
	for _, others := range pick(b, []int{2}, []int{10, 300}) {
		if err = h.fill(ctx, others); err == nil {
			err = h.startToElement(ctx, b)
		}
		if err != nil {
			return closeAll(fmt.Errorf("%d containers: %w", others, err), h)
		}
	}
	return closeAll(h.cold(ctx, b), h)
}

// startToElement measures from the time that the engine stamps on a `start`
// event to the moment at which the kernel tells its listeners of the element of
// the container's port, which may be before: of a container that is new, and of
// one that is started again. The yardsticks are when the same event reaches
// somebody who does nothing but listen, and a commit of one element.
func (h *host) startToElement(ctx context.Context, b *bench) error {
	f, err := h.lab.Firewall(lab.FirewallOptions{Bin: b.bin, Engine: h.engine})
	if err != nil {
		return err
	}
	if err := errors.Join(f.WritePolicy("version: 1\n"), f.Start(ctx)); err != nil {
		return err
	}
	defer func() { _ = f.Stop(ctx) }()
	told, err := h.startEvents(ctx)
	if err != nil {
		return err
	}
	defer told.close()
	if err := h.lab.Host.NFT(ctx, fmt.Sprintf("table inet %s {\nset %s { type ipv4_addr; }\n}\n", committerTable, committerSet)); err != nil {
		return err
	}
	bare, err := newCommitter(h.lab.Host.Namespace)
	if err != nil {
		return err
	}
	defer bare.close()
	const name = "web"
	defer func() { _ = h.docker(context.WithoutCancel(ctx), "rm", "-f", name) }()
	var fresh, again startTimes
	for round := range pick(b, 2, 50) {
		// Each has a port of its own, by which it is known whatever its address.
		port := uint16(2000 + round)
		added, err := listenFor(h.lab.Host.Namespace, portKey(port))
		if err != nil {
			return err
		}
		start := func(into *startTimes, docker ...string) error {
			return into.round(h.docker(ctx, docker...), told, added, bare)
		}
		err = start(&fresh, "run", "-d", "--name", name, "-p", fmt.Sprintf("8080:%d", port), lab.Image)
		if err == nil {
			err = h.halt(ctx, name)
		}
		added.forget()
		if err == nil {
			err = start(&again, "start", name)
		}
		added.close()
		if err = errors.Join(err, h.docker(ctx, "rm", "-f", name)); err != nil {
			return err
		}
	}
	fresh.report(b, "of a new container", h.others)
	again.report(b, "of one started again", h.others)
	return nil
}

// startTimes are the figures of some starts, in ms.
type startTimes struct{ whole, over, yard []float64 }

// round notes one start. err is that of the command that began it.
func (t *startTimes) round(err error, told *startEvents, added *elements, bare *committer) error {
	if err != nil {
		return err
	}
	event, err := told.next()
	if err != nil {
		return err
	}
	present, err := added.next()
	if err != nil {
		return err
	}
	commit, err := bare.commit()
	if err != nil {
		return err
	}
	t.whole = append(t.whole, milliseconds(present.Sub(event.stamp)))
	t.yard = append(t.yard, milliseconds(event.came.Sub(event.stamp)+commit))
	t.over = append(t.over, milliseconds(present.Sub(event.came)-commit))
	return nil
}

func (t *startTimes) report(b *bench, which string, others int) {
	for _, q := range []struct {
		name  string
		q     float64
		reach float64
	}{{"p50", 0.5, 1}, {"p99", 0.99, 4}} {
		b.add(row{
			What: fmt.Sprintf("start event to element %s, %d others run, %s", which, others, q.name), Size: others,
			Figure: quantile(t.whole, q.q), Unit: "ms", Than: "event + one-element commit", Yardstick: quantile(t.yard, q.q),
			Reach: fmt.Sprintf("at most %g ms over, is %s", q.reach, number(quantile(t.over, q.q))),
		}, quantile(t.over, q.q) <= q.reach)
	}
}

func (h *host) halt(ctx context.Context, name string) error {
	return errors.Join(h.docker(ctx, "kill", name), h.docker(ctx, "wait", name))
}

// startEvent is a start event with the engine's time and that of its arrival.
type startEvent struct{ stamp, came time.Time }

// startEvents follows the engine's start events as a bare subscriber does.
type startEvents struct {
	body io.Closer
	list chan startEvent
}

func (h *host) startEvents(ctx context.Context) (*startEvents, error) {
	resp, err := h.get(ctx, "/events?filters="+url.QueryEscape(`{"event":["start"]}`))
	if err != nil {
		return nil, err
	}
	s := &startEvents{body: resp.Body, list: make(chan startEvent, 64)}
	go func() {
		defer close(s.list)
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			e := startEvent{came: time.Now()}
			var line struct{ TimeNano int64 }
			if json.Unmarshal(lines.Bytes(), &line) == nil {
				e.stamp = time.Unix(0, line.TimeNano)
				s.list <- e
			}
		}
	}()
	return s, nil
}

func (s *startEvents) next() (startEvent, error) {
	select {
	case e, ok := <-s.list:
		if ok {
			return e, nil
		}
	case <-time.After(20 * time.Second):
	}
	return startEvent{}, errors.New("the engine told of no start")
}

func (s *startEvents) close() { _ = s.body.Close() }

// get asks an engine's API over its socket.
func (h *host) get(ctx context.Context, path string) (*http.Response, error) {
	return ask(ctx, strings.TrimPrefix(h.engine.Host(), "unix://"), path)
}

func ask(ctx context.Context, socket, path string) (*http.Response, error) {
	client := socketClient(socket)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine"+path, nil)
	if err != nil {
		return nil, err
	}
	return client.Do(req)
}

// socketClient speaks HTTP over a socket, each request over a connection of its
// own.
func socketClient(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}
}

// listCall asks an engine once what runs, and reads the answer as a client has
// to that wants to know the ports.
func listCall(ctx context.Context, socket string) (time.Duration, error) {
	return wall(func() error {
		resp, err := ask(ctx, socket, "/containers/json")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var list []struct {
			ID              string `json:"Id"`
			Names           []string
			Labels          map[string]string
			Ports           []struct{ IP, Type string }
			NetworkSettings struct {
				Networks map[string]struct{ NetworkID, IPAddress string }
			}
		}
		return json.NewDecoder(resp.Body).Decode(&list)
	})
}

// cold measures from the start of the process to the moment at which the
// containers that run have their elements, where no table stood.
func (h *host) cold(ctx context.Context, b *bench) error {
	c, err := h.engine.Container(ctx, otherName(h.others-1))
	if err != nil {
		return err
	}
	prepare := func() (*lab.Firewall, error) {
		f, err := h.lab.Firewall(lab.FirewallOptions{Bin: b.bin, Engine: h.engine})
		if err != nil {
			return nil, err
		}
		return f, f.WritePolicy("version: 1\n")
	}
	return coldStarts(ctx, b, coldCase{
		what: fmt.Sprintf("cold start, %d real containers", h.others), host: h.lab.Host, prepare: prepare,
		socket: strings.TrimPrefix(h.engine.Host(), "unix://"), key: elementKey(c.Addr4("bridge"), 80),
	})
}

// coldFake is cold with more containers than a real engine can start here.
func coldFake(ctx context.Context, b *bench) error {
	boxes := pick(b, 50, 5000)
	s, err := newStage(ctx, b, portsEach)
	if err != nil {
		return err
	}
	prepare := func() (*lab.Firewall, error) {
		err := s.prepareFirewall(b, "version: 1\n", boxes, 1)
		return s.firewall, err
	}
	_, err = prepare()
	if err == nil {
		err = coldStarts(ctx, b, coldCase{
			what: fmt.Sprintf("cold start, %d containers of a fake engine", boxes), host: s.lab.Host, prepare: prepare,
			socket: s.engine.socket, key: elementKey(boxAddr(boxes-1), firstPort),
		})
	}
	return closeAll(err, s)
}

type coldCase struct {
	what    string
	host    *lab.Node
	prepare func() (*lab.Firewall, error) // with no state
	socket  string                        // of the engine
	key     []byte                        // of an element that tells that all are there
}

func coldStarts(ctx context.Context, b *bench, c coldCase) error {
	asker, err := newAsker(c.host.Namespace, "published4", c.key)
	if err != nil {
		return err
	}
	defer asker.close()
	figures, err := inTurn(pick(b, 1, 7), []variant{
		{"list call", func() (float64, error) {
			took, err := listCall(ctx, c.socket)
			return milliseconds(took), err
		}},
		{"nftfw", func() (float64, error) {
			f, err := c.prepare()
			if err != nil {
				return 0, err
			}
			if o := f.Exec(ctx, "down", "--yes"); o.Status != 0 {
				return 0, errors.New(o.String())
			}
			began := time.Now()
			if err := f.Launch(ctx); err != nil {
				return 0, err
			}
			present, err := asker.wait(ctx)
			return milliseconds(present.Sub(began)), errors.Join(err, f.WaitReady(ctx, true), f.Stop(ctx))
		}},
	})
	if err != nil {
		return err
	}
	list, took := median(figures[0]), median(figures[1])
	b.add(row{
		What: c.what, Figure: took, Unit: "ms", Than: "one list call", Yardstick: list,
		Reach: fmt.Sprintf("at most 1.3 times + 50 ms = %s", number(1.3*list+50)),
	}, took <= 1.3*list+50)
	return nil
}
