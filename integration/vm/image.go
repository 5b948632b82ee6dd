package vm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Suites are the Debian releases of which there are images: 12 with kernel 6.1,
// and 13 with kernel 6.12.
var Suites = []string{"bookworm", "trixie"}

// Image is a Debian release, ready to boot. Machines leave it as it is.
type Image struct {
	Suite  string
	Kernel string // its kernel's version, such as 6.1.0-50-amd64

	dir string
}

// BuildImage returns the image of a suite, which it builds unless that was done
// before. It is called from the folder of this package, as tests are.
func BuildImage(ctx context.Context, suite string) (Image, error) {
	cmd := exec.CommandContext(ctx, "bash", "build-image.sh", suite)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return Image{}, fmt.Errorf("build image of %s: %w: %s", suite, err, strings.TrimSpace(complaint.String()))
	}
	i := Image{Suite: suite, dir: strings.TrimSpace(string(out))}
	version, err := os.ReadFile(i.file("version"))
	if err != nil {
		return Image{}, fmt.Errorf("image of %s: %w", suite, err)
	}
	i.Kernel = strings.TrimSpace(string(version))
	return i, nil
}

// file is the path of one of the image's files; build-image.sh names them.
func (i Image) file(name string) string { return filepath.Join(i.dir, name) }
