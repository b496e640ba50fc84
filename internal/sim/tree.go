package sim

import (
	"path"
	"slices"
	"strings"
	"syscall"
)

// A node is a file, a directory or a link of the simulated sysfs.
type node struct {
	dir    bool
	link   string // target
	text   string
	unread bool                     // write-only, as create and remove are
	act    func(value string) error // nil: not writable
	errno  syscall.Errno            // what reading it answers
}

// A tree is the whole sysfs at one moment: nodes by path.
type tree struct {
	nodes map[string]node
	names map[string][]string // of each directory, sorted
}

func newTree() *tree {
	return &tree{nodes: map[string]node{"": {dir: true}}, names: map[string][]string{}}
}

// add puts a node in its place and makes the directories above it.
func (t *tree) add(name string, n node) {
	if _, ok := t.nodes[name]; ok && n.dir {
		return
	}
	t.nodes[name] = n
	dir, base := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	if _, ok := t.nodes[dir]; !ok {
		t.add(dir, node{dir: true})
	}
	t.names[dir] = append(t.names[dir], base)
}

func (t *tree) file(name, text string) { t.add(name, node{text: text}) }

// put is file for one that may be there already.
func (t *tree) put(name, text string) {
	if _, ok := t.nodes[name]; !ok {
		t.file(name, text)
	}
}

func (t *tree) mkdir(name string) { t.add(name, node{dir: true}) }

// symlink adds a link, relative as all links in sysfs are.
func (t *tree) symlink(name, target string) {
	from, to := strings.Split(path.Dir(name), "/"), strings.Split(target, "/")
	for len(from) > 0 && len(to) > 1 && from[0] == to[0] {
		from, to = from[1:], to[1:]
	}
	t.add(name, node{link: strings.Repeat("../", len(from)) + path.Join(to...)})
}

func (t *tree) sort() {
	for _, names := range t.names {
		slices.Sort(names)
	}
}

// find walks a path as the kernel does. A link in the last place is followed only
// if asked.
func (t *tree) find(name string, follow bool) (string, node, error) {
	rest := strings.Split(name, "/")
	at := ""
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		if here := t.nodes[at]; !here.dir {
			return "", node{}, failed{name, syscall.ENOTDIR}
		}
		switch part {
		case "", ".":
			continue
		case "..":
			at = strings.TrimPrefix(path.Dir("/"+at), "/")
			continue
		}
		next := path.Join(at, part)
		n, ok := t.nodes[next]
		if !ok {
			return "", node{}, failed{name, syscall.ENOENT}
		}
		if n.link == "" || (len(rest) == 0 && !follow) {
			at = next
			continue
		}
		if links++; links > 40 {
			return "", node{}, failed{name, syscall.ELOOP}
		}
		rest = append(strings.Split(n.link, "/"), rest...)
	}
	return at, t.nodes[at], nil
}
