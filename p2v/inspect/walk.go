package inspect

import (
	"path"
	"strings"
	"time"
)

// A walker goes through folders, until it has seen enough. It does not follow links, and
// does not enter what is mounted from elsewhere, or what an automounter would mount.
type walker struct {
	*scene
	left   int // entries
	until  time.Time
	closed map[string]bool
	ended  bool // it could not see all
}

const walkLimit = 5 * time.Second

func (s *scene) walker(entries int) *walker {
	w := &walker{scene: s, left: entries, until: time.Now().Add(walkLimit), closed: map[string]bool{"proc": true, "sys": true, "dev": true, "run": true}}
	text, _ := s.tree.read("proc/self/mountinfo", large)
	for _, m := range parseMounts(text) {
		// An overlay is a container's root, and not the server's own.
		if m.network() || m.kind == "autofs" || m.kind == "overlay" && m.at != "/" || strings.HasPrefix(m.kind, "fuse") {
			w.closed[strings.Trim(m.at, "/")] = true
		}
	}
	return w
}

// enter returns what is in a folder, nothing where it may not or need not be looked into.
func (w *walker) enter(dir string) []entry {
	if w.closed[dir] {
		return nil
	}
	if w.left <= 0 || w.ctx.Err() != nil || time.Now().After(w.until) {
		w.ended = true
		return nil
	}
	all, err := w.tree.entries(w.ctx, dir, w.left+1)
	if len(all) > w.left {
		all, w.ended = all[:w.left], true
	}
	w.left -= len(all)
	if err != nil && w.ctx.Err() != nil {
		w.ended = true
	}
	return all
}

// walk calls f for what is in a folder, and so many folders deep.
func (w *walker) walk(dir string, deep int, f func(entry)) {
	for _, e := range w.enter(dir) {
		f(e)
		if e.dir && deep > 1 && !uninteresting(path.Base(e.path)) {
			w.walk(e.path, deep-1, f)
		}
	}
}

// uninteresting folders are large and hold nothing that people wrote.
func uninteresting(name string) bool {
	switch name {
	case "node_modules", ".git", "site-packages", "dist-packages", "__pycache__", "overlay2", ".venv", "venv", "conda", "miniconda3", "anaconda3", "containers", ".npm":
		return true
	}
	return false
}
