package vm

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
)

// File is put on a machine's disk before its systemd starts, in place of what
// is there.
type File struct {
	Path string      // absolute; not through a symbolic link such as Debian's /lib
	Mode fs.FileMode // zero: 0644
	Text string      // the contents
	From string      // or a file of this machine that has them
	Link string      // or the target of a symbolic link
}

// Enable starts a unit with the machine as `systemctl enable` would. Unit is
// the path of its file, and by the target that wants it.
func Enable(unit, by string) File {
	return File{Path: path.Join("/etc/systemd/system", by+".wants", path.Base(unit)), Link: unit}
}

// payloadRoot is the folder that init of the image copies over the root.
const payloadRoot = "payload"

// writePayload writes files as the archive that init expects: the kernel's
// buffer format, Documentation/driver-api/early-userspace/buffer-format.rst.
// Of two files with one path the later one counts.
func writePayload(w io.Writer, files []File) error {
	byPath := map[string]File{}
	for _, f := range files {
		if !path.IsAbs(f.Path) {
			return fmt.Errorf("file %q of the machine has no absolute path", f.Path)
		}
		name := payloadRoot + path.Clean(f.Path)
		byPath[name] = f
		// The kernel makes no folders by itself.
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			byPath[dir] = File{Mode: fs.ModeDir | 0o755}
		}
	}
	a := archive{w: w}
	for _, name := range slices.Sorted(maps.Keys(byPath)) { // folders first
		if err := a.add(name, byPath[name]); err != nil {
			return fmt.Errorf("archive %s: %w", name, err)
		}
	}
	return a.entry("TRAILER!!!", 0, nil)
}

// File types of cpio's mode field, as in stat(2).
const (
	cpioDir  = 0o040000
	cpioFile = 0o100000
	cpioLink = 0o120000
)

type archive struct {
	w     io.Writer
	inode int
}

func (a *archive) add(name string, f File) error {
	switch {
	case f.Mode.IsDir():
		return a.entry(name, cpioDir|f.Mode.Perm(), nil)
	case f.Link != "":
		return a.entry(name, cpioLink|0o777, []byte(f.Link))
	}
	data := []byte(f.Text)
	if f.From != "" {
		var err error
		if data, err = os.ReadFile(f.From); err != nil {
			return err
		}
	}
	return a.entry(name, cpioFile|cmp.Or(f.Mode.Perm(), 0o644), data)
}

// entry writes a header of the format "newc", the name and the contents, each
// padded to four bytes. Everything belongs to root.
func (a *archive) entry(name string, mode fs.FileMode, data []byte) error {
	a.inode++
	fields := [...]int{a.inode, int(mode), 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0}
	var b bytes.Buffer
	b.WriteString("070701")
	for _, f := range fields {
		fmt.Fprintf(&b, "%08X", f)
	}
	b.WriteString(name)
	b.WriteByte(0)
	pad(&b)
	b.Write(data)
	pad(&b)
	_, err := a.w.Write(b.Bytes())
	return err
}

func pad(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}
