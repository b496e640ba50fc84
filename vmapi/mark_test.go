package vmapi

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
)

func TestMarked(t *testing.T) {
	const made = `<gpuvirt:made xmlns:gpuvirt="https://gpuvirt.dev/domain/1" by="M1"/>`
	const other = `<x:app xmlns:x="http://example.org/1"><x:made by="M9"/></x:app>`
	for _, tc := range []struct{ name, metadata, want string }{
		{"none", "", made},
		{"empty", "<metadata/>", made},
		{"of another program", "<metadata>\n " + other + "\n</metadata>", other + made},
		{"marked already", "<metadata>" + made + other + "</metadata>", other + made},
		{"marked in another spelling", "<metadata>" + other + "<made xmlns='https://gpuvirt.dev/domain/1' by='M1'><x/></made></metadata>", other + made},
		{"a mark of one that was tried", "<metadata>" + strings.Replace(made, "/>", ` trial="yes"/>`, 1) + "</metadata>", made},
	} {
		got, err := Marked("<domain type='kvm'><name>v</name><uuid>"+uuidA+"</uuid>"+tc.metadata+"</domain>", "M1")
		_, got, _ = strings.Cut(got, "<metadata>")
		got, _, _ = strings.Cut(got, "</metadata>")
		if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", tc.name, err, diff)
		}
	}
	for _, tc := range []struct {
		name, doc, mark string
		code            gpu.Code
		part            string
	}{
		{"another's", "<domain><metadata>" + made + "</metadata></domain>", "M2", gpu.CodeConflict, `the mark "M1" already`},
		{"no XML", "<domain", "M1", gpu.CodeInvalid, "cannot parse it"},
		{"no mark", "<domain/>", "", gpu.CodeInvalid, "no mark"},
		{"no name of a mark", "<domain/>", `M1"/>`, gpu.CodeInvalid, "no mark"},
	} {
		_, err := Marked(tc.doc, tc.mark)
		wantCode(t, err, tc.code, tc.part)
	}
}

func TestInterpretMarks(t *testing.T) {
	dom := func(id, mark string) string {
		if mark != "" {
			mark = "<metadata><m:made xmlns:m='https://gpuvirt.dev/domain/1' " + mark + "/></metadata>"
		}
		return "<domain" + id + "><name>v</name><uuid>" + uuidA + "</uuid>" + mark + "</domain>"
	}
	const id, by, tried = " id='7'", "by='M1'", "by='M1' trial='yes'"
	for _, tc := range []struct {
		name  string
		def   definition
		mark  string
		trial bool
	}{
		{"none", definition{live: dom(id, ""), config: dom("", "")}, "", false},
		{"of another namespace", definition{config: strings.Replace(dom("", by), "domain/1", "domain/2", 1)}, "", false},
		{"runs", definition{live: dom(id, by), config: dom("", by)}, "M1", false},
		{"on trial", definition{live: dom(id, tried), config: dom("", by)}, "M1", true},
		{"transient", definition{live: dom(id, tried)}, "M1", true},
		{"shut off", definition{config: dom("", by)}, "M1", false},
		{"a trial that somebody defined", definition{config: dom("", tried)}, "M1", false},
		{"taken away from the definition", definition{live: dom(id, by), config: dom("", "")}, "", false},
	} {
		vm, err := interpret(tc.def)
		if err != nil || vm.Mark != tc.mark || vm.Trial != tc.trial {
			t.Errorf("%s: %q, %t, %v", tc.name, vm.Mark, vm.Trial, err)
		}
	}
}
