package main

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// traffic is what hammer began.
type traffic struct {
	stop   chan struct{}
	done   sync.WaitGroup
	sent   int
	failed []string
}

// hammer HOST sends requests through the gateway, one after the other, until calm.
func cmdHammer(ts *testscript.TestScript, neg bool, args []string) {
	t := &traffic{stop: make(chan struct{})}
	gateway := ts.Getenv("GATEWAY")
	t.done.Go(func() {
		for {
			select {
			case <-t.stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			t.sent++
			if err := request(gateway, args[0]); err != nil {
				t.failed = append(t.failed, err.Error())
			}
		}
	})
	hammers.Store(ts.Getenv("WORK"), t)
	ts.Defer(func() { endTraffic(ts.Getenv("WORK")) })
}

// hammers has what is under way, by the script's directory: a script has no other place for a value of its own.
var hammers sync.Map

func endTraffic(script string) *traffic {
	v, ok := hammers.LoadAndDelete(script)
	if !ok {
		return nil
	}
	t := v.(*traffic)
	close(t.stop)
	t.done.Wait()
	return t
}

func request(gateway, host string) error {
	req, err := http.NewRequest("GET", "http://"+gateway+"/", nil)
	if err != nil {
		return err
	}
	req.Host = host
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
		return fmt.Errorf("%s: %v", resp.Status, err)
	}
	return nil
}

// calm ends hammer: none of its requests may have failed.
func cmdCalm(ts *testscript.TestScript, neg bool, args []string) {
	t := endTraffic(ts.Getenv("WORK"))
	if t == nil || t.sent == 0 || len(t.failed) > 0 {
		ts.Fatalf("requests failed: %+v", t)
	}
	ts.Logf("%d requests, none failed", t.sent)
}
