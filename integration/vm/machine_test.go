package vm

import (
	"strings"
	"testing"

	"github.com/nftfw/nftfw/integration/lab"
)

// Without nftfw a machine's published ports are open to any neighbour: the
// other tests could see it if they were.
func TestMachine(t *testing.T) {
	for _, suite := range Suites {
		t.Run(suite, func(t *testing.T) {
			s := newSite(t, suite)
			stranger := s.neighbour("stranger", 66)
			s.must(s.Boot(s.ctx(), append(programs.Base(), Docker()...)...))
			if got := strings.TrimSpace(s.sh("uname -r")); got != s.Image.Kernel {
				t.Errorf("kernel %s runs, want %s", got, s.Image.Kernel)
			}
			s.must(s.LoadEcho(s.ctx()))
			s.sh("docker run -d --name web -p 8080:80 " + lab.Image)
			for _, to := range s.at(8080) {
				s.answers(stranger, lab.Probe{Network: "tcp", To: to})
			}
			t.Logf("engine %s; %s", s.sh("docker version --format '{{.Server.Version}}'"), s.sh("systemd-analyze time"))
			s.must(s.Off(s.ctx()))
		})
	}
}
