package storetest_test

import (
	"testing"

	"github.com/invarhq/invar/store"
	"github.com/invarhq/invar/store/storetest"
)

func TestDiskIsAStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) func() (store.Store, error) {
		disk := storetest.NewDisk()
		return func() (store.Store, error) {
			s, err := disk.Open()
			if err != nil {
				return nil, err
			}
			return s, nil
		}
	})
}
