package runtimetest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
)

// Exec implements runtime.Host. The commands that a Fake knows: "exit N" ends with N; "cat" writes what it reads until that ends;
// "sh" does so as well, prompting, and ends at a line "exit N". Every other is absent.
func (f *Fake) Exec(ctx context.Context, id instance.ID, s runtime.Session) (int, error) {
	f.mu.Lock()
	_, r := f.find(id)
	down := f.down
	state := instance.Absent
	if r != nil {
		state = r.seen.State
	}
	f.mu.Unlock()
	switch {
	case down:
		return -1, errDown("running a command")
	case r == nil:
		return -1, fault.Errorf(fault.NotFound, "running a command in instance %s: it is not on this host", id)
	case state != instance.Running:
		return -1, fault.Errorf(fault.Conflict, "running a command in instance %s: it is %s", id, state)
	case len(s.Args) == 0:
		return -1, fault.Errorf(fault.Invalid, "running a command in instance %s: no command", id)
	}
	command, ok := map[string]func(runtime.Session) int{"exit": exitCommand, "cat": catCommand, "sh": shCommand}[s.Args[0]]
	if !ok {
		return -1, fault.Errorf(fault.Invalid, "running a command in instance %s: its image has no program %q", id, s.Args[0])
	}
	code := make(chan int, 1)
	go func() { code <- command(s) }()
	select {
	case c := <-code:
		return c, nil
	case <-r.gone:
		return 137, nil
	case <-ctx.Done():
		return -1, fault.As(fault.Unavailable, ctx.Err())
	}
}

func exitCommand(s runtime.Session) int {
	n, _ := strconv.Atoi(s.Args[len(s.Args)-1])
	return n
}

func catCommand(s runtime.Session) int {
	if s.Stdin != nil {
		io.Copy(s.Stdout, s.Stdin)
	}
	return 0
}

func shCommand(s runtime.Session) int {
	if s.Stdin == nil {
		return 0
	}
	lines := bufio.NewScanner(s.Stdin)
	for fmt.Fprint(s.Stdout, "$ "); lines.Scan(); fmt.Fprint(s.Stdout, "$ ") {
		if code, ok := strings.CutPrefix(lines.Text(), "exit "); ok {
			n, _ := strconv.Atoi(code)
			return n
		}
		fmt.Fprintf(s.Stdout, "%s\r\n", lines.Text())
	}
	return 0
}
