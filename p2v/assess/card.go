package assess

import (
	_ "embed"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"unicode"
)

//go:embed cards.json
var cardsFile []byte

// A card is what is known of a GPU by the name of its model.
type card struct {
	Match      []string `json:"match"`
	SMs        int      `json:"sms"`
	Capability string   `json:"compute_capability"`
}

var knownCards = sync.OnceValue(func() []card {
	var file struct {
		Cards []card `json:"cards"`
	}
	if err := json.Unmarshal(cardsFile, &file); err != nil {
		panic("assess: cards.json: " + err.Error()) // it is built in, and tested
	}
	return file.Cards
})

// cardOf finds a model; the zero value where it is not known.
func cardOf(model string) card {
	words := modelWords(model)
	for _, c := range knownCards() {
		if !slices.ContainsFunc(c.Match, func(w string) bool { return !slices.Contains(words, strings.ToLower(w)) }) {
			return c
		}
	}
	return card{}
}

// modelWords cuts a model's name at what is no letter and no digit.
func modelWords(model string) []string {
	return strings.FieldsFunc(strings.ToLower(model), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
}

// sameModel tells whether two names are of one model: the vendor in front makes no
// difference. Without a name nothing is the same.
func sameModel(a, b string) bool {
	trim := func(s string) []string {
		w := modelWords(s)
		for len(w) > 0 && (w[0] == nvidia || w[0] == "tesla") {
			w = w[1:]
		}
		return w
	}
	x, y := trim(a), trim(b)
	return len(x) > 0 && slices.Equal(x, y)
}
