package compare

import "bytes"

// ReadTar reads a tar of memory.
func ReadTar(raw []byte) error {
	_, err := readTar(bytes.NewReader(raw), int64(len(raw)))
	return err
}
