package virtp2v

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"golang.org/x/crypto/ssh"
)

const maxLine = 4096 // bytes of what is typed

// The folder that virt-p2v makes: /tmp/virt-p2v-YYYYMMDD-XXXXXXXX. It is a name here, and in memory.
const folderName = `/tmp/virt-p2v-[0-9]{8}-[0-9a-z]{8}`

// What virt-p2v types, from 1.38 on.
var (
	typedBash    = regexp.MustCompile(`^exec bash --noediting --noprofile$`)
	typedPrompt  = regexp.MustCompile(`^export (?:LANG=C )?PS1='###''([0-9a-z]{1,32})''### '$`)
	typedVersion = regexp.MustCompile(`^(?:sudo -n )?virt-v2v --version$`)
	typedFeature = regexp.MustCompile(`^(?:sudo -n )?virt-v2v --machine-readable$`)
	typedMkdir   = regexp.MustCompile(`^mkdir (` + folderName + `)$`)
	typedDate    = regexp.MustCompile(`^date > ` + folderName + `/time$`)
	typedConvert = regexp.MustCompile(`^(` + folderName + `)/virt-v2v-wrapper\.sh; exit \$\(< (` + folderName + `)/status\)$`)
	typedExit    = regexp.MustCompile(`^exit(?: 0)?$`)

	runsSCP = regexp.MustCompile(`^scp(?: -[a-zA-Z]+)* -t (?:-- )?(` + folderName + `)/?$`)
)

// What is answered: the version is one that every virt-p2v accepts, as the major one has to be 1 for
// older ones.
const (
	version  = "virt-v2v 1.99.0gpuvirt"
	features = "virt-v2v\nlibguestfs-rewrite\ncolours-option\ninput:libvirtxml\noutput:libvirt\n"
)

// session serves one channel, which is counted: what is typed into a shell, or files. It returns when the
// other end knows that it is over: until then what came by it is kept.
func (c *conn) session(ctx context.Context, ch ssh.Channel, asked <-chan *ssh.Request) {
	defer c.l.leave(c)
	defer ssh.DiscardRequests(asked)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer ch.Close()                                          //nolint:errcheck // it is over
	defer context.AfterFunc(ctx, func() { _ = ch.Close() })() // a read that waits
	var serve func() (status int)
	for r := range asked {
		var p struct{ Text string }
		known := true
		switch r.Type {
		case "pty-req", "env", "window-change":
		case "shell":
			serve = func() int { return c.shell(ctx, ch) }
		case "exec":
			m := []string(nil)
			if ssh.Unmarshal(r.Payload, &p) == nil {
				m = runsSCP.FindStringSubmatch(p.Text)
			}
			if known = m != nil; known {
				serve = func() int { return status(c.scp(ch, m[1])) }
			}
		case "subsystem":
			if known = ssh.Unmarshal(r.Payload, &p) == nil && p.Text == "sftp"; known {
				serve = func() int { return status(c.sftp(ch)) }
			}
		default:
			known = false
		}
		if r.WantReply {
			_ = r.Reply(known, nil)
		}
		if serve != nil {
			break
		}
	}
	if serve == nil {
		return
	}
	go ssh.DiscardRequests(asked) // ends with the channel
	code := serve()
	_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(code)})) //nolint:gosec // 0 or 1
}

func status(err error) int {
	if err != nil {
		return 1
	}
	return 0
}

// shell answers what virt-p2v types. Nothing is run.
func (c *conn) shell(ctx context.Context, ch ssh.Channel) int {
	in := bufio.NewReaderSize(ch, maxLine)
	out := terminal{ch}
	prompt := ""
	for {
		line, err := typed(in)
		if err != nil {
			return 1
		}
		m := func(re *regexp.Regexp) bool { return re.MatchString(line) }
		answer := ""
		switch {
		case line == "" || m(typedBash) || m(typedDate):
		case m(typedPrompt):
			prompt = "###" + typedPrompt.FindStringSubmatch(line)[1] + "### "
		case m(typedVersion):
			answer = version + "\n"
		case m(typedFeature):
			answer = features
		case m(typedMkdir):
			if err := c.l.mkdir(c, typedMkdir.FindStringSubmatch(line)[1]); err != nil {
				answer = err.Error() + "\n"
			}
		case m(typedConvert):
			found := typedConvert.FindStringSubmatch(line)
			if found[1] != found[2] {
				return 1
			}
			return status(c.convert(ctx, in, out, found[1]))
		case m(typedExit):
			return 0
		default:
			answer = "gpuvirt: this is no shell, and answers virt-p2v only\n"
		}
		if _, err := io.WriteString(out, answer+prompt); err != nil {
			return 1
		}
	}
}

// typed is the next line, without its end. One that is too long is an error.
func typed(in *bufio.Reader) (string, error) {
	var line []byte
	for {
		b, err := in.ReadByte()
		switch {
		case err != nil:
			return "", err
		case b == '\n' || b == '\r':
			return strings.TrimSpace(string(line)), nil
		case len(line) == maxLine:
			return "", fmt.Errorf("what is typed has more than %d bytes", maxLine)
		}
		line = append(line, b)
	}
}

// A terminal is written to as the other end expects it.
type terminal struct{ io.Writer }

// Write ends lines as a terminal does.
func (t terminal) Write(b []byte) (int, error) {
	if _, err := io.WriteString(t.Writer, strings.ReplaceAll(string(b), "\n", "\r\n")); err != nil {
		return 0, err
	}
	return len(b), nil
}

var (
	errCancelled = errors.New("somebody there has cancelled it")
	errGone      = errors.New("the server has gone")
)

// convert is what virt-v2v would be called for. It is over when the server is not needed any more,
// when somebody cancels it there, or when the connection ends.
func (c *conn) convert(ctx context.Context, in *bufio.Reader, out io.Writer, folder string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // ends with the channel
		const interrupt = 3 // ctrl-C
		for {
			switch b, err := in.ReadByte(); {
			case err != nil:
				cancel(errGone)
				return
			case b == interrupt:
				cancel(errCancelled)
				return
			}
		}
	}()
	err := c.arrive(ctx, out, folder)
	if err != nil {
		fmt.Fprintf(out, "\n*** gpuvirt: %s ***\n", shown(err.Error()))
		c.l.o.Log.WarnContext(ctx, "virt-p2v was refused, or has gone", "from", c.from.String(), "err", err)
	}
	return err
}
