package sockets

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestActivation has this process stand for init: it listens, and hands the socket
// to a process that serves for a while.
func TestActivation(t *testing.T) {
	dir := t.TempDir()
	place, link := filepath.Join(dir, "run"), filepath.Join(dir, "link")
	if err := os.Mkdir(place, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(place, link); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(place, "engine.sock")
	asked := map[string]*Activation{} // one for each path, as its user has it
	expect := func(when, path string, want bool) {
		t.Helper()
		if asked[path] == nil {
			asked[path] = NewActivation(path)
			asked[path].init = os.Getpid()
		}
		if got := asked[path].Starts(); got != want {
			t.Errorf("%s: a connection to %s starts a service: %v, want %v", when, path, got, want)
		}
	}
	expect("nobody listens", path, false)

	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	expect("listening", path, true)
	expect("through a link", filepath.Join(link, "engine.sock"), true)
	expect("another socket", filepath.Join(place, "other.sock"), false)
	if NewActivation(path).Starts() {
		t.Error("this process is taken for init")
	}

	fd, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	service := exec.CommandContext(t.Context(), "sleep", "600")
	service.ExtraFiles = []*os.File{fd}
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	_ = fd.Close()
	expect("the service runs", path, false)
	if asked[path].file == "" {
		t.Error("who serves is not remembered")
	}
	expect("the service still runs", path, false)
	_ = service.Process.Kill()
	_ = service.Wait()
	expect("the service has ended", path, true)

	_ = l.Close()
	expect("closed", path, false)
}
