package vmapi

import (
	"encoding/xml"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gpuvirt/gpu"
)

// markSpace is the namespace of what we write into the metadata of a domain. libvirt
// keeps what is there as it is, one element of each namespace.
const markSpace = "https://gpuvirt.dev/domain/1"

var markPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// madeXML is the mark of a VM that we made.
type madeXML struct {
	By    string `xml:"by,attr"`    // migration
	Trial string `xml:"trial,attr"` // "yes": see Client.StartTrial
}

// metadataXML is the part of a domain's metadata that is read.
type metadataXML struct {
	Made []madeXML `xml:"https://gpuvirt.dev/domain/1 made"`
}

// mark returns what the metadata says; without a mark, the zero value.
func (m metadataXML) mark() madeXML {
	if len(m.Made) == 0 {
		return madeXML{}
	}
	return m.Made[0]
}

// Marked returns the definition of a domain (XML) with a mark that says which migration
// makes the VM. A definition that has another mark is refused with gpu.CodeConflict.
func Marked(doc, mark string) (string, error) {
	out, err := marked(doc, madeXML{By: mark})
	if err != nil {
		return "", fault(err, "cannot mark the definition of a VM")
	}
	return out, nil
}

func marked(doc string, mark madeXML) (string, error) {
	if !markPattern.MatchString(mark.By) {
		return "", gpu.Errorf(gpu.CodeInvalid, "%q is no mark", mark.By)
	}
	var dom libvirtxml.Domain
	if err := dom.Unmarshal(doc); err != nil {
		return "", gpu.Errorf(gpu.CodeInvalid, "cannot parse it: %w", err)
	}
	if err := setMark(&dom, mark); err != nil {
		return "", err
	}
	return dom.Marshal()
}

// setMark puts a mark into a definition, where it replaces the same of before.
func setMark(dom *libvirtxml.Domain, mark madeXML) error {
	var others string
	if dom.Metadata != nil {
		var err error
		if others, err = withoutMark(dom.Metadata.XML, mark.By); err != nil {
			return err
		}
	}
	made := fmt.Sprintf(`<gpuvirt:made xmlns:gpuvirt="%s" by="%s"/>`, markSpace, mark.By)
	if mark.Trial != "" {
		made = fmt.Sprintf(`<gpuvirt:made xmlns:gpuvirt="%s" by="%s" trial="%s"/>`, markSpace, mark.By, mark.Trial)
	}
	dom.Metadata = &libvirtxml.DomainMetadata{XML: strings.TrimSpace(others + made)}
	return nil
}

// withoutMark cuts our marks out of the metadata of a domain, and leaves the rest as it is.
func withoutMark(text, mark string) (string, error) {
	d := xml.NewDecoder(strings.NewReader("<metadata>" + text + "</metadata>"))
	offset := int64(len("<metadata>"))
	var kept strings.Builder
	from := int64(0)
	for depth := 0; ; {
		start := d.InputOffset() - offset
		tok, err := d.Token()
		if err != nil {
			return "", gpu.Errorf(gpu.CodeInvalid, "cannot parse its metadata: %w", err)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			if depth++; depth != 2 || tok.Name.Space != markSpace {
				continue
			}
			var made madeXML
			if err := d.DecodeElement(&made, &tok); err != nil {
				return "", gpu.Errorf(gpu.CodeInvalid, "cannot parse its mark: %w", err)
			}
			if made.By != mark {
				return "", gpu.Errorf(gpu.CodeConflict, "it has the mark %q already", made.By)
			}
			depth--
			kept.WriteString(text[from:start])
			from = d.InputOffset() - offset
		case xml.EndElement:
			if depth--; depth == 0 {
				kept.WriteString(text[from:start])
				return strings.TrimSpace(kept.String()), nil
			}
		}
	}
}

// A made is a domain to be defined by us.
type made struct{ uuid, name, mark string }

// parseMade reads which VM a definition makes.
func parseMade(doc string) (m made, err error) {
	var dom domainXML
	if err := xml.Unmarshal([]byte(doc), &dom); err != nil {
		return m, fmt.Errorf("cannot parse the definition: %w", err)
	}
	m.name, m.mark = dom.Name, dom.Metadata.mark().By
	if m.uuid, err = parseUUID(strings.TrimSpace(dom.UUID)); err != nil {
		return m, fmt.Errorf("uuid %q: %w", dom.UUID, err)
	}
	switch {
	case m.name == "":
		return m, errors.New("it has no name")
	case m.mark == "":
		return m, errors.New("it has no mark of ours")
	}
	return m, nil
}
