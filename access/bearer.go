package access

import (
	"errors"
	"strings"
)

const maxBearer = 512 // bytes of a token's text

// ParseBearer reads the values of the headers Authorization of one request: the text of a
// token, or none where there is no such header. Anything else in them is an error that
// holds nothing of it, as it may be a secret.
func ParseBearer(headers []string) (text string, err error) {
	if len(headers) == 0 {
		return "", nil
	}
	if len(headers) > 1 {
		return "", errors.New("there is more than one header Authorization")
	}
	scheme, text, found := strings.Cut(headers[0], " ")
	if !found || !strings.EqualFold(scheme, "Bearer") {
		return "", errors.New("the header Authorization is not of the form: Bearer TOKEN")
	}
	text = strings.Trim(text, " ")
	switch {
	case text == "":
		return "", errors.New("the header Authorization holds no token")
	case len(text) > maxBearer:
		return "", errors.New("what the header Authorization holds is too long for a token")
	case strings.ContainsFunc(text, func(r rune) bool { return !isTokenRune(r) }):
		return "", errors.New("what the header Authorization holds cannot be a token")
	}
	return text, nil
}

// isTokenRune tells what RFC 6750 lets a token consist of.
func isTokenRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-._~+/=", r)
}
