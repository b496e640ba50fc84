// Package guest works out what is done to a server that becomes a VM: the edits of its
// disks before they start for the first time, and the definition of the VM. It owns no
// state and touches nothing: what it answers hangs only on the inspection, the plan and
// what is asked for, and not on the order of their lists.
//
// What becomes of each change of a plan:
//
//	virtio-drivers       virt-v2v builds the initramfs; an edit installs the guest agent
//	serial-console       an edit: a login on the serial port. The kernel's console is a person's
//	boot-fallback        edits: copies of the boot loader
//	device-names         virt-v2v in fstab; an edit for each row of crypttab
//	selinux-relabel      virt-v2v
//	tpm-binding          a person
//	nic-names            an edit for each NIC that the VM has
//	built-networks       a person
//	nouveau              an edit
//	driver-modules       an edit for each line about NVIDIA's modules
//	driver-remove        an edit, for the first start
//	driver-vgpu          edits for the first start, where an operator brought packages
//	driver-headers       a person, before the move
//	driver-install       a person
//	driver-keep          nobody: there is nothing to do
//	driver-flavour       a person
//	driver-both          a person
//	licence              edits, where an operator brought a token
//	persistence-daemon   an edit for each unit
//	mig-scripts          an edit for each unit or line
//	gpu-settings         an edit for each unit or line
//	fabric-manager       an edit for each unit
//	data-centre-agents   an edit for each unit
//	xorg-busid           an edit for each line
//	cdi-files            NVIDIA's own unit, where it is there; else a person
//	engines              a person
//	hugepages            a person
//	module-key           a person
//	pins                 an edit for each line whose new value is certain
//	pins-by-hand         a person, for each with its own word why
//	hardware-services    an edit for each unit
//	identity             nobody: it is kept
//
// A change that is a person's in the plan stays one.
//
// The inspection comes from a machine that nobody trusts. What it says becomes part of an
// edit only where it is a name that convert.Edit takes, and lines of its files travel as
// data; all else is left to a person, with a word why.
package guest
