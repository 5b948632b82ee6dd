package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

// The files that the command writes, below the folder of documents.
const (
	document = "paths.md"
	picture  = "paths.svg"
)

func main() {
	dir := flag.String("docs", "docs", "folder of "+document)
	flag.Parse()
	if err := write(*dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// write brings the document and the picture in a folder up to date.
func write(dir string) error {
	path := filepath.Join(dir, document)
	text, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return err
	}
	filled, err := fill(string(text), ways)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := os.WriteFile(path, []byte(filled), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, picture), []byte(draw()), 0o644)
}
