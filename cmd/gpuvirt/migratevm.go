package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"gpuvirt/api"
)

// vmFlags say what the VM of a migration is to be like.
type vmFlags struct {
	vm         api.VMRequest
	nics       []string
	checks     []string
	checksFile string

	c   *cli
	cmd *cobra.Command
}

func (f *vmFlags) add(c *cli, cmd *cobra.Command) {
	f.c, f.cmd = c, cmd
	flags := cmd.Flags()
	flags.StringVar(&f.vm.Name, "vm", "", "the `name` of the VM; that of the migration if not given")
	flags.StringVar(&f.vm.Network, "network", "", "the `network` of libvirt that the VM's NICs are plugged into")
	flags.StringVar(&f.vm.Bridge, "bridge", "", "the `bridge` of this host that they are plugged into")
	flags.StringArrayVar(&f.nics, "nic", nil, "where one NIC of the server is plugged in, as `mac=network:name`, mac=bridge:name or mac=none; more than once for several")
	flags.StringVar(&f.vm.CPU, "cpu", "", "the VM's `model` of processor; that of this host if not given")
	flags.BoolVar(&f.vm.Emulated, "emulated", false, "emulate the processor, on a host without KVM")
	flags.StringVar(&f.vm.Convert, "convert", "", "`how` the disks become those of a VM: virt-v2v, or none where the server's system boots as a VM as it is")
	fixed(cmd, "convert", "virt-v2v", "none")
	flags.StringArrayVar(&f.checks, "check", nil, "a command that is 0 when the workload is well, as `name=command`; its words are parted by spaces, and no shell reads it; more than once for several")
	flags.StringVar(&f.checksFile, "checks", "", "a `file` of checks, a YAML list of {name, command: [word, …], seconds, exit, output}: for how long it may take, the exit status that is right, and an expression (RE2) that its output matches; -: the standard input")
}

// wrong is the error of a command line that is.
func (f *vmFlags) wrong(err error) error {
	return &usageError{message: err.Error(), command: f.cmd.CommandPath()}
}

// request is what was asked for, nil: nothing.
func (f *vmFlags) request(cmd *cobra.Command) (*api.VMRequest, error) {
	vm := f.vm
	for _, text := range f.nics {
		mac, where, found := strings.Cut(text, "=")
		kind, name, _ := strings.Cut(where, ":")
		n := api.NICRequest{MAC: mac}
		switch {
		case found && kind == "network" && name != "":
			n.Network = name
		case found && kind == "bridge" && name != "":
			n.Bridge = name
		case !found || where != "none":
			return nil, f.wrong(fmt.Errorf("--nic %q: it takes a NIC and where it is plugged in, as mac=network:name, mac=bridge:name or mac=none", text))
		}
		vm.NICs = append(vm.NICs, n)
	}
	var err error
	if vm.Checks, err = f.given(); err != nil {
		return nil, err
	}
	changed := false
	for _, name := range []string{"vm", "network", "bridge", "nic", "cpu", "emulated", "convert", "check", "checks"} {
		changed = changed || cmd.Flags().Changed(name)
	}
	if !changed {
		return nil, nil //nolint:nilnil // nothing is asked for
	}
	return &vm, nil
}
