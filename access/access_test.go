package access

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"gpuvirt/access/accesstest"
)

func TestRoles(t *testing.T) {
	for _, r := range Roles() {
		if got, err := ParseRole(r.String()); err != nil || got != r {
			t.Errorf("%s: %s, %v", r, got, err)
		}
	}
	for _, text := range []string{"", "nobody", "Admin", "Role(7)", "root"} {
		if r, err := ParseRole(text); err == nil || r != Nobody {
			t.Errorf("%q is %s", text, r)
		}
	}
}

// A certificate has the highest role of the lists that name it, to the letter, and none
// where no list does.
func TestClients(t *testing.T) {
	spiffe, err := url.Parse("spiffe://bank/ci")
	if err != nil {
		t.Fatal(err)
	}
	ca := accesstest.NewCA(t, "ca")
	alice := ca.Client("alice", func(c *x509.Certificate) {
		c.Subject.OrganizationalUnit = []string{"Ops"}
		c.DNSNames, c.EmailAddresses, c.URIs = []string{"ci.bank.example"}, []string{"alice@bank.example"}, []*url.URL{spiffe}
	}).Leaf
	bare := ca.Client("", func(c *x509.Certificate) { c.Subject = pkix.Name{}; c.URIs = []*url.URL{spiffe} }).Leaf
	none := ca.Client("", func(c *x509.Certificate) { c.Subject = pkix.Name{} }).Leaf

	for text, want := range map[string][3]bool{
		"any": {true, true, true}, "cn:alice": {true}, "cn:Alice": {}, "subject:CN=alice,OU=Ops,O=Bank": {true}, "subject:CN=alice": {},
		"dns:ci.bank.example": {true}, "dns:*.bank.example": {}, "email:alice@bank.example": {true}, "uri:spiffe://bank/ci": {true, true}, "uri:spiffe://bank": {},
	} {
		c, err := ParseClient(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := [3]bool{c.Matches(alice), c.Matches(bare), c.Matches(none)}; got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
	for _, text := range []string{"", "alice", "Any", "cn:", "cn: alice", "cn:alice ", "o:Bank", "any:thing"} {
		if c, err := ParseClient(text); err == nil || c.Matches(alice) || c.Matches(none) {
			t.Errorf("%q is %+v, %v", text, c, err)
		}
	}

	for _, tc := range []struct {
		admins, operators, viewers []string
		want                       Role
	}{
		{nil, nil, nil, Nobody},
		{nil, nil, []string{"any"}, Viewer},
		{nil, []string{"cn:alice"}, []string{"any"}, Operator},
		{[]string{"cn:bob", "email:alice@bank.example"}, []string{"cn:alice"}, []string{"any"}, Admin},
		{[]string{"cn:bob"}, nil, nil, Nobody},
	} {
		c, err := ParseClients(tc.admins, tc.operators, tc.viewers)
		if got := c.RoleOf(alice); err != nil || got != tc.want {
			t.Errorf("%+v: %s, %v", tc, got, err)
		}
	}
	if _, err := ParseClients([]string{"x"}, []string{"cn:a"}, []string{"y"}); err == nil || !strings.Contains(err.Error(), `"x"`) || !strings.Contains(err.Error(), `"y"`) {
		t.Errorf("%v", err)
	}

	odd := ca.Client("a\nlice\x1b[31m" + strings.Repeat("x", 300)).Leaf
	for _, tc := range []struct {
		cert *x509.Certificate
		want string
	}{{alice, "CN=alice,OU=Ops,O=Bank"}, {bare, "spiffe://bank/ci"}, {none, "serial " + none.SerialNumber.Text(16)}} {
		if got := NameOf(tc.cert); got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
	if got := NameOf(odd); strings.ContainsAny(got, "\n\x1b") || len([]rune(got)) > 200 {
		t.Errorf("%q", got)
	}
}

func TestParseBearer(t *testing.T) {
	for header, want := range map[string]string{"Bearer abc": "abc", "bearer abc": "abc", "BEARER  a-._~+/=9 ": "a-._~+/=9"} {
		if got, err := ParseBearer([]string{header}); err != nil || got != want {
			t.Errorf("%q: %q, %v", header, got, err)
		}
	}
	if got, err := ParseBearer(nil); err != nil || got != "" {
		t.Errorf("no header: %q, %v", got, err)
	}
	for _, headers := range [][]string{
		{""},
		{"Bearer"},
		{"Bearer "},
		{"Basic secret"},
		{"secret"},
		{"Bearer a secret"},
		{"Bearer secret,"},
		{"Bearer sécret"},
		{"Bearer\tsecret"},
		{"Bearer secret", "Bearer secret"},
		{"Bearer secret" + strings.Repeat("x", maxBearer)},
		{"Bearer secret\x00"},
	} {
		got, err := ParseBearer(headers)
		if err == nil || got != "" || strings.Contains(err.Error(), "secret") {
			t.Errorf("%.40q: %q, %v", headers, got, err)
		}
	}
}

// Whatever stands in the header: what comes out is a short text of harmless letters that
// stood there, or an error that tells nothing of it.
func FuzzParseBearer(f *testing.F) {
	for _, h := range []string{"", "Bearer x", "bearer  gpuvirt_01KAR2Z7T4Y2M8Q6V0R9X3B000_AAAA", "Basic dTpw", "Bearer \x00", "Bearer,Bearer a", "Bearer ü"} {
		f.Add(h)
	}
	f.Fuzz(func(t *testing.T, header string) {
		got, err := ParseBearer([]string{header})
		if (err == nil) != (got != "") {
			t.Fatalf("%q: %q, %v", header, got, err)
		}
		if err != nil {
			return
		}
		scheme, rest, _ := strings.Cut(header, " ")
		if !strings.EqualFold(scheme, "bearer") || strings.Trim(rest, " ") != got || len(got) > maxBearer || strings.ContainsAny(got, " \t\r\n\x00,\"") {
			t.Errorf("%q: %q", header, got)
		}
	})
}

// Failures of one address, or of one customer's IPv6 network, are limited, and those of
// all; what others do does not count for one who has not failed.
func TestFailures(t *testing.T) {
	f := NewFailures()
	now := time.Now()
	fail := func(from string, n int) (limited int) {
		for range n {
			if retry, many := f.Add(netip.MustParseAddr(from), now); many {
				limited++
				if retry <= 0 {
					t.Errorf("%s: after %s", from, retry)
				}
			}
		}
		return limited
	}
	if got := fail("192.0.2.1", burst); got != 0 {
		t.Errorf("%d of the first %d", got, burst)
	}
	if got := fail("::ffff:192.0.2.1", 5); got != 5 {
		t.Errorf("%d of 5 more, as IPv6", got)
	}
	if got := fail("192.0.2.2", 1) + fail("2001:db8::1", 1); got != 0 {
		t.Error("an address counts for others")
	}
	if got := fail("2001:db8::2%eth0", burst); got != 1 {
		t.Errorf("%d of a network that failed once", got)
	}
	now = now.Add(every)
	if got := fail("192.0.2.1", 2); got != 1 {
		t.Errorf("%d of 2 after a while", got)
	}
	now = now.Add(time.Hour)
	limited := 0
	for i := range 3 * maxAddresses {
		_, many := f.Add(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), now)
		if many {
			limited++
		}
	}
	if limited < 3*maxAddresses-burstOfAll-1 || len(f.by) > maxAddresses {
		t.Errorf("%d limited, %d addresses", limited, len(f.by))
	}
	if _, many := f.Add(netip.Addr{}, now.Add(time.Hour)); many {
		t.Error("an unknown address is limited at once")
	}
}
