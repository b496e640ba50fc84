package assess

import (
	_ "embed"
	"encoding/json"
	"regexp"
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

// A device is what is known of a card by its PCI device.
type device struct {
	ID        string `json:"id"`                  // "10de:20f1"
	Subsystem string `json:"subsystem,omitempty"` // empty: whatever it is
	Name      string `json:"name"`                // as NVIDIA's driver has it, without the vendor
	MemoryMiB uint64 `json:"memory_mib"`
}

type cardTable struct {
	Cards   []card   `json:"cards"`
	Devices []device `json:"devices"`
}

var knownCards = sync.OnceValue(func() cardTable {
	var file cardTable
	if err := json.Unmarshal(cardsFile, &file); err != nil {
		panic("assess: cards.json: " + err.Error()) // it is built in, and tested
	}
	return file
})

// pciID is what stands for a model where nobody tells its name: "10de:20f1".
var pciID = regexp.MustCompile(`^[0-9a-f]{4}:[0-9a-f]{4}$`)

// deviceOf finds a card by the ids of its PCI device; the zero value where it is not known.
func deviceOf(id, subsystem string) device {
	for _, d := range knownCards().Devices {
		if d.ID == id && (d.Subsystem == "" || d.Subsystem == subsystem) {
			return d
		}
	}
	return device{}
}

// cardOf finds a model; the zero value where it is not known.
func cardOf(model string) card {
	words := modelWords(model)
	for _, c := range knownCards().Cards {
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
