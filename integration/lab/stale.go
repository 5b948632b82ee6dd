package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// envMark is set in the environment of every process that belongs to a lab, to
// the lab's name: that finds a container's process in whatever namespaces it
// is.
const envMark = "NFTFW_LAB"

// prefix begins the name of every lab. The whole name is prefixPID-N.
const prefix = "nftfwlab"

// ownerOf returns the process id in the name of a lab or of a thing of a lab.
func ownerOf(name string) (pid int, ok bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, false
	}
	digits, _, ok := strings.Cut(rest, "-")
	if !ok {
		return 0, false
	}
	pid, err := strconv.Atoi(digits)
	return pid, err == nil
}

// abandoned reports whether the file or folder was made for a lab whose
// process is gone.
func abandoned(path string) bool {
	pid, ok := ownerOf(filepath.Base(path))
	if !ok {
		return false
	}
	proc, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid)))
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	thing, err2 := os.Lstat(path)
	// A process that is younger than the thing has merely got the number.
	return err == nil && err2 == nil && proc.ModTime().After(thing.ModTime().Add(time.Second))
}

// removeStale removes the labs of processes that are gone.
func removeStale(ctx context.Context) error {
	stale := map[string]bool{}
	for _, dir := range []string{netnsDir, os.TempDir()} {
		found, err := filepath.Glob(filepath.Join(dir, prefix+"*"))
		if err != nil {
			return fmt.Errorf("look for abandoned labs: %w", err)
		}
		for _, path := range found {
			if abandoned(path) {
				stale[labOf(filepath.Base(path))] = true
			}
		}
	}
	var errs []error
	for name := range stale {
		errs = append(errs, remove(ctx, name))
	}
	return errors.Join(errs...)
}

// labOf cuts the name of a thing of a lab down to the lab's: prefixPID-N.
func labOf(name string) string {
	parts := strings.SplitN(name, "-", 3)
	return strings.Join(parts[:min(2, len(parts))], "-")
}

// remove takes a lab away whatever state it is in: its processes, mounts,
// namespaces and files. Another process may be doing the same.
func remove(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	err := killMarked(ctx, name)
	dir := filepath.Join(os.TempDir(), name)
	err = errors.Join(err, unmountBelow(dir), forgetSandboxes(dir), os.RemoveAll(dir))
	spaces, globErr := filepath.Glob(filepath.Join(netnsDir, name+"-*"))
	err = errors.Join(err, globErr)
	for _, ns := range spaces {
		_, delErr := run(exec.CommandContext(ctx, "ip", "netns", "del", filepath.Base(ns)))
		if _, gone := os.Lstat(ns); delErr != nil && !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, delErr)
		}
	}
	if err != nil {
		return fmt.Errorf("remove lab %s: %w", name, err)
	}
	return nil
}

// killMarked kills the processes that bear a lab's mark until there are none:
// in their environment or, as sshd writes over that, the lab's folder in their
// arguments.
// None have to be found twice: for a moment in execve(2) a process shows no
// environment.
func killMarked(ctx context.Context, name string) error {
	mark, folder := []byte(envMark+"="+name), []byte(filepath.Join(os.TempDir(), name)+"/sshd-")
	clean := 0
	return Poll(ctx, 10*time.Millisecond, func() error {
		procs, err := filepath.Glob("/proc/[0-9]*/environ")
		if err != nil {
			return err
		}
		left := 0
		for _, p := range procs {
			env, err := os.ReadFile(p)
			if err != nil {
				continue // gone
			}
			args, err := os.ReadFile(filepath.Join(filepath.Dir(p), "cmdline"))
			if err != nil || !bytes.Contains(args, folder) &&
				!slices.ContainsFunc(bytes.Split(env, []byte{0}), func(v []byte) bool { return bytes.Equal(v, mark) }) {
				continue // a kernel thread, or somebody else's
			}
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			if err != nil {
				continue
			}
			left++
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill %d: %w", pid, err)
			}
		}
		if left > 0 {
			clean = 0
			return fmt.Errorf("%d processes of lab %s are still there", left, name)
		}
		if clean++; clean < 2 {
			return fmt.Errorf("look once more for processes of lab %s", name)
		}
		return nil
	})
}

// unmountBelow unmounts what is mounted below a folder, the innermost first.
func unmountBelow(dir string) error {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(info)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	slices.Reverse(points)
	for _, p := range points {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", p, err)
		}
	}
	return nil
}
