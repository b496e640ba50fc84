//go:build lab

// Command init is process 1 of the lab's inner guest. It tells on the serial
// console which PCI devices come and go, from the kernel's own uevents, and
// powers off when the ACPI power button is pressed.
//
// Lines, each of them whole, and few: one character takes a millisecond on an
// emulated serial port. The devices of bus 0 are the board's own and left out.
//
//	GUEST up
//	GUEST pci add 0000:02:00.0 1234:1111 class 0x038000
//	GUEST pci remove 0000:02:00.0
//	GUEST poweroff
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"unsafe"
)

// The order matters to nobody but the modules: button needs none of the
// others, evdev turns what button says into /dev/input/event*.
var modules = []string{"button", "evdev"}

var console sync.Mutex

func say(format string, args ...any) {
	console.Lock()
	defer console.Unlock()
	fmt.Fprintf(os.Stdout, "GUEST "+format+"\n", args...)
}

func main() {
	for _, m := range [][3]string{
		{"proc", "/proc", "proc"},
		{"sysfs", "/sys", "sysfs"},
		{"devtmpfs", "/dev", "devtmpfs"},
	} {
		os.MkdirAll(m[1], 0o755)
		if err := syscall.Mount(m[0], m[1], m[2], 0, ""); err != nil && err != syscall.EBUSY {
			say("cannot mount %s: %v", m[1], err)
		}
	}

	// Listen before looking, so that no device slips in between.
	events, err := listen()
	if err != nil {
		say("cannot listen to uevents: %v", err)
	}
	for _, m := range modules {
		if err := load("/modules/" + m + ".ko"); err != nil {
			say("cannot load %s: %v", m, err)
		}
	}

	g := guest{seen: map[string]bool{}}
	addrs, _ := filepath.Glob("/sys/bus/pci/devices/*")
	for _, a := range addrs {
		g.add(filepath.Base(a))
	}
	buttons, _ := filepath.Glob("/dev/input/event*")
	for _, b := range buttons {
		go watchButton(b)
	}
	say("up")

	buf := make([]byte, 64<<10)
	for {
		n, _, err := syscall.Recvfrom(events, buf, 0)
		if err == syscall.EINTR || err == syscall.ENOBUFS {
			continue
		}
		if err != nil {
			say("cannot read uevents: %v", err)
			select {}
		}
		g.event(buf[:n])
	}
}

type guest struct{ seen map[string]bool }

func (g guest) add(addr string) {
	if g.seen[addr] || strings.HasPrefix(addr, "0000:00:") {
		return
	}
	g.seen[addr] = true
	read := func(attr string) string {
		b, _ := os.ReadFile("/sys/bus/pci/devices/" + addr + "/" + attr)
		return strings.TrimPrefix(strings.TrimSpace(string(b)), "0x")
	}
	say("pci add %s %s:%s class 0x%s", addr, read("vendor"), read("device"), read("class"))
}

func (g guest) event(msg []byte) {
	env := map[string]string{}
	for _, kv := range bytes.Split(msg, []byte{0}) {
		if k, v, ok := strings.Cut(string(kv), "="); ok {
			env[k] = v
		}
	}
	switch {
	case env["SUBSYSTEM"] == "pci" && env["ACTION"] == "add":
		g.add(env["PCI_SLOT_NAME"])
	case env["SUBSYSTEM"] == "pci" && env["ACTION"] == "remove":
		if !g.seen[env["PCI_SLOT_NAME"]] {
			return
		}
		delete(g.seen, env["PCI_SLOT_NAME"])
		say("pci remove %s", env["PCI_SLOT_NAME"])
	case env["SUBSYSTEM"] == "input" && env["ACTION"] == "add" && strings.HasPrefix(env["DEVNAME"], "input/event"):
		go watchButton("/dev/" + env["DEVNAME"])
	}
}

func listen() (int, error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, syscall.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return 0, err
	}
	syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUF, 1<<20)
	return fd, syscall.Bind(fd, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK, Groups: 1})
}

func load(path string) error {
	image, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil // built into this kernel
	}
	if err != nil {
		return err
	}
	params := []byte{0}
	_, _, errno := syscall.Syscall(syscall.SYS_INIT_MODULE,
		uintptr(unsafe.Pointer(&image[0])), uintptr(len(image)), uintptr(unsafe.Pointer(&params[0])))
	if errno != 0 && errno != syscall.EEXIST {
		return errno
	}
	return nil
}

// watchButton reads struct input_event: 16 bytes of time, then type, code and
// value.
func watchButton(path string) {
	const evKey, keyPower = 1, 116
	f, err := os.Open(path)
	if err != nil {
		say("cannot open %s: %v", path, err)
		return
	}
	defer f.Close()
	buf := make([]byte, 24*16)
	for {
		n, err := f.Read(buf)
		if err != nil {
			return
		}
		for e := buf[:n]; len(e) >= 24; e = e[24:] {
			if binary.LittleEndian.Uint16(e[16:]) == evKey &&
				binary.LittleEndian.Uint16(e[18:]) == keyPower &&
				binary.LittleEndian.Uint32(e[20:]) == 1 {
				say("poweroff")
				syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
			}
		}
	}
}
