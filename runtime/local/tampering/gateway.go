package tampering

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// ForeignTable puts a route table without routes in force, over the gateway's control socket, with a serial that no other one exceeds.
func ForeignTable(t Target) (func(), error) {
	dir := filepath.Join(t.Data, "gateway")
	b, err := os.ReadFile(filepath.Join(dir, "table.json"))
	var table map[string]json.RawMessage
	if err == nil {
		err = json.Unmarshal(b, &table)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the table in force: %w", err)
	}
	delete(table, "http")
	table["serial"] = json.RawMessage("18446744073709551615")
	if b, err = json.Marshal(table); err != nil {
		return nil, err
	}
	return nothing, putTable(filepath.Join(dir, "gateway.sock"), b)
}

func putTable(socket string, table []byte) error {
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	q, err := http.NewRequest(http.MethodPut, "http://gateway/v1/table", bytes.NewReader(table))
	if err != nil {
		return err
	}
	answer, err := c.Do(q)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	said, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("putting a table in force: %s: %s", answer.Status, said)
	}
	return err
}
