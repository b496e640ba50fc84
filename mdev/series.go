package mdev

import "regexp"

// seriesPattern is how NVIDIA calls types of vGPU: "A2-4Q", "RTX6000-Ada-48C", and with
// the slices of the GPU instance that it stands on "A100-2-10CME", "DC-1-24QGFX".
var seriesPattern = regexp.MustCompile(`^[A-Z0-9]+(?:-[a-zA-Z]+)*(?:-[1-9])?-(?:0|[1-9][0-9]*)([ABCQ])(?:ME|NOME|MEALL|GFX)?$`)

// addSeries adds the letter of a vGPU's series, which says what it is for and how it is
// licensed: A applications, B desktops, C computing, Q workstations. A name of another
// form has none.
func addSeries(attributes map[string]string, profile string) {
	if m := seriesPattern.FindStringSubmatch(profile); m != nil {
		attributes["series"] = m[1]
	}
}
