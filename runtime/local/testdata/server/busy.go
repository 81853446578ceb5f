package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// busy does what a program may that is as it was released: it has helpers, one of which outlives whoever started it, and is a client by UDP with
// and without a peer; it compiles to memory, writes files, and takes a title. Then it serves on port 80.
func busy() {
	must := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "busy:", err)
			os.Exit(1)
		}
	}
	must(exec.Command("/bin/server", "sleep").Start())
	must(exec.Command("/bin/server", "orphan").Run())
	connected, err := net.Dial("udp4", "127.0.0.1:53")
	must(err)
	asking, err := net.ListenPacket("udp4", ":0")
	must(err)
	defer connected.Close()
	defer asking.Close()
	code, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
	must(err)
	copy(code, []byte{0xc3})
	must(os.MkdirAll("/scratch/some/where", 0o777))
	for n := range 20 {
		must(os.WriteFile(filepath.Join("/scratch/some/where", fmt.Sprint(n)), []byte("#!/bin/sh\n"), 0o666))
	}
	must(os.WriteFile("/proc/self/comm", []byte("busy: idle"), 0))
	go func() { // work that comes and goes
		for {
			exec.Command("/bin/server", "check", "/bin/server").Run()
			time.Sleep(10 * time.Millisecond)
		}
	}()
	serve("80")
}

// orphan leaves a child behind.
func orphan() {
	if err := exec.Command("/bin/server", "sleep").Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// memory runs what lies in no file.
func memory() {
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fd, err := unix.MemfdCreate("evil", 0)
	if err == nil {
		_, err = unix.Write(fd, program)
	}
	if err == nil {
		err = unix.Exec(fmt.Sprintf("/proc/self/fd/%d", fd), []string{"evil", "sleep"}, nil)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func plant(at string) {
	err := os.MkdirAll(filepath.Dir(at), 0o755)
	if err == nil {
		err = os.WriteFile(at, []byte("#!/bin/sh\n"), 0o755)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
