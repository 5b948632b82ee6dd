package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// The neighbours' numbers: the last part of their addresses.
const (
	yourID     = 10
	officeID   = 20
	strangerID = 66
)

// stage is where the show takes place: a lab with three clients, an engine and
// nftfw.
type stage struct {
	lab      *lab.Lab
	engine   *lab.Engine
	firewall *lab.Firewall

	stranger, office, you client
}

func newStage(ctx context.Context, log *slog.Logger) (_ *stage, err error) {
	bin, err := lab.FindBinary()
	if err != nil {
		return nil, err
	}
	s := &stage{}
	if s.lab, err = lab.New(ctx, log); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	for _, c := range []struct {
		into *client
		name string
		note string
		id   uint8
	}{{&s.stranger, "stranger", "", strangerID}, {&s.office, "office", "", officeID}, {&s.you, "you", "(trusted)", yourID}} {
		node, err := s.lab.Client(ctx, c.name, c.id)
		if err != nil {
			return nil, err
		}
		*c.into = client{name: c.name, note: c.note, node: node}
	}
	if s.engine, err = s.lab.Engine(lab.EngineOptions{}); err != nil {
		return nil, err
	}
	s.firewall, err = s.lab.Firewall(lab.FirewallOptions{Bin: bin, Engine: s.engine})
	return s, err
}

// openEngine starts the engine and gives it the image of the containers.
func (s *stage) openEngine(ctx context.Context) (version string, err error) {
	if err := s.engine.Start(ctx); err != nil {
		return "", err
	}
	echo, err := lab.BuildEcho(ctx, s.lab.Dir())
	if err != nil {
		return "", err
	}
	if err := s.engine.LoadImage(ctx, echo, lab.Image); err != nil {
		return "", err
	}
	return s.engine.Docker(ctx, "version", "--format", "{{.Server.Version}}")
}

// clients are the rows of the tables.
func (s *stage) clients() []client { return []client{s.stranger, s.office, s.you} }

// closeLimit is how long the engine may take to stop its containers.
const closeLimit = 15 * time.Second

// close takes everything down. The engine goes in peace, so that the
// containers' control groups go with it; the lab removes what is left.
func (s *stage) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	if s.engine != nil {
		// What does not end by itself the lab kills.
		_ = s.engine.Stop(ctx)
	}
	return s.lab.Close()
}
