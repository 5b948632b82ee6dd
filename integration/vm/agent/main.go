// Command agent runs in a machine of the tests: it turns what arrives on the
// machine's virtio port nftfw.agent into commands, and answers with what they
// printed. It never uses the network.
package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nftfw/nftfw/integration/vm/remote"
)

// port is the name of the port, as the emulator was told.
const port = "nftfw.agent"

// portWait is how long the port may take to appear: its driver is loaded while
// the machine boots.
const portWait = 2 * time.Minute

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := serve(); err != nil {
		log.Error("serve commands", "err", err)
		os.Exit(1)
	}
}

func serve() error {
	path, err := findPort()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return remote.Serve(f)
}

// findPort waits for the port and returns its device. sysfs has the names of
// ports; the links below /dev/virtio-ports are udev's, which may not run yet.
func findPort() (string, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(portWait); time.Now().Before(end); <-tick.C {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return "", err
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err == nil && strings.TrimSpace(string(text)) == port {
				return filepath.Join("/dev", filepath.Base(filepath.Dir(name))), nil
			}
		}
	}
	return "", fmt.Errorf("find virtio port %s: there is none", port)
}
