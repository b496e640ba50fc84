package daemon

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"gpuvirt/operation"
)

// dialFrom connects from another address of this machine.
func dialFrom(t *testing.T, n *netHarness, last byte, certs ...tls.Certificate) *tls.Conn {
	t.Helper()
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 7, last)}}
	c, err := tls.DialWithDialer(d, "tcp", n.NetworkAddr().String(), &tls.Config{RootCAs: n.ca.Pool(), ServerName: "localhost", Certificates: certs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// begun sends a write but for the end of its body, and waits until the daemon reads that.
func begun(t *testing.T, n *netHarness, c *tls.Conn, header string) (rest func() int) {
	t.Helper()
	const body = `{"name":"again","role":"admin"}`
	if _, err := fmt.Fprintf(c, "POST /v1/tokens HTTP/1.1\r\nHost: x\r\n%sExpect: 100-continue\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", header, len(body)); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	// It says so when it comes to read the body: by then it knows who asks.
	if line, err := r.ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
		t.Fatal(line, err)
	}
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return func() int {
		if _, err := io.WriteString(c, body); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode
	}
}

// Who is not let in any more finishes nothing that was begun before: least of all a new
// token for the time after.
func TestRevokedWhileTheBodyComes(t *testing.T) {
	n := serveNetwork(t, nil)
	admin := n.caller(t, "", n.ca.Client(alice))
	made, text := n.newToken(t, "stolen", Admin, time.Hour)
	finish := begun(t, n, dialFrom(t, n, 3), "Authorization: Bearer "+text+"\r\n")
	if a := admin.fetch(t, "DELETE", "/v1/tokens/"+made.ID, ""); a.status != 200 {
		t.Fatal(a)
	}
	if got := finish(); got != 401 {
		t.Errorf("a deleted token: %d", got)
	}

	finish = begun(t, n, dialFrom(t, n, 4, n.ca.Client(alice).TLS()), "")
	n.tls.Clients = clients(t, nil, nil, nil)
	if err := n.SetTLS(n.tls); err != nil {
		t.Fatal(err)
	}
	if got := finish(); got != 403 {
		t.Errorf("a certificate that is in no list any more: %d", got)
	}
	for _, made := range n.tokens.Tokens() {
		if made.Name == "again" {
			t.Errorf("%+v", made)
		}
	}
}

// A stranger's body that never comes holds no connection.
func TestStrangersBodyIsNotWaitedFor(t *testing.T) {
	n := serveNetwork(t, nil)
	for _, request := range []string{
		"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
		"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
	} {
		c := dialFrom(t, n, 1)
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * strangerTimeout))
		all, err := io.ReadAll(c)
		if err != nil || !strings.HasPrefix(string(all), "HTTP/1.1 401 ") {
			t.Errorf("%.30q: %.60q, then %v", request, all, err)
		}
	}
}

// A reload that changes nothing about a client cuts none of its streams off; one that takes
// it off its list does.
func TestReloadKeepsStreams(t *testing.T) {
	n := serveNetwork(t, nil)
	id := n.host.ops.add("attach", "root", operation.Running).ID
	who := n.caller(t, "", n.ca.Client(alice))
	got := make(chan answer, 1)
	before := n.long()
	go func() { got <- who.fetch(t, "GET", "/v1/operations/"+id+"/wait?timeout=10m", "") }()
	for range time.Tick(time.Millisecond) {
		if n.long() != before {
			break
		}
	}
	for range 3 {
		if err := n.SetTLS(n.tls); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case a := <-got:
		t.Fatalf("it was cut off: %+v", a)
	case <-time.After(200 * time.Millisecond):
	}
	n.tls.Clients = clients(t, nil, nil, nil)
	if err := n.SetTLS(n.tls); err != nil {
		t.Fatal(err)
	}
	if a := <-got; a.status != 401 {
		t.Errorf("%+v", a)
	}
}

func (n *netHarness) long() int {
	n.network.mu.Lock()
	defer n.network.mu.Unlock()
	return n.network.allStreams()
}

// However many clients over the network wait, the socket has streams left.
func TestStreamsAreLeftForTheSocket(t *testing.T) {
	n := serveNetwork(t, nil)
	taken := 0
	for i := range 2 * maxStreams / maxStreamsOf {
		for range maxStreamsOf {
			if n.network.beginStream(fmt.Sprint("viewer", i)) {
				taken++
			}
		}
	}
	if taken != maxStreamsNet || taken >= maxStreams {
		t.Errorf("%d of %d", taken, maxStreams)
	}
	for i := range 2 * maxStreams / maxStreamsOf {
		for range min(taken, maxStreamsOf) {
			n.network.endStream(fmt.Sprint("viewer", i))
			taken--
		}
	}
	if n.long() != 0 {
		t.Errorf("%d are left", n.long())
	}
}

// Past the limit of failures the log gets no line more, whatever the method.
func TestFloodOfStrangersIsNotLogged(t *testing.T) {
	n := serveNetwork(t, nil)
	who := n.caller(t, "gpuvirt_wrong")
	before := strings.Count(n.log.String(), "\n")
	for range 200 {
		who.fetch(t, "POST", "/v1/x", "{}")
	}
	if lines := strings.Count(n.log.String(), "\n") - before; lines > 50 {
		t.Errorf("%d lines", lines)
	}
}

type downListener struct{ net.Listener }

func (downListener) Accept() (net.Conn, error) {
	return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.ENETDOWN}
}

// An interface that is down does not end the server.
func TestAcceptFails(t *testing.T) {
	_, err := newGuarded(downListener{}).Accept()
	if passes, ok := err.(interface{ Temporary() bool }); !ok || !passes.Temporary() { //nolint:errorlint // as net/http asks
		t.Errorf("%v", err)
	}
}

// The addresses of one IPv6 customer are one.
func TestConnectionsOfOneCustomer(t *testing.T) {
	g := newGuarded(nil)
	for a := range maxFromAddress + 8 {
		_, ok := g.take(netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", a)))
		if ok != (a < maxFromAddress) {
			t.Fatalf("%d: %v", a, ok)
		}
	}
	if _, ok := g.take(netip.MustParseAddr("2001:db8:ffff::1")); !ok {
		t.Error("another network is kept out")
	}
}
