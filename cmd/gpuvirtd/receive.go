package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ssh"

	"gpuvirt/config"
	"gpuvirt/internal/secret"
	"gpuvirt/p2v"
	"gpuvirt/p2v/virtp2v"
)

// Files of the credentials by which virt-p2v is let in, and of the state.
const (
	p2vPassword = "virt-p2v.password" //nolint:gosec // the name of a file
	p2vKeys     = "virt-p2v.keys"     // as authorized_keys of ssh
	p2vHostKey  = "virt-p2v_host_ed25519_key"

	minPassword = 12 // bytes
	listenAgain = 5 * time.Second
)

// receive takes in servers that were started from virt-p2v, until the context ends. What is wrong
// with that keeps the rest of the daemon from nothing.
func receive(ctx context.Context, c config.Config, migrations *p2v.Migrations, log *slog.Logger) {
	for {
		err := receiveOn(ctx, c, migrations, log)
		if ctx.Err() != nil {
			return
		}
		log.Error("virt-p2v is not served, and that is tried again", "address", c.P2VListen, "err", err)
		select {
		case <-time.After(listenAgain):
		case <-ctx.Done():
			return
		}
	}
}

func receiveOn(ctx context.Context, c config.Config, migrations *p2v.Migrations, log *slog.Logger) error {
	key, err := hostKey(filepath.Join(c.StateDir, p2vHostKey))
	if err != nil {
		return err
	}
	socket, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.P2VListen)
	if err != nil {
		return err
	}
	if _, err := admission(c.Credentials); err != nil {
		log.Warn("virt-p2v is not let in until this is mended", "err", err)
	}
	log.Info("virt-p2v is served", "address", socket.Addr().String(), "host_key", ssh.FingerprintSHA256(key.PublicKey()))
	return virtp2v.New(virtp2v.Options{
		HostKey: key, Log: log,
		Admit:  func() (virtp2v.Admission, error) { return admission(c.Credentials) },
		Arrive: migrations.Arrive,
	}).Serve(ctx, socket)
}

// admission reads who is let in. It is read at each login, so that a password that was changed
// counts at once.
func admission(credentials string) (virtp2v.Admission, error) {
	var a virtp2v.Admission
	root, err := os.OpenRoot(credentials)
	if err != nil {
		return a, fmt.Errorf("cannot tell who may come by virt-p2v: %w", err)
	}
	defer root.Close() //nolint:errcheck // only read
	cannot := func(file string, err error) (virtp2v.Admission, error) {
		return virtp2v.Admission{}, fmt.Errorf("cannot tell who may come by virt-p2v: %s: %w", filepath.Join(credentials, file), err)
	}
	password, err := secret.Read(root, p2vPassword)
	switch password = bytes.TrimRight(password, "\r\n"); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return cannot(p2vPassword, err)
	case len(password) < minPassword:
		return cannot(p2vPassword, fmt.Errorf("it has fewer than %d characters", minPassword))
	default:
		a.Password = string(password)
	}
	text, err := secret.Read(root, p2vKeys)
	switch keys, keysErr := keysIn(text); {
	case errors.Is(err, fs.ErrNotExist):
	case cmp.Or(err, keysErr) != nil:
		return cannot(p2vKeys, cmp.Or(err, keysErr))
	default:
		a.Keys = keys
	}
	if a.Password == "" && len(a.Keys) == 0 {
		return a, fmt.Errorf("cannot tell who may come by virt-p2v: neither %s nor %s is in %s", p2vPassword, p2vKeys, credentials)
	}
	return a, nil
}

// keysIn are those of a file, one a line. One that cannot be read is not passed over: somebody
// would wonder why it does not count.
func keysIn(text []byte) (keys []ssh.PublicKey, err error) {
	for i, line := range bytes.Split(text, []byte("\n")) {
		if line = bytes.TrimSpace(line); len(line) == 0 || line[0] == '#' {
			continue
		}
		key, _, options, _, err := ssh.ParseAuthorizedKey(line)
		if err == nil && len(options) > 0 {
			err = fmt.Errorf("the options %q are not known here", options)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("there is no key in it")
	}
	return keys, nil
}

// hostKey is by which this host is known, made where there is none: virt-p2v that runs refuses a
// host whose key has changed.
func hostKey(path string) (ssh.Signer, error) {
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // only read
	text, err := secret.Read(root, filepath.Base(path))
	if errors.Is(err, fs.ErrNotExist) {
		text, err = newHostKey(path)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot use the host key %q: %w", path, err)
	}
	key, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, fmt.Errorf("cannot use the host key %q: %w", path, err)
	}
	return key, nil
}

func newHostKey(path string) ([]byte, error) {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, "gpuvirt virt-p2v")
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(block)
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // with mode 0600
	if err != nil {
		return nil, err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	return text, nil
}
