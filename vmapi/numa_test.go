package vmapi

import (
	"slices"
	"testing"
)

func TestMemoryNodes(t *testing.T) {
	dom := func(id, tune string) string {
		return "<domain" + id + "><name>v</name><uuid>" + uuidA + "</uuid>" + tune + "</domain>"
	}
	const both = `<numatune><memory mode='strict' nodeset='1-4,^3'/><memnode cellid='0' mode='preferred' nodeset='6'/><memnode cellid='2' mode='strict' nodeset='1'/></numatune>`
	for name, c := range map[string]struct {
		def  definition
		want []int
	}{
		"said nothing":     {definition{config: dom("", "")}, nil},
		"shut off":         {definition{config: dom("", both)}, []int{1, 2, 4, 6}},
		"running":          {definition{live: dom(" id='3'", `<numatune><memory mode='strict' nodeset='0'/></numatune>`), config: dom("", both)}, []int{0}},
		"transient":        {definition{live: dom(" id='3'", both)}, []int{1, 2, 4, 6}},
		"by libvirt":       {definition{config: dom("", `<numatune><memory mode='strict' placement='auto'/></numatune>`)}, nil},
		"not a set":        {definition{config: dom("", `<numatune><memory nodeset='x'/><memnode cellid='0' nodeset='2'/></numatune>`)}, []int{2}},
		"beyond all nodes": {definition{config: dom("", `<numatune><memory nodeset='0-4000000000'/></numatune>`)}, nil},
		"backwards":        {definition{config: dom("", `<numatune><memory nodeset='3-1'/></numatune>`)}, nil},
	} {
		vm, err := interpret(c.def)
		if err != nil || !slices.Equal(vm.MemoryNodes, c.want) {
			t.Errorf("%s: %v, %v; want %v", name, vm.MemoryNodes, err, c.want)
		}
	}
}
