package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
	"github.com/nftfw/nftfw/integration/vm/remote"
)

// Options describe a machine. All must be set.
type Options struct {
	Image Image
	Name  string // also its host name, and that of its tap: at most 12 letters
	// The addresses of its eth0 on the wire.
	V4, V6 netip.Addr
}

// Machine is an emulated computer on the wire of a lab. Its methods may be used
// concurrently, except those that turn it on and off.
type Machine struct {
	Options
	MAC net.HardwareAddr // of its eth0

	lab  *lab.Lab
	dir  string
	cmd  *exec.Cmd
	end  chan struct{} // closed when the emulator has ended
	exit error         // valid once end is closed
	port *remote.Client
}

// Times that a machine may take. The emulator has all the work of a processor
// to do, and may share its own with others.
const (
	bootTime = 10 * time.Minute
	haltTime = 4 * time.Minute
	plugTime = 30 * time.Second
)

// processor has what makes checksums, ciphers and searches for strings quick: an
// engine that starts does little else.
const processor = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+aes,+pclmulqdq"

// memory of a machine, in MiB.
const memory = "1024"

// serial tells the machines of this process apart.
var serial atomic.Uint32

// New makes a machine with a disk like the image's. It is off. Closing the lab
// removes it.
func New(ctx context.Context, l *lab.Lab, o Options) (*Machine, error) {
	n := serial.Add(1)
	m := &Machine{
		Options: o, lab: l,
		dir: filepath.Join(l.Dir(), fmt.Sprintf("%s-%d", o.Name, n)),
		// 02 says that the address was assigned locally (IEEE 802).
		MAC: net.HardwareAddr{0x02, 0x6e, 0x66, 0x74, byte(n >> 8), byte(n)},
	}
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		return nil, err
	}
	if err := l.Tap(ctx, o.Name); err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2",
		"-b", o.Image.file("disk.img"), "-F", "raw", m.disk()).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("make disk of %s: %w: %s", o.Name, err, out)
	}
	return m, nil
}

func (m *Machine) disk() string    { return filepath.Join(m.dir, "disk.qcow2") }
func (m *Machine) console() string { return filepath.Join(m.dir, "console.log") }

// On turns the machine on, with files put on its disk first. It does not wait
// for more than the emulator.
func (m *Machine) On(ctx context.Context, files ...File) error {
	if err := m.writeInitrd(append(m.network(), files...)); err != nil {
		return err
	}
	socket := filepath.Join(m.dir, "agent.sock")
	if err := os.RemoveAll(socket); err != nil {
		return err
	}
	if err := m.start(socket); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, plugTime)
	defer cancel()
	var conn net.Conn
	err := lab.Poll(ctx, 10*time.Millisecond, func() error {
		if !m.Running() {
			cancel()
			return fmt.Errorf("the emulator has ended: %w", m.exit)
		}
		var (
			d   net.Dialer
			err error
		)
		conn, err = d.DialContext(ctx, "unix", socket)
		return err
	})
	if err != nil {
		return fmt.Errorf("turn on %s: %w\n%s", m.Name, err, m.Console())
	}
	m.port = remote.NewClient(conn)
	return nil
}

// start starts the emulator.
func (m *Machine) start(socket string) error {
	log, err := os.OpenFile(m.console(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	m.cmd = m.lab.OnWire("qemu-system-x86_64",
		// One processor: tests have two machines at a time, and processors that are
		// more than this machine's wait for each other.
		"-accel", "tcg", "-cpu", processor, "-smp", "1", "-m", memory,
		"-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", m.Image.file("kernel"), "-initrd", filepath.Join(m.dir, "initrd"),
		// eth0 whatever slot the card is in; a kernel that panics turns the
		// machine off. What guards against flaws of real processors makes an
		// emulated one slower by a fifth; AppArmor's profiles take it ten seconds.
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off apparmor=0 net.ifnames=0 systemd.ssh_auto=no systemd.getty_auto=no "+
			"systemd.mask=e2scrub_reap.service systemd.mask=systemd-logind.service TERM=dumb",
		"-chardev", "file,id=console,append=on,path="+m.console(), "-serial", "chardev:console",
		"-drive", "if=none,id=disk,format=qcow2,file="+m.disk(), "-device", "virtio-blk-pci,drive=disk",
		"-netdev", "tap,id=wire,script=no,downscript=no,ifname="+m.Name,
		"-device", "virtio-net-pci,netdev=wire,romfile=,mac="+m.MAC.String(),
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,server=on,wait=off,path="+socket,
		"-device", "virtserialport,chardev=agent,name=nftfw.agent",
	)
	m.cmd.Stdout, m.cmd.Stderr = log, log
	// Should the tests be killed, the machine goes with them.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	m.end = make(chan struct{})
	started := make(chan error)
	go func() {
		// The signal comes when the thread ends that started the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := m.cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		m.exit = m.cmd.Wait()
		close(m.end)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start the emulator of %s: %w", m.Name, err)
	}
	return nil
}

// Running reports whether the machine is on.
func (m *Machine) Running() bool {
	if m.end == nil {
		return false
	}
	select {
	case <-m.end:
		return false
	default:
		return true
	}
}

// Boot turns the machine on and waits until systemd has started what it was
// told to. That a unit failed is no error.
func (m *Machine) Boot(ctx context.Context, files ...File) error {
	if err := m.On(ctx, files...); err != nil {
		return err
	}
	return m.WaitBooted(ctx)
}

// WaitBooted waits until systemd has started what it was told to.
func (m *Machine) WaitBooted(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	// Its exit status says whether all units are well.
	_, err := m.run(ctx, remote.Command{Argv: []string{"systemctl", "is-system-running", "--wait"}, Timeout: bootTime})
	if err != nil {
		return fmt.Errorf("boot %s: %w\n%s", m.Name, err, m.Console())
	}
	return nil
}

// run runs a command, as soon as the machine has come as far as its agent. It
// gives up when the machine goes off.
func (m *Machine) run(ctx context.Context, c remote.Command) (remote.Output, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-m.end:
			cancel(errors.New("the machine went off"))
		case <-ctx.Done():
		}
	}()
	return m.port.Run(ctx, c)
}

// Do runs a command on the machine and returns what it left.
func (m *Machine) Do(ctx context.Context, argv ...string) (remote.Output, error) {
	return m.run(ctx, remote.Command{Argv: argv})
}

// Run runs a command on the machine that must exit 0, and returns what it
// printed on stdout.
func (m *Machine) Run(ctx context.Context, argv ...string) (string, error) {
	out, err := m.run(ctx, remote.Command{Argv: argv})
	return out.Stdout, cmp.Or(err, out.Err(argv...))
}

// Shell runs a script on the machine that must exit 0, and returns what it
// printed on stdout.
func (m *Machine) Shell(ctx context.Context, script string) (string, error) {
	return m.Run(ctx, "sh", "-euc", script)
}

// Cut cuts the machine's power: the emulator is killed. What the machine had
// not yet written to its disk is lost.
func (m *Machine) Cut() error {
	if !m.Running() {
		return fmt.Errorf("cut the power of %s: it is off", m.Name)
	}
	if err := m.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("cut the power of %s: %w", m.Name, err)
	}
	<-m.end
	return m.port.Close()
}

// Off shuts the machine down in good order.
func (m *Machine) Off(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, haltTime)
	defer cancel()
	if _, err := m.Run(ctx, "systemctl", "--no-block", "poweroff"); err != nil {
		return err
	}
	select {
	case <-m.end:
		return m.port.Close()
	case <-ctx.Done():
		return fmt.Errorf("shut down %s: %w\n%s", m.Name, ctx.Err(), m.Console())
	}
}

// Console is what the machine has printed on its console, for people to read.
func (m *Machine) Console() string {
	text, err := os.ReadFile(m.console())
	if err != nil {
		return err.Error()
	}
	return strings.ToValidUTF8(string(text), "?")
}

// writeInitrd puts the files behind the image's initrd.
func (m *Machine) writeInitrd(files []File) (err error) {
	base, err := os.ReadFile(m.Image.file("initrd"))
	if err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(m.dir, "initrd"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// The next archive begins at a multiple of four.
	if _, err := f.Write(append(base, make([]byte, -len(base)&3)...)); err != nil {
		return err
	}
	return writePayload(f, files)
}
