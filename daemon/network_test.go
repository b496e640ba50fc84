package daemon

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuvirt/access"
	"gpuvirt/access/accesstest"
	"gpuvirt/api"
	"gpuvirt/operation"
)

// A netHarness is a server with a port on the network, over a fake host.
type netHarness struct {
	*harness
	ca   *accesstest.CA // of the server and its clients
	dir  string
	tls  TLS
	stop func() error

	callers int
}

const (
	secretName = "server" // the files' name
	alice, bob = "alice", "bob"
)

// serveNetwork runs a server where alice is admin, bob operator, and all others of the CA
// look.
func serveNetwork(t *testing.T, edit func(*Config, *fakeHost), before ...func(*Server)) *netHarness {
	t.Helper()
	n := &netHarness{ca: accesstest.NewCA(t, "ca"), dir: t.TempDir()}
	n.tls.Certificate, n.tls.Key = n.ca.Server().Write(n.dir, secretName)
	n.tls.ClientCA = n.ca.Write(n.dir, "clients")
	n.tls.Clients = clients(t, []string{"cn:" + alice}, []string{"cn:" + bob}, []string{"any"})
	n.harness, n.stop = serveWith(t, func(c *Config, host *fakeHost) {
		c.TLSListen = "127.0.0.1:0"
		if edit != nil {
			edit(c, host)
		}
	}, func(s *Server) {
		for _, f := range before {
			f(s)
		}
		if err := s.SetTLS(n.tls); err != nil {
			t.Fatal(err)
		}
	})
	if n.NetworkAddr() == nil {
		t.Fatalf("there is no port: %s", n.log)
	}
	return n
}

func clients(t *testing.T, admins, operators, viewers []string) access.Clients {
	t.Helper()
	c, err := access.ParseClients(admins, operators, viewers)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A caller is a client on the network, which may come with a certificate and a token.
type caller struct {
	client *http.Client
	url    string
	token  string
}

func (n *netHarness) caller(t *testing.T, token string, certs ...accesstest.Pair) *caller {
	t.Helper()
	config := &tls.Config{RootCAs: n.ca.Pool()}
	for _, c := range certs {
		// As a client would that does not look at which CAs the server names.
		pair := c.TLS()
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	// Each from an address of its own, as failures are counted by it.
	n.callers++
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(n.callers))}}
	tr := &http.Transport{TLSClientConfig: config, DialContext: dialer.DialContext}
	t.Cleanup(tr.CloseIdleConnections)
	return &caller{client: &http.Client{Transport: tr}, url: "https://" + n.NetworkAddr().String(), token: token}
}

func (c *caller) do(ctx context.Context, method, target, body string, header http.Header) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, c.url+target, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		r.Header[k] = v
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	return c.client.Do(r)
}

func (c *caller) fetch(t *testing.T, method, target, body string) answer {
	t.Helper()
	res, err := c.do(t.Context(), method, target, body, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, string(b)}
}

// Over the network everybody has to say who they are, also where the socket is open to all;
// what they may do is what the table of routes says of their role.
func TestNetworkRoles(t *testing.T) {
	n := serveNetwork(t, nil)
	tokens := map[Role]string{}
	for _, role := range access.Roles() {
		_, tokens[role] = n.newToken(t, "t-"+role.String(), role, time.Hour)
	}
	for name, tc := range map[string]struct {
		who               *caller
		live, look        int
		ask, decide, mint int
	}{
		"nobody":            {n.caller(t, ""), 401, 401, 401, 401, 401},
		"admin":             {n.caller(t, "", n.ca.Client(alice)), 200, 200, 200, 200, 200},
		"operator":          {n.caller(t, "", n.ca.Client(bob)), 200, 200, 200, 403, 403},
		"viewer":            {n.caller(t, "", n.ca.Client("carol")), 200, 200, 403, 403, 403},
		"admin's token":     {n.caller(t, tokens[Admin]), 200, 200, 200, 200, 200},
		"operator's token":  {n.caller(t, tokens[Operator]), 200, 200, 200, 403, 403},
		"viewer's token":    {n.caller(t, tokens[Viewer]), 200, 200, 403, 403, 403},
		"less by a token":   {n.caller(t, tokens[Viewer], n.ca.Client(alice)), 200, 200, 403, 403, 403},
		"more by a token":   {n.caller(t, tokens[Admin], n.ca.Client("carol")), 200, 200, 200, 200, 200},
		"wrong token, cert": {n.caller(t, tokens[Admin]+"x", n.ca.Client(alice)), 401, 401, 401, 401, 401},
	} {
		t.Run(name, func(t *testing.T) {
			live := tc.who.fetch(t, "GET", "/v1/health/live", "")
			look := tc.who.fetch(t, "GET", "/v1/gpus", "")
			ask := tc.who.fetch(t, "PUT", "/v1/assignments/x?dry_run=true", wish)
			decide := tc.who.fetch(t, "PATCH", "/v1/gpus/"+gpuA+"?dry_run=true", `{"managed":true}`)
			mint := tc.who.fetch(t, "POST", "/v1/tokens?dry_run=true", `{"name":"x","role":"viewer"}`)
			got := []int{live.status, look.status, ask.status, decide.status, mint.status}
			if want := []int{tc.live, tc.look, tc.ask, tc.decide, tc.mint}; !slices.Equal(got, want) {
				t.Errorf("%v, want %v: %s", got, want, decide.body)
			}
			if tc.live != 401 {
				return
			}
			if p := live.problem(t); p.Code != "unauthorized" || live.header.Get("WWW-Authenticate") != `Bearer realm="gpuvirt"` {
				t.Errorf("%+v, %v", p, live.header)
			}
			nothing := tc.who.fetch(t, "GET", "/v1/no/such/thing", "")
			if nothing.status != 401 {
				t.Errorf("a stranger learns what there is: %d", nothing.status)
			}
		})
	}
}

// child reads the answer to a request for a token.
func (n *netHarness) child(t *testing.T, a answer) api.TokenCreated {
	t.Helper()
	if a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	return decodeStrictly[api.TokenCreated](t, a.body)
}

// What was done is told of who did it: the certificate's subject, or the token's name.
func TestNetworkActors(t *testing.T) {
	n := serveNetwork(t, nil)
	made, text := n.newToken(t, "ci", Operator, time.Hour)
	for _, tc := range []struct {
		who  *caller
		want string
	}{
		{n.caller(t, "", n.ca.Client(bob)), "cert:CN=bob,O=Bank"},
		{n.caller(t, text), "token:ci"},
	} {
		a := tc.who.fetch(t, "PUT", "/v1/assignments/a", wish)
		if want := fmt.Sprintf(`"actor":%q`, tc.want); a.status != 202 || !strings.Contains(a.body, want) {
			t.Errorf("%d %s, want %s", a.status, a.body, want)
		}
		n.host.mu.Lock()
		delete(n.host.assignments, "a")
		delete(n.host.partitions, mdev1)
		n.host.mu.Unlock()
	}
	for _, want := range []string{`"actor":"cert:CN=bob,O=Bank","from":"127.0.1.1"`, `"from":"127.0.1.2","token":"` + made.ID + `"`} {
		if !strings.Contains(n.log.String(), want) {
			t.Errorf("the log has no %s: %s", want, n.log)
		}
	}
	// The same over the socket: a token that is sent counts.
	r, err := http.NewRequest("GET", "http://gpuvirt/v1/tokens", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+text)
	res, err := n.client(t).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != 403 {
		t.Errorf("root with an operator's token: %d", res.StatusCode)
	}
}

// Certificates that do not say who somebody is end the handshake, whatever else there is.
func TestNetworkWrongCertificates(t *testing.T) {
	n := serveNetwork(t, nil)
	_, text := n.newToken(t, "ci", Admin, time.Hour)
	impostor := accesstest.NewCA(t, "ca")
	for name, pair := range map[string]accesstest.Pair{
		"another CA of the same name": impostor.Client(alice), "expired": n.ca.Client(alice, accesstest.Expired), "a server's": n.ca.Server(),
		"not yet valid": n.ca.Client(alice, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
		}),
	} {
		for _, token := range []string{"", text} {
			if res, err := n.caller(t, token, pair).do(t.Context(), "GET", "/v1/gpus", "", nil); err == nil {
				res.Body.Close()
				t.Errorf("%s: %d", name, res.StatusCode)
			}
		}
	}
	if !strings.Contains(n.log.String(), "TLS handshake error") {
		t.Errorf("nothing of it in the log: %s", n.log)
	}
}

// What is no TLS, or old TLS, gets nowhere.
func TestNetworkPlainHTTP(t *testing.T) {
	n := serveNetwork(t, nil)
	res, err := http.Get("http://" + n.NetworkAddr().String() + "/v1/gpus")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 400 || strings.Contains(string(body), gpuA) {
		t.Errorf("%d %s, %v", res.StatusCode, body, err)
	}
	for version, fine := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		c, err := tls.Dial("tcp", n.NetworkAddr().String(), &tls.Config{RootCAs: n.ca.Pool(), MinVersion: tls.VersionTLS10, MaxVersion: version}) //nolint:gosec // that it is old is the point
		if (err == nil) != fine {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			c.Close()
		}
	}
	weak := []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
	if c, err := tls.Dial("tcp", n.NetworkAddr().String(), &tls.Config{RootCAs: n.ca.Pool(), MaxVersion: tls.VersionTLS12, CipherSuites: weak}); err == nil { //nolint:gosec // the same
		c.Close()
		t.Error("TLS 1.2 without authenticated encryption")
	}
}

// With a token gone, so is what was begun with it: at once, or when it expires.
func TestTokenEnds(t *testing.T) {
	n := serveNetwork(t, nil)
	id := n.host.ops.add("attach", "root", operation.Running).ID
	made, deleted := n.newToken(t, "deleted", Admin, time.Hour)
	_, other := n.newToken(t, "other", Admin, time.Hour)
	begin := func(token string) (stream *http.Response, waited chan answer) {
		who := n.caller(t, token)
		stream, err := who.do(t.Context(), "GET", "/v1/events", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { stream.Body.Close() })
		waited = make(chan answer, 1)
		go func() {
			res, err := who.do(t.Context(), "GET", "/v1/operations/"+id+"/wait?timeout=10m", "", nil)
			if err != nil {
				waited <- answer{body: err.Error()}
				return
			}
			defer res.Body.Close()
			b, _ := io.ReadAll(res.Body)
			waited <- answer{res.StatusCode, res.Header, string(b)}
		}()
		return stream, waited
	}
	// expires begins with a token that expires soon, and with another one where it had when a busy machine
	// came to that.
	expires := func() (token string, stream *http.Response, waited chan answer) {
		for life := 700 * time.Millisecond; ; life *= 2 {
			_, token = n.newToken(t, fmt.Sprint("expiring", life.Milliseconds()), Admin, life)
			if stream, waited = begin(token); stream.StatusCode == 200 || life > time.Minute {
				return token, stream, waited
			}
		}
	}
	for _, soon := range []bool{true, false} {
		stays, _ := begin(other)
		token := deleted
		var stream *http.Response
		var waited chan answer
		if soon {
			token, stream, waited = expires()
		} else {
			stream, waited = begin(token)
			if a := n.caller(t, other).fetch(t, "DELETE", "/v1/tokens/"+made.ID, ""); a.status != 200 {
				t.Fatalf("%d %s", a.status, a.body)
			}
		}
		if text, err := io.ReadAll(stream.Body); err != nil || !strings.HasPrefix(string(text), ": connected") {
			t.Errorf("the stream: %q, %v", text, err)
		}
		if a := <-waited; a.status != 401 {
			t.Errorf("the wait: %d %s", a.status, a.body)
		}
		if a := n.caller(t, token).fetch(t, "GET", "/v1/gpus", ""); a.status != 401 {
			t.Errorf("afterwards: %d", a.status)
		}
		// Another's goes on.
		n.host.emit("vm.lifecycle", web1)
		lines := bufio.NewScanner(stays.Body)
		for lines.Scan() && !strings.Contains(lines.Text(), "vm.lifecycle") {
		}
		if lines.Err() != nil || !strings.Contains(lines.Text(), "vm.lifecycle") {
			t.Errorf("another's stream: %q, %v", lines.Text(), lines.Err())
		}
	}
	if log := n.log.String(); !strings.Contains(log, `"event":"token-deleted"`) || strings.Contains(log, deleted) {
		t.Errorf("the log: %s", log)
	}
}

// A token makes no token that may do more, or lives longer, than itself.
func TestTokenMakesTokens(t *testing.T) {
	n := serveNetwork(t, nil)
	parent, text := n.newToken(t, "parent", Admin, 48*time.Hour)
	who := n.caller(t, text)
	at := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339) }
	if a := who.fetch(t, "POST", "/v1/tokens", `{"name":"a","role":"admin","expires":"`+at(49*time.Hour)+`"}`); a.status != 403 {
		t.Errorf("longer: %d %s", a.status, a.body)
	}
	a := who.fetch(t, "POST", "/v1/tokens", `{"name":"b","role":"admin"}`)
	child := n.child(t, a)
	if !child.Token.Expires.Before(parent.Expires.Add(time.Second)) || child.Token.CreatedBy != "token:parent" {
		t.Errorf("%+v of %+v", child.Token, parent)
	}
	if a := who.fetch(t, "POST", "/v1/tokens", `{"name":"b","role":"viewer"}`); a.status != 409 {
		t.Errorf("the same name: %d %s", a.status, a.body)
	}
	if a := who.fetch(t, "POST", "/v1/tokens", `{"name":"c","role":"viewer","expires":"`+at(-time.Hour)+`"}`); a.status != 400 {
		t.Errorf("of the past: %d %s", a.status, a.body)
	}
	// One on the socket, or with a certificate, is bound by what a token is bound by.
	cert := n.caller(t, "", n.ca.Client(alice))
	if got := n.child(t, cert.fetch(t, "POST", "/v1/tokens", `{"name":"d","role":"operator"}`)); time.Until(got.Token.Expires) < 89*24*time.Hour {
		t.Errorf("%+v", got.Token)
	}
	if a := cert.fetch(t, "POST", "/v1/tokens", `{"name":"e","role":"viewer","expires":"`+at(400*24*time.Hour)+`"}`); a.status != 400 {
		t.Errorf("for ever: %d %s", a.status, a.body)
	}
	list := n.caller(t, child.Secret).fetch(t, "GET", "/v1/tokens", "")
	if list.status != 200 || strings.Contains(list.body, child.Secret) || !strings.Contains(list.body, child.Token.ID) {
		t.Errorf("%d %s", list.status, list.body)
	}
	if log := n.log.String(); strings.Contains(log, child.Secret[40:]) || !strings.Contains(log, `"event":"token-created","actor":"token:parent"`) {
		t.Errorf("the log: %s", log)
	}
}

// Certificates, CA and who is let in are changed while connections go on; what cannot be
// used leaves the old in use and is told.
func TestSetTLS(t *testing.T) {
	n := serveNetwork(t, nil)
	carol := n.caller(t, "", n.ca.Client("carol"))
	stream, err := carol.do(t.Context(), "GET", "/v1/events", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	_, text := n.newToken(t, "ci", Admin, time.Hour)
	lasting := n.caller(t, text)
	follow, err := lasting.do(t.Context(), "GET", "/v1/events", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer follow.Body.Close()
	shown := func() string {
		c, err := tls.Dial("tcp", n.NetworkAddr().String(), &tls.Config{RootCAs: n.ca.Pool()})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	state := func() string { return n.caller(t, text).fetch(t, "GET", "/v1", "").body }

	first := shown()
	next := n.ca.Server()
	next.Write(n.dir, secretName)
	if shown() != first {
		t.Error("it is read before it is told to be")
	}
	if err := n.SetTLS(n.tls); err != nil || shown() != next.Leaf.SerialNumber.String() {
		t.Errorf("the new one is not shown: %v", err)
	}

	// A broken one.
	n.ca.Server(accesstest.Expired).Write(n.dir, secretName)
	if err := os.WriteFile(n.tls.ClientCA, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	err = n.SetTLS(n.tls)
	if err == nil || !strings.Contains(err.Error(), "expired") || !strings.Contains(err.Error(), "client CA") {
		t.Errorf("%v", err)
	}
	if shown() != next.Leaf.SerialNumber.String() || carol.fetch(t, "GET", "/v1/gpus", "").status != 200 {
		t.Error("what was in use is not")
	}
	if got := state(); !strings.Contains(got, `"degraded"`) || !strings.Contains(got, "expired") {
		t.Errorf("it is not told: %s", got)
	}
	next.Write(n.dir, secretName)
	n.ca.Write(n.dir, "clients")
	if err := n.SetTLS(n.tls); err != nil || !strings.Contains(state(), `"ready"`) {
		t.Errorf("mended: %v, %s", err, state())
	}

	// Who is not let in any more is not, on the connection that is there as well.
	n.tls.Clients = clients(t, []string{"cn:" + alice}, nil, nil)
	if err := n.SetTLS(n.tls); err != nil {
		t.Fatal(err)
	}
	if a := carol.fetch(t, "GET", "/v1/gpus", ""); a.status != 403 || !strings.Contains(a.body, "tls.viewers") {
		t.Errorf("carol: %d %s", a.status, a.body)
	}
	if _, err := io.ReadAll(stream.Body); err != nil {
		t.Errorf("her stream: %v", err)
	}
	admin := n.caller(t, "", n.ca.Client(alice))
	if a := admin.fetch(t, "GET", "/v1/gpus", ""); a.status != 200 {
		t.Errorf("alice: %d", a.status)
	}
	n.tls.ClientCA = accesstest.NewCA(t, "another").Write(n.dir, "another")
	if err := n.SetTLS(n.tls); err != nil {
		t.Fatal(err)
	}
	if a := admin.fetch(t, "GET", "/v1/gpus", ""); a.status != 401 {
		t.Errorf("alice of a CA that is gone: %d", a.status)
	}
	n.tls.ClientCA = ""
	if err := n.SetTLS(n.tls); err != nil {
		t.Fatal(err)
	}
	if a := n.caller(t, "", n.ca.Client(alice)).fetch(t, "GET", "/v1/gpus", ""); a.status != 401 {
		t.Errorf("without a CA: %d", a.status)
	}

	// The token's stream saw none of it.
	n.host.emit("vm.lifecycle", web1)
	lines := bufio.NewScanner(follow.Body)
	for lines.Scan() && !strings.Contains(lines.Text(), "vm.lifecycle") {
	}
	if !strings.Contains(lines.Text(), "vm.lifecycle") {
		t.Errorf("%q, %v", lines.Text(), lines.Err())
	}
}

// The socket is served whatever is wrong with the network, and the port opens as soon as
// it can.
func TestNetworkComesLater(t *testing.T) {
	ca, dir := accesstest.NewCA(t, "ca"), t.TempDir()
	h, stop := serveWith(t, func(c *Config, _ *fakeHost) { c.TLSListen = "127.0.0.1:0" }, func(s *Server) {
		s.network.again = time.Millisecond
		if err := s.SetTLS(TLS{Certificate: filepath.Join(dir, "s.crt"), Key: filepath.Join(dir, "s.key")}); err == nil {
			t.Error("there is no such file")
		}
	})
	if _, body := fetch(t, h.client(t), "GET", "/v1", ""); h.NetworkAddr() != nil || !strings.Contains(body, "s.crt") || !strings.Contains(body, `"degraded"`) {
		t.Errorf("%v: %s", h.NetworkAddr(), body)
	}
	cert, key := ca.Server().Write(dir, "s")
	for h.NetworkAddr() == nil {
		<-time.After(time.Millisecond)
	}
	if _, body := fetch(t, h.client(t), "GET", "/v1", ""); !strings.Contains(body, `"ready"`) {
		t.Error(body)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}

	// A port that is taken is told, no reason to end, and had when it is free.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h, stop = serveWith(t, func(c *Config, _ *fakeHost) { c.TLSListen = l.Addr().String() }, func(s *Server) {
		s.network.again = time.Millisecond
		if err := s.SetTLS(TLS{Certificate: cert, Key: key}); err != nil {
			t.Error(err)
		}
	})
	if _, body := fetch(t, h.client(t), "GET", "/v1/health/ready", ""); h.NetworkAddr() != nil || !strings.Contains(body, "address already in use") {
		t.Errorf("%v: %s", h.NetworkAddr(), body)
	}
	l.Close()
	for h.NetworkAddr() == nil {
		<-time.After(time.Millisecond)
	}
	if lines := strings.Count(h.log.String(), "the network is not served"); lines != 1 {
		t.Errorf("told %d times", lines)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
