package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"gpuvirt/api"
)

// keyFlags say what encrypted volumes are opened with.
type keyFlags struct{ credentials, files []string }

func (f *keyFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.credentials, "key", nil, "what an encrypted volume is opened with, as `volume=name`: the partition that it lies on or the UUID of its header, and a file in the daemon's folder of credentials; more than once for several")
	cmd.Flags().StringArrayVar(&f.files, "passphrase-file", nil, "the same by `volume=file`, of which the first line is sent to the daemon, which holds it in memory; -: the standard input")
}

// request is what was asked for, nil: nothing.
func (f *keyFlags) request(cmd *cobra.Command) ([]api.KeyRequest, error) {
	var out []api.KeyRequest
	for _, list := range []struct {
		flag  string
		texts []string
	}{{"--key", f.credentials}, {"--passphrase-file", f.files}} {
		for _, text := range list.texts {
			volume, name, found := strings.Cut(text, "=")
			if !found || volume == "" || name == "" {
				return nil, &usageError{message: fmt.Sprintf("%s %q: it takes a volume and a file, as volume=file", list.flag, text), command: cmd.CommandPath()}
			}
			k := api.KeyRequest{Volume: volume, Credential: name}
			if list.flag != "--key" {
				passphrase, err := firstLine(cmd, name)
				if err != nil {
					return nil, err
				}
				k.Credential, k.Passphrase = "", passphrase
			}
			out = append(out, k)
		}
	}
	return out, nil
}

// firstLine is that of a file, or of the standard input.
func firstLine(cmd *cobra.Command, name string) (string, error) {
	const most = 64 << 10
	in := cmd.InOrStdin()
	if name != "-" {
		f, err := os.Open(name) //nolint:gosec // whoever calls us has named it
		if err != nil {
			return "", fmt.Errorf("cannot read a passphrase: %w", err)
		}
		defer f.Close() //nolint:errcheck // only read
		in = f
	}
	content, err := io.ReadAll(io.LimitReader(in, most))
	if err != nil {
		return "", fmt.Errorf("cannot read a passphrase: %w", err)
	}
	line, _, _ := bytes.Cut(content, []byte("\n"))
	if line = bytes.TrimSuffix(line, []byte("\r")); len(line) == 0 {
		return "", fmt.Errorf("cannot read a passphrase: the first line of %s is empty", name)
	}
	return string(line), nil
}

// keyRows show what encrypted volumes are opened with.
func keyRows(m api.Migration) (rows [][]string) {
	for _, k := range m.Keys {
		how := "a passphrase that is held in memory"
		switch {
		case k.Wanted:
			how = "a passphrase that is wanted again"
		case k.Credential != "":
			how = "credential " + k.Credential
		}
		rows = append(rows, []string{k.Volume, how})
	}
	return rows
}
