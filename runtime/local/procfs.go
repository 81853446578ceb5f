package local

import (
	"bytes"
	"errors"

	"golang.org/x/sys/unix"
)

// slurp reads a file of /proc or of a cgroup into buf, or into a longer buffer when it does not fit. It is what os.ReadFile does with
// half of the system calls, for files that are read hundreds of times a second.
func slurp(path string, buf []byte) ([]byte, error) {
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	for n := 0; ; {
		if n == len(buf) {
			buf = append(buf, make([]byte, max(len(buf), 4096))...)
		}
		got, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, buf[n:]) })
		if err != nil || got == 0 {
			return buf[:n], err
		}
		n += got
	}
}

func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// statusOf reads the lines of /proc/PID/status that fields name, with one blank between words.
func statusOf(pid string, buf []byte, fields ...string) (map[string]string, error) {
	b, err := slurp("/proc/"+pid+"/status", buf)
	if err != nil {
		return nil, err
	}
	status := make(map[string]string, len(fields))
	for _, field := range fields {
		_, rest, _ := bytes.Cut(b, []byte("\n"+field+":"))
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		status[field] = string(bytes.Join(bytes.Fields(line), []byte(" ")))
	}
	return status, nil
}
