package tampering

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// immutable is FS_IMMUTABLE_FL of linux/fs.h.
const immutable = 0x10

// rootFile returns the file that the instance's root is mounted from.
func (t Target) rootFile() (string, error) {
	s, err := t.spec()
	return filepath.Join(t.Data, "roots", s.Root.Hex()+".erofs"), err
}

// FlipByte changes the last byte of the root's file, which no program is made of, so that what runs goes on.
func FlipByte(t Target) (func(), error) {
	file, err := t.rootFile()
	if err != nil {
		return nil, err
	}
	if _, err := setImmutable(file, false); err != nil {
		return nil, err
	}
	return nothing, flipLast(file)
}

// FlipByteUnseen does the same, and puts back what stat(1) and lsattr(1) show.
func FlipByteUnseen(t Target) (func(), error) {
	file, err := t.rootFile()
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return nil, fmt.Errorf("examining %s: %w", file, err)
	}
	was, err := setImmutable(file, false)
	if err != nil {
		return nil, err
	}
	if err := flipLast(file); err != nil {
		return nil, err
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, file, []unix.Timespec{st.Atim, st.Mtim}, 0); err != nil {
		return nil, fmt.Errorf("putting back the time of %s: %w", file, err)
	}
	_, err = setImmutable(file, was)
	return nothing, err
}

// Mutable takes the immutable attribute off the root's file, as chattr -i does.
func Mutable(t Target) (func(), error) {
	file, err := t.rootFile()
	if err != nil {
		return nil, err
	}
	was, err := setImmutable(file, false)
	if err == nil && !was {
		err = fmt.Errorf("%s is not immutable: nothing to take off", file)
	}
	return nothing, err
}

func flipLast(file string) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	last := make([]byte, 1)
	if _, err := f.ReadAt(last, info.Size()-1); err != nil {
		return err
	}
	last[0] ^= 1
	_, err = f.WriteAt(last, info.Size()-1)
	return err
}

// setImmutable sets or clears the attribute, and tells whether it was set. A file system without it has nothing to clear.
func setImmutable(file string, on bool) (was bool, err error) {
	f, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return false, nil
	}
	want := flags &^ immutable
	if on {
		want |= immutable
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(want)); err != nil {
		return false, fmt.Errorf("changing the attributes of %s: %w", file, err)
	}
	return flags&immutable != 0, nil
}
