package sqlite_test

import (
	"testing"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/store"
	"github.com/invarhq/invar/store/sqlite"
	"github.com/invarhq/invar/store/storetest"
)

func TestSQLiteIsAStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) func() (store.Store, error) {
		dir := t.TempDir()
		return func() (store.Store, error) {
			s, err := sqlite.Open(t.Context(), dir)
			if fault.KindOf(err) == fault.NotFound {
				s, err = sqlite.Create(t.Context(), dir)
			}
			if err != nil {
				return nil, err
			}
			return s, nil
		}
	})
}
