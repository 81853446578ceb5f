package serve

// OnPersisted has f called once a checkpoint is remembered and before its cosignature exists.
func OnPersisted(w *Witness, f func()) { w.persisted = f }

// RoundTrip reads a memory and writes it again.
func RoundTrip(b []byte) ([]byte, error) {
	m, err := decodeMemory(b)
	if err != nil {
		return nil, err
	}
	if _, err := m.seen(nil); err != nil {
		return nil, err
	}
	return m.encode()
}
