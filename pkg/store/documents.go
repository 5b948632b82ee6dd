package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
)

// The first line of the policy file carries the checksum of everything after
// it, the second the name. Both are comments to YAML, and
// "tail -n +2 policy.yaml | sha256sum" checks the file by hand.
const (
	sumPrefix  = "# nftfw: last good policy; sha256 of what follows this line: "
	namePrefix = "# read from "
)

const policyRemedy = "remove it; the next policy that is applied is kept anew"

// SavePolicy keeps src, the policy file that was called name, as the last
// good one. It is on the disk when SavePolicy returns nil; after an error the
// former one stands. The caller holds the lock.
func (s *Store) SavePolicy(name string, src []byte) error {
	body := append([]byte(namePrefix+strconv.Quote(name)+"\n"), src...)
	sum := sha256.Sum256(body)
	return s.replace(policyFile, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s%x\n%s", sumPrefix, sum, body)
		return err
	}, "")
}

// RemovePolicy forgets the last good policy. The caller holds the lock.
func (s *Store) RemovePolicy() error { return s.remove(policyFile) }

// LoadPolicy returns the last good policy as it was given to SavePolicy. The
// error wraps fs.ErrNotExist when there is none, and is a *DamagedError when
// there is one that cannot be used.
func (s *Store) LoadPolicy() (src []byte, name string, err error) {
	data, err := s.load(policyFile, policyRemedy)
	if err != nil {
		return nil, "", err
	}
	src, name, err = splitPolicy(data)
	if err != nil {
		return nil, "", damaged(s.path(policyFile), err, policyRemedy)
	}
	return src, name, nil
}

func splitPolicy(data []byte) (src []byte, name string, err error) {
	head, body, _ := bytes.Cut(data, []byte("\n"))
	sumText, ok := bytes.CutPrefix(head, []byte(sumPrefix))
	if !ok {
		return nil, "", errors.New("its checksum is missing")
	}
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != string(sumText) {
		return nil, "", errors.New("it was altered or cut short: the checksum differs")
	}
	quoted, src, _ := bytes.Cut(body, []byte("\n"))
	quoted, _ = bytes.CutPrefix(quoted, []byte(namePrefix))
	if name, err = strconv.Unquote(string(quoted)); err != nil {
		return nil, "", errors.New("the policy's name is missing")
	}
	return src, name, nil
}

// SaveSnapshot keeps a JSON document that tells what runs on the host. It is
// replaced whole, but a power cut may bring the former one back, or none: it
// changes often and is found out anew. The caller holds the lock.
func (s *Store) SaveSnapshot(doc []byte) error {
	temp, err := s.writeTemp(snapshotFile, writeBytes(doc), nil)
	if err == nil {
		if err = os.Rename(temp, s.path(snapshotFile)); err != nil {
			err = errors.Join(err, os.Remove(temp))
		}
	}
	if err != nil {
		return fmt.Errorf("save %s: %w", s.path(snapshotFile), err)
	}
	return nil
}

// LoadSnapshot returns what SaveSnapshot kept. The error wraps fs.ErrNotExist
// when there is none, and is a *DamagedError when it is no JSON document.
func (s *Store) LoadSnapshot() ([]byte, error) {
	return s.loadJSON(snapshotFile, "nothing needs to be done: it is written anew at the next change")
}

// SavePending keeps a JSON document about an apply that waits for its
// confirm, on the disk; nil removes it. The caller holds the lock.
func (s *Store) SavePending(doc []byte) error {
	if doc == nil {
		return s.remove(pendingFile)
	}
	return s.replace(pendingFile, writeBytes(doc), "")
}

// LoadPending returns what SavePending kept, with errors as LoadSnapshot's.
func (s *Store) LoadPending() ([]byte, error) {
	return s.loadJSON(pendingFile, "remove it, then apply the policy again")
}

func (s *Store) loadJSON(name, remedy string) ([]byte, error) {
	doc, err := s.load(name, remedy)
	if err == nil && !json.Valid(doc) {
		return nil, damaged(s.path(name), errors.New("it is no JSON document"), remedy)
	}
	return doc, err
}

// load reads a file. A missing one is fs.ErrNotExist, an empty or unreadable
// one a *DamagedError.
func (s *Store) load(name, remedy string) ([]byte, error) {
	path := s.path(name)
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("load %s: %w", path, fs.ErrNotExist)
	case err != nil:
		return nil, damaged(path, err, remedy)
	case len(data) == 0:
		return nil, damaged(path, errors.New("it is empty"), remedy)
	}
	return data, nil
}

func writeBytes(b []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	}
}
