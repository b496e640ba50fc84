package daemon

import (
	"net/http"
	"time"

	"gpuvirt/access"
	"gpuvirt/api"
	"gpuvirt/gpu"
)

// defaultTokenLife is how long a token lives that nobody says otherwise of.
const defaultTokenLife = 90 * 24 * time.Hour

func tokenOf(t gpu.Token) api.Token {
	return api.Token{
		ID: t.ID, Name: t.Name, Role: t.Role, CreatedBy: t.CreatedBy, Created: clock(t.Created), Expires: clock(t.Expires), LastUsed: moment(t.LastUsed),
	}
}

func listTokens(s *Server, q *request) (response, error) {
	items := filter(q, convert(s.tokens.Tokens(), tokenOf), map[string]func(api.Token) string{
		"name": func(t api.Token) string { return t.Name },
		"role": func(t api.Token) string { return t.Role },
	})
	return page(q, items, func(t api.Token) string { return t.ID })
}

func getToken(s *Server, q *request) (response, error) {
	t, err := s.tokens.Token(q.path["token"])
	return object(tokenOf(t)), err
}

// createToken makes a token that may do no more, and lives no longer, than that of who asks.
func createToken(s *Server, q *request) (response, error) {
	body, err := decode[api.TokenRequest](q)
	if err != nil {
		return response{}, err
	}
	w, err := tokenWish(q.who, body, time.Now())
	if err != nil {
		return response{}, err
	}
	if q.dryRun() {
		return ok(planOf(gpu.Plan{Summary: "make token " + w.Name + " with the role " + w.Role, Changes: true, Refusal: s.tokens.Plan(w)})), nil
	}
	t, text, err := s.tokens.Create(w, q.who.Actor)
	if err != nil {
		return response{}, err
	}
	s.logToken(q, "token-created", t)
	return response{
		status: http.StatusCreated, header: http.Header{"Location": {"/v1/tokens/" + t.ID}},
		body: api.TokenCreated{Token: tokenOf(t), Secret: text},
	}, nil
}

func tokenWish(who Identity, body api.TokenRequest, now time.Time) (gpu.TokenWish, error) {
	w := gpu.TokenWish{Name: body.Name, Role: body.Role, Expires: now.Add(defaultTokenLife)}
	if err := checkAssignmentName(w.Name); err != nil {
		return w, invalid("field %q is malformed: %w", "name", err)
	}
	role, err := access.ParseRole(w.Role)
	if err != nil {
		return w, invalid("field %q is malformed: %w", "role", err)
	}
	if role > who.Role {
		return w, gpu.Errorf(gpu.CodeForbidden, "%s may not make a token with the role %s: its own is %s", who.Actor, role, who.Role)
	}
	limit := who.Expires
	if who.Token == "" {
		limit = time.Time{} // a certificate is renewed; what it lets in stays
	}
	switch {
	case body.Expires != nil && !limit.IsZero() && body.Expires.After(limit):
		return w, gpu.Errorf(gpu.CodeForbidden, "%s may not make a token that lives longer than itself, until %s", who.Actor, limit.UTC().Format(time.RFC3339))
	case body.Expires != nil:
		w.Expires = *body.Expires
	case !limit.IsZero() && w.Expires.After(limit):
		w.Expires = limit
	}
	w.Expires = w.Expires.UTC().Truncate(time.Second)
	return w, nil
}

func deleteToken(s *Server, q *request) (response, error) {
	t, err := s.tokens.Token(q.path["token"])
	if err != nil {
		return response{}, err
	}
	if err := q.precondition(func() (any, error) { return tokenOf(t), nil }); err != nil {
		return response{}, err
	}
	if q.dryRun() {
		return ok(planOf(gpu.Plan{Summary: "delete token " + t.Name, Changes: true})), nil
	}
	if t, err = s.tokens.Delete(t.ID); err != nil {
		return response{}, err
	}
	s.logToken(q, "token-deleted", t)
	return ok(tokenOf(t)), nil
}
