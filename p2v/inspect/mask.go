package inspect

import (
	"regexp"
	"strings"
)

// masked stands for a secret.
const masked = "***"

// Words in the name of a setting that say that its value is a secret.
const secretWords = `(?:pass(?:wd|word|phrase)?|pwd|secret|token|api[-_.]?key|access[-_.]?key|private[-_.]?key|secret[-_.]?key|account[-_.]?key|` +
	`encryption[-_.]?key|ssh[-_.]?key|hf[-_.]?key|license[-_.]?key|licence[-_.]?key|ngc[-_.]?key|credentials?|creds?|auth|authorization|bearer|cookie|session[-_.]?id|sas|signature|dsn|conn(?:ection)?[-_.]?str(?:ing)?|key)`

var (
	// PASSWORD=x, --api-key x, "token": "x", -e HF_TOKEN=x: the word stands at the end of the
	// name, or with a part after it that tells no more (TOKEN_ID, KEY_1).
	secretName = regexp.MustCompile(`(?i)(?:^|[-_.a-z0-9])` + secretWords + `(?:[-_.]?(?:id|value|data|b64|base64|[0-9]+))?$`)
	// What is named so and is no secret: counts, files' names, words of models' vocabulary.
	plainName = regexp.MustCompile(`(?i)(?:^|[-_.])(?:max|min|num|special|pad|eos|bos|unk|sep|cls|mask|stop|image|video|audio)[-_.]?token$|` +
		`(?:^|[-_.])(?:primary|public|foreign|sort|partition|cache|routing)[-_.]?key$|tokenizer|(?:file|path|dir)$`)
	setting = regexp.MustCompile(`(["']?)(-{0,2}[A-Za-z_][\w.\-]*)(["']?)(\s*[=:]\s*)("[^"]*"|'[^']*'|[^\s,;&"']+)`)
	spaced  = regexp.MustCompile(`(^|\s)(--?[A-Za-z][\w.\-]*)(\s+)("[^"]*"|'[^']*'|[^\s"'-]\S*)`)

	inURL  = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.\-]*://)[^/\s"']+@`)
	bearer = regexp.MustCompile(`(?i)\b(bearer|basic|digest|negotiate)\s+[A-Za-z0-9+/=._~\-]{6,}`)
	// What issuers of secrets begin them with, and JSON Web Tokens.
	issued = regexp.MustCompile(`\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_\-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w\-]{16,}|nvapi-[\w\-]{16,}|` +
		`xox[abprs]-[\w\-]{10,}|AKIA[0-9A-Z]{12,}|ASIA[0-9A-Z]{12,}|AIza[\w\-]{30,}|eyJ[\w\-]{6,}\.[\w\-]{6,}(?:\.[\w\-]*)?|npm_[A-Za-z0-9]{20,}|dckr_pat_[\w\-]{16,})`)
	armoured = regexp.MustCompile(`-----BEGIN [^-]*-----(?s:.*?)(?:-----END [^-]*-----|$)`)
	// A long run of letters and digits that is no UUID and no path.
	long = regexp.MustCompile(`[A-Za-z0-9+_\-]{32,}={0,2}`)
	hash = regexp.MustCompile(`^(?:GPU-|MIG-)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$|^[0-9a-f]{64}$`)
)

// secret reports whether a setting's name says that its value is one.
func secret(name string) bool {
	name = strings.TrimLeft(name, "-")
	return secretName.MatchString(name) && !plainName.MatchString(name)
}

// maskLine replaces what looks like a secret in a line of text.
func maskLine(s string) string {
	s = armoured.ReplaceAllString(s, masked)
	s = inURL.ReplaceAllString(s, "${1}"+masked+"@")
	s = bearer.ReplaceAllString(s, "${1} "+masked)
	s = issued.ReplaceAllString(s, masked)
	s = maskSettings(s)
	s = spaced.ReplaceAllStringFunc(s, func(m string) string {
		g := spaced.FindStringSubmatch(m)
		if !secret(g[2]) {
			return m
		}
		return g[1] + g[2] + g[3] + masked
	})
	return long.ReplaceAllStringFunc(s, func(m string) string {
		if hash.MatchString(m) || !mixed(m) {
			return m
		}
		return masked
	})
}

// maskSettings masks the values of settings, also of those within another's value, as in
// Environment=TOKEN=x.
func maskSettings(s string) string {
	return setting.ReplaceAllStringFunc(s, func(m string) string {
		g := setting.FindStringSubmatch(m)
		head := g[1] + g[2] + g[3] + g[4]
		if secret(g[2]) {
			return head + masked
		}
		return head + maskSettings(g[5])
	})
}

// mixed reports whether a run of characters looks drawn by chance: long names of models and
// files are of words.
func mixed(s string) bool {
	changes, digits, last := 0, 0, 0
	for _, c := range s {
		var kind int
		switch {
		case c >= '0' && c <= '9':
			kind, digits = 1, digits+1
		case c >= 'a' && c <= 'z':
			kind = 2
		case c >= 'A' && c <= 'Z':
			kind = 3
		default:
			kind = last // separators join
		}
		if kind != last && last != 0 {
			changes++
		}
		last = kind
	}
	return digits >= 3 && changes*3 >= len(s)
}

// maskArgs masks the arguments of a program: also one whose name is the argument before it.
func maskArgs(args []string) []string {
	out := make([]string, 0, len(args))
	hide := false
	for _, a := range args {
		switch {
		case hide:
			out = append(out, masked)
		default:
			out = append(out, maskLine(a))
		}
		hide = strings.HasPrefix(a, "-") && !strings.ContainsAny(a, "=: ") && secret(a)
		if a == "-H" || a == "--header" {
			hide = true
		}
	}
	return out
}

// maskOptions masks the options of a mount.
func maskOptions(s string) string {
	all := strings.Split(s, ",")
	for i, o := range all {
		if key, _, found := strings.Cut(o, "="); found && (secret(key) || key == "user" || key == "username") {
			all[i] = key + "=" + masked
		}
	}
	return strings.Join(all, ",")
}
