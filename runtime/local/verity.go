package local

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Where the kernel and the file system have it, a root's file gets fs-verity before it is hashed: from then on nobody can write to it, the kernel
// checks every block that it reads against a tree of hashes, so that it also refuses what changed below the file system, and it tells
// the tree's digest at no cost (docs.kernel.org/filesystems/fsverity.html). That digest is not in the release: the one in the release is, and it was
// found through the very reads that the kernel checked.

// verityBlock is the size of the blocks that are hashed: the only one that every kernel and file system can.
const verityBlock = 4096

// enableVerity gives a file fs-verity. One that has it already is no error.
func enableVerity(f *os.File) error {
	arg := unix.FsverityEnableArg{Version: 1, Hash_algorithm: 1, Block_size: verityBlock} // 1: SHA-256
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.FS_IOC_ENABLE_VERITY, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 && !errors.Is(errno, unix.EEXIST) {
		return fmt.Errorf("enabling fs-verity: %w", errno)
	}
	return nil
}

// measureVerity returns the digest of a file's tree, as "sha256:HEX".
func measureVerity(f *os.File) (string, error) {
	var digest [4 + 64]byte // struct fsverity_digest, with room for the longest
	binary.NativeEndian.PutUint16(digest[2:], 64)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.FS_IOC_MEASURE_VERITY, uintptr(unsafe.Pointer(&digest))); errno != 0 {
		return "", errno
	}
	return verityDigest(digest[:])
}

// verityDigest reads a struct fsverity_digest.
func verityDigest(b []byte) (string, error) {
	algorithm, size := binary.NativeEndian.Uint16(b), int(binary.NativeEndian.Uint16(b[2:]))
	if algorithm != 1 || size != 32 || len(b) < 4+size {
		return "", fmt.Errorf("a digest of algorithm %d with %d bytes is not SHA-256", algorithm, size)
	}
	return "sha256:" + hex.EncodeToString(b[4:4+size]), nil
}

// verityNow says what the kernel tells of a root's file, for a seal to be compared with.
func verityNow(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	got, err := measureVerity(f)
	if err != nil {
		return "not measured: " + err.Error()
	}
	return got
}

// probeVerity tries fs-verity where the roots lie.
func probeVerity(dir string) Feature {
	lacks := func(err error) Feature {
		return Feature{Detail: fmt.Sprintf("no fs-verity where the roots lie (%v): their files are protected by the immutable attribute, and read again", err)}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return lacks(err)
	}
	path := filepath.Join(dir, ".verity")
	defer os.Remove(path)
	if err := os.WriteFile(path, []byte("invar"), 0o600); err != nil {
		return lacks(err)
	}
	f, err := os.Open(path)
	if err != nil {
		return lacks(err)
	}
	defer f.Close()
	if err := enableVerity(f); err != nil {
		return lacks(err)
	}
	if _, err := measureVerity(f); err != nil {
		return lacks(err)
	}
	return Feature{OK: true, Detail: "fs-verity: the kernel checks what it reads of a root"}
}
