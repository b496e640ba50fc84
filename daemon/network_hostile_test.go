package daemon

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// Guessing gets nowhere, is told but does not fill the log, and keeps nobody out: neither
// from elsewhere nor from the same address.
func TestManyWrongTokens(t *testing.T) {
	n := serveNetwork(t, nil)
	_, right := n.newToken(t, "ci", Viewer, time.Hour)
	who := n.caller(t, "")
	counts := map[int]int{}
	for i := range 10000 {
		// Of the right form, and close to a right one.
		who.token = fmt.Sprintf("%s%05d", right[:len(right)-5], i)
		a := who.fetch(t, "GET", "/v1/gpus", "")
		counts[a.status]++
		if a.status == 429 && a.header.Get("Retry-After") == "" {
			t.Fatalf("%+v", a)
		}
		if i%1000 == 999 {
			who.token = right
			if a := who.fetch(t, "GET", "/v1/gpus", ""); a.status != 200 {
				t.Fatalf("from the same address, with the right one: %d", a.status)
			}
		}
	}
	if counts[401] == 0 || counts[401] > 100 || counts[401]+counts[429] != 10000 {
		t.Errorf("%v", counts)
	}
	if a := n.caller(t, "", n.ca.Client(alice)).fetch(t, "GET", "/v1/gpus", ""); a.status != 200 {
		t.Errorf("from elsewhere: %d", a.status)
	}
	log := n.log.String()
	if lines := strings.Count(log, "authentication-failed"); lines != counts[401] || strings.Contains(log, right[40:70]) {
		t.Errorf("%d lines for %d: %.1000s", lines, counts[401], log)
	}
}

// What an Authorization header may not be, over a real connection.
func TestWrongAuthorization(t *testing.T) {
	n := serveNetwork(t, nil)
	_, right := n.newToken(t, "ci", Viewer, time.Hour)
	elsewhere := serveNetwork(t, nil)
	_, foreign := elsewhere.newToken(t, "ci", Admin, time.Hour)
	old, expired := n.newToken(t, "old-ci", Viewer, 100*time.Millisecond)
	<-time.After(time.Until(old.Expires))
	for name, values := range map[string][]string{
		"of another daemon": {"Bearer " + foreign}, "expired": {"Bearer " + expired}, "basic": {"Basic " + right}, "bare": {right},
		"twice": {"Bearer " + right, "Bearer " + right}, "two in one": {"Bearer " + right + ", Bearer " + right}, "empty": {""}, "no token": {"Bearer"},
	} {
		who := n.caller(t, "", n.ca.Client(alice)) // whose certificate would do
		res, err := who.do(t.Context(), "GET", "/v1/gpus", "", http.Header{"Authorization": values})
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != 401 || res.Header.Get("WWW-Authenticate") == "" || strings.Contains(string(body), right[40:]) {
			t.Errorf("%s: %d %s", name, res.StatusCode, body)
		}
		if name == "expired" && !strings.Contains(string(body), "expired at") {
			t.Errorf("%s", body)
		}
	}
	if log := n.log.String(); strings.Contains(log, right[40:]) || strings.Contains(log, foreign[40:]) {
		t.Errorf("the log holds a token: %s", log)
	}
}

// Connections that say nothing, or say it slowly, are few from one address, are cut, and
// keep no other address out.
func TestSlowClients(t *testing.T) {
	n := serveNetwork(t, nil, func(s *Server) { s.network.timeout = 3 * time.Second })
	from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 9, 9)}}
	var held []net.Conn
	through := 0
	for i := range maxFromAddress + 50 {
		c, err := from.DialContext(t.Context(), "tcp", n.NetworkAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%2 == 1 && i < 40 { // through the handshake, and then half a header, but where it is slow in that
			secure := tls.Client(c, &tls.Config{RootCAs: n.ca.Pool(), ServerName: "localhost"})
			if err := secure.HandshakeContext(t.Context()); err == nil {
				if _, err = io.WriteString(secure, "GET /v1/gpus HTTP/1.1\r\nHost: x\r\nX-Slow: "); err == nil {
					through++
				}
			}
			c = secure
		}
		held = append(held, c)
	}
	if through == 0 {
		t.Error("nobody was let through the handshake")
	}
	if a := n.caller(t, "", n.ca.Client(alice)).fetch(t, "GET", "/v1/gpus", ""); a.status != 200 {
		t.Errorf("another address: %d", a.status)
	}
	for i, c := range held {
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("connection %d is still there", i)
		}
	}
	// They are forgotten then.
	c, err := from.DialContext(t.Context(), "tcp", n.NetworkAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	secure := tls.Client(c, &tls.Config{RootCAs: n.ca.Pool(), ServerName: "localhost"})
	defer secure.Close()
	if err := secure.HandshakeContext(t.Context()); err != nil {
		t.Error(err)
	}
}

// From one address there are so many connections at a time: one more is closed at once, and
// not counted; one that ends makes room.
func TestGuardedListener(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newGuarded(inner)
	defer l.Close()
	accepted := make(chan net.Conn, maxFromAddress+2)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial := func(from byte) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 8, from)}}
		c, err := d.DialContext(t.Context(), "tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	var first net.Conn
	for range maxFromAddress {
		dial(1)
		c := <-accepted
		defer c.Close()
		if first == nil {
			first = c
		}
	}
	refused := dial(1)
	if err := refused.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := refused.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("it is not closed: %v", err)
	}
	dial(2)
	if c := <-accepted; !strings.HasPrefix(c.RemoteAddr().String(), "127.0.8.2:") {
		t.Errorf("%s is let in", c.RemoteAddr())
	} else if err := errors.Join(c.Close(), first.Close()); err != nil {
		t.Fatal(err)
	}
	_ = first.Close() // a second time makes no more room
	dial(1)
	if c := <-accepted; c == nil {
		t.Error("there is no room")
	} else {
		defer c.Close()
	}
	if l.total != maxFromAddress || len(l.from) != 1 {
		t.Errorf("%d connections, %v", l.total, l.from)
	}
}

// A header that is too large, and the body of who is unknown, are not read.
func TestLargeRequests(t *testing.T) {
	n := serveNetwork(t, nil)
	who := n.caller(t, "", n.ca.Client(alice))
	res, err := who.do(t.Context(), "GET", "/v1/gpus", "", http.Header{"X-Large": {strings.Repeat("x", 64<<10)}})
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d", res.StatusCode)
	}

	c, err := tls.Dial("tcp", n.NetworkAddr().String(), &tls.Config{RootCAs: n.ca.Pool()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "PUT /v1/assignments/x HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10000000\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	answered, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	answered.Body.Close()
	if answered.StatusCode != 401 || !answered.Close {
		t.Errorf("%d, closed: %t", answered.StatusCode, answered.Close)
	}
}

// A page of another site that a browser with a certificate shows does nothing with it.
func TestOtherSites(t *testing.T) {
	n := serveNetwork(t, nil)
	who := n.caller(t, "", n.ca.Client(alice))
	id, _, _ := n.addOps()
	for name, tc := range map[string]struct {
		method string
		header http.Header
		want   int
	}{
		"another site":   {"POST", http.Header{"Sec-Fetch-Site": {"cross-site"}}, 403},
		"another origin": {"POST", http.Header{"Origin": {"https://evil.example"}}, 403},
		"looking":        {"GET", http.Header{"Sec-Fetch-Site": {"cross-site"}}, 405},
		"no browser":     {"POST", nil, 202},
	} {
		res, err := who.do(t.Context(), tc.method, "/v1/operations/"+id+"/abort", "", tc.header)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != tc.want {
			t.Errorf("%s: %d", name, res.StatusCode)
		}
	}
}

// One client does not take the streams of all others.
func TestManyStreams(t *testing.T) {
	n := serveNetwork(t, nil)
	_, text := n.newToken(t, "greedy", Viewer, time.Hour)
	who := n.caller(t, text)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	begin := func(c *caller) int {
		res, err := c.do(ctx, "GET", "/v1/events", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { res.Body.Close() })
		return res.StatusCode
	}
	for i := range maxStreamsOf {
		if status := begin(who); status != 200 {
			t.Fatalf("stream %d: %d", i, status)
		}
	}
	if status := begin(who); status != 429 {
		t.Errorf("one more: %d", status)
	}
	if status := begin(n.caller(t, "", n.ca.Client(alice))); status != 200 {
		t.Errorf("another's: %d", status)
	}
	cancel()
	for begin := time.Now(); ; <-time.After(time.Millisecond) {
		n.network.mu.Lock()
		left := len(n.network.streams)
		n.network.mu.Unlock()
		if left == 0 {
			break
		}
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("%d are still counted", left)
		}
	}
}
