// Package guides reads what README, guides and the page of Ansible tell people to type and to
// write, so that tests can hold it against what there is. It owns nothing of that.
package guides

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A Block is a fenced block of a page.
type Block struct {
	Page     string // from the top of the tree
	Line     int    // of its first line in the page, from 1
	Language string // "sh", "console", "yaml"; empty: none is said
	Text     string // of whole lines, without the indent of its fence
}

// A Command is a program that a block, or a piece of code in a sentence, calls.
type Command struct {
	Where string   // "docs/guides/install.md:12"
	Words []string // as the shell would give them to the program, which is the first
	// Inline says that a sentence has it: arguments may be left out there, and more may follow.
	Inline bool
}

// Blocks are the fenced blocks of all pages. It fails the test where a fence has no end.
func Blocks(t testing.TB) []Block {
	t.Helper()
	var all []Block
	for page, lines := range pages(t) {
		begin, indent := -1, ""
		for i, line := range lines {
			fence := strings.TrimLeft(line, " ")
			if !strings.HasPrefix(fence, "```") {
				continue
			}
			if begin < 0 {
				begin, indent = i, line[:len(line)-len(fence)]
				continue
			}
			b := Block{Page: page, Line: begin + 2, Language: strings.TrimPrefix(strings.TrimSpace(lines[begin]), "```")}
			for _, inside := range lines[begin+1 : i] {
				b.Text += strings.TrimPrefix(inside, indent) + "\n"
			}
			all, begin = append(all, b), -1
		}
		if begin >= 0 {
			t.Fatalf("%s:%d: the block has no end", page, begin+1)
		}
	}
	return all
}

// Commands are the calls of a program, by its name, in blocks of shell and in sentences. A call
// on another machine, by ssh, is one.
func Commands(t testing.TB, program string) []Command {
	t.Helper()
	var all []Command
	add := func(where, text string, inline bool) {
		for _, words := range simple(text) {
			at := 0
			if words[0] == "ssh" && len(words) > 2 {
				at = 2
			}
			if filepath.Base(words[at]) == program {
				all = append(all, Command{where, words[at:], inline})
			}
		}
	}
	for _, b := range Blocks(t) {
		if b.Language != "sh" && b.Language != "console" {
			continue
		}
		text := strings.ReplaceAll(b.Text, "\\\n", "")
		for line := range strings.Lines(text) {
			if b.Language == "console" {
				prompt := strings.HasPrefix(line, "$ ")
				line = strings.TrimPrefix(line, "$ ")
				if !prompt {
					continue // what it answers
				}
			}
			add(fmt.Sprintf("%s:%d", b.Page, b.Line), line, false)
		}
	}
	for page, lines := range pages(t) {
		fenced := false
		for i, line := range lines {
			if strings.HasPrefix(strings.TrimLeft(line, " "), "```") {
				fenced = !fenced
			}
			if fenced {
				continue
			}
			for n, code := range strings.Split(line, "`") {
				if n%2 == 1 && strings.HasPrefix(code, program+" ") {
					add(fmt.Sprintf("%s:%d", page, i+1), code, true)
				}
			}
		}
	}
	return all
}

// pages are the lines of all pages, by their names from the top of the tree.
func pages(t testing.TB) map[string][]string {
	t.Helper()
	top, err := os.Getwd()
	for err == nil {
		if _, gone := os.Stat(filepath.Join(top, "go.mod")); gone == nil {
			break
		}
		if top == filepath.Dir(top) {
			t.Fatal("this is not in the tree")
		}
		top = filepath.Dir(top)
	}
	names, globErr := filepath.Glob(filepath.Join(top, "docs/guides/*.md"))
	if err != nil || globErr != nil || len(names) == 0 {
		t.Fatalf("there are no guides in %s: %v, %v", top, err, globErr)
	}
	all := map[string][]string{}
	for _, name := range append(names, filepath.Join(top, "README.md"), filepath.Join(top, "docs/ansible.md")) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		page, err := filepath.Rel(top, name)
		if err != nil {
			t.Fatal(err)
		}
		all[page] = strings.Split(string(text), "\n")
	}
	return all
}

// simple splits a line of shell into the words of its simple commands. It knows quotes, comments,
// what stands between commands, and redirections, which it leaves out; what "$(…)" stands for
// is one word.
func simple(line string) (all [][]string) {
	var words []string
	var word strings.Builder
	inWord, skip, depth := false, false, 0
	var quote rune
	endWord := func() {
		if inWord && !skip {
			words = append(words, word.String())
		}
		if inWord {
			skip = false
		}
		inWord = false
		word.Reset()
	}
	endCommand := func() {
		endWord()
		if len(words) > 0 {
			all = append(all, words)
		}
		words, skip = nil, false
	}
	last := ' '
scan:
	for _, c := range line {
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			} else {
				word.WriteRune(c)
			}
		case depth > 0 || c == '(' && (last == '$' || last == '<'):
			if c == '(' {
				depth++
			} else if c == ')' {
				depth--
			}
			inWord = true
			word.WriteRune(c)
		case c == '\'' || c == '"':
			quote, inWord = c, true
		case c == '#' && !inWord:
			break scan
		case c == ' ' || c == '\t' || c == '\n':
			endWord()
		case c == '|' || c == ';' || c == '&' || c == '(' || c == ')':
			endCommand()
		case c == '>' || c == '<':
			endWord()
			skip = true
		default:
			inWord = true
			word.WriteRune(c)
		}
		last = c
	}
	endCommand()
	return all
}
