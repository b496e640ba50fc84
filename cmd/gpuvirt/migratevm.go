package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"gpuvirt/api"
)

// vmFlags say what the VM of a migration is to be like.
type vmFlags struct {
	vm     api.VMRequest
	nics   []string
	checks []string
}

func (f *vmFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.vm.Name, "vm", "", "the `name` of the VM; that of the migration if not given")
	flags.StringVar(&f.vm.Network, "network", "", "the `network` of libvirt that the VM's NICs are plugged into")
	flags.StringVar(&f.vm.Bridge, "bridge", "", "the `bridge` of this host that they are plugged into")
	flags.StringArrayVar(&f.nics, "nic", nil, "where one NIC of the server is plugged in, as `mac=network:name`, mac=bridge:name or mac=none; more than once for several")
	flags.StringVar(&f.vm.CPU, "cpu", "", "the VM's `model` of processor; that of this host if not given")
	flags.BoolVar(&f.vm.Emulated, "emulated", false, "emulate the processor, on a host without KVM")
	flags.StringVar(&f.vm.Convert, "convert", "", "`how` the disks become those of a VM: virt-v2v, or none where the server's system boots as a VM as it is")
	fixed(cmd, "convert", "virt-v2v", "none")
	flags.StringArrayVar(&f.checks, "check", nil, "a command that is 0 when the workload is well, as `name=command`; its words are parted by spaces, there is no shell; more than once for several")
}

// request is what was asked for, nil: nothing.
func (f *vmFlags) request(cmd *cobra.Command) (*api.VMRequest, error) {
	wrong := func(format string, args ...any) (*api.VMRequest, error) {
		return nil, &usageError{message: fmt.Sprintf(format, args...), command: cmd.CommandPath()}
	}
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
			return wrong("--nic %q: it takes a NIC and where it is plugged in, as mac=network:name, mac=bridge:name or mac=none", text)
		}
		vm.NICs = append(vm.NICs, n)
	}
	for _, text := range f.checks {
		name, command, found := strings.Cut(text, "=")
		words := strings.Fields(command)
		if !found || name == "" || len(words) == 0 {
			return wrong("--check %q: it takes a name and a command, as name=command", text)
		}
		vm.Checks = append(vm.Checks, api.CheckRequest{Name: name, Command: words})
	}
	changed := false
	for _, name := range []string{"vm", "network", "bridge", "nic", "cpu", "emulated", "convert", "check"} {
		changed = changed || cmd.Flags().Changed(name)
	}
	if !changed {
		return nil, nil //nolint:nilnil // nothing is asked for
	}
	return &vm, nil
}
