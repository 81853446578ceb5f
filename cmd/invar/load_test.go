package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// load asks the gateway for pages, over and over, on connections that it keeps, and remembers what failed.
type load struct {
	gateway string
	pause   time.Duration // between two requests of a caller: it leaves the processor to what is tested
	served  atomic.Int64
	stop    context.CancelFunc
	done    sync.WaitGroup

	mu     sync.Mutex
	failed []failure
}

// failure is a request that was not answered as it should be.
type failure struct {
	host      string
	began     time.Time
	connected time.Time // when the request had its connection; zero: never
	err       error
	answered  bool // with a wrong answer, rather than a broken connection
}

func (f failure) String() string {
	return fmt.Sprintf("%s at %s: %v", f.host, f.began.Format("15:04:05.000"), f.err)
}

// page is what must be answered: 200 with the text.
type page struct{ host, path, text string }

func startLoad(ctx context.Context, gateway string, callers int, pages ...page) *load {
	ctx, stop := context.WithCancel(ctx)
	l := &load{gateway: gateway, pause: 2 * time.Millisecond, stop: stop}
	for n := range callers {
		l.done.Go(func() { l.ask(ctx, pages[n%len(pages)]) })
	}
	return l
}

// startSteadyLoad asks for each of the pages at that interval.
func startSteadyLoad(ctx context.Context, gateway string, every time.Duration, pages ...page) *load {
	ctx, stop := context.WithCancel(ctx)
	l := &load{gateway: gateway, pause: every, stop: stop}
	for _, p := range pages {
		l.done.Go(func() { l.ask(ctx, p) })
	}
	return l
}

func (l *load) ask(ctx context.Context, p page) {
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := &http.Client{Timeout: 20 * time.Second, Transport: transport}
	for ctx.Err() == nil {
		if f, ok := fetch(client, l.gateway, p); ok {
			l.served.Add(1)
		} else {
			l.mu.Lock()
			l.failed = append(l.failed, f)
			l.mu.Unlock()
		}
		time.Sleep(l.pause)
	}
}

// fetch asks once.
func fetch(client *http.Client, gateway string, p page) (f failure, ok bool) {
	f = failure{host: p.host, began: time.Now()}
	trace := &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { f.connected = time.Now() },
	}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(context.Background(), trace), "GET", "http://"+gateway+p.path, nil)
	if err != nil {
		f.err = err
		return f, false
	}
	req.Host = p.host
	resp, err := client.Do(req)
	if err != nil {
		f.err = err
		return f, false
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		f.err = err
		return f, false
	}
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), p.text) {
		f.answered, f.err = true, fmt.Errorf("%s: %q", resp.Status, body)
		return f, false
	}
	return f, true
}

// fetchFresh asks on a connection of its own.
func fetchFresh(gateway string, p page) error {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}
	if f, ok := fetch(&http.Client{Timeout: 5 * time.Second, Transport: transport}, gateway, p); !ok {
		return f.err
	}
	return nil
}

// failures takes what has failed since the last call.
func (l *load) failures() []failure {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.failed
	l.failed = nil
	return f
}

// end stops asking, and waits for the requests under way.
func (l *load) end() {
	l.stop()
	l.done.Wait()
}
