package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gpuvirt/api"
	"gpuvirt/client"
)

var tokenTable = table[api.Token]{
	things: "tokens",
	name:   func(t api.Token) string { return t.ID },
	columns: []column[api.Token]{
		{title: "NAME", value: func(t api.Token) string { return t.Name }},
		{title: "ROLE", value: func(t api.Token) string { return t.Role }},
		{title: "EXPIRES", value: expiry},
		{title: "LAST USED", value: func(t api.Token) string { return whenever(t.LastUsed) }},
		{title: "ID", value: func(t api.Token) string { return t.ID }},
		{title: "CREATED", wide: true, value: func(t api.Token) string { return when(t.Created) }},
		{title: "CREATED BY", wide: true, value: func(t api.Token) string { return t.CreatedBy }},
	},
}

func expiry(t api.Token) string {
	if !time.Now().Before(t.Expires) {
		return when(t.Expires) + " (expired)"
	}
	return when(t.Expires)
}

var roles = []string{"viewer", "operator", "admin"}

func tokenCommand(c *cli) *cobra.Command {
	show := completeArgs(c, &cobra.Command{
		Use: "show TOKEN", Short: "Show one token, by its name or id", Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := c.token(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printOne(c, t, t.ID, []field{
				{name: "ID", value: t.ID},
				{name: "Name", value: t.Name},
				{name: "Role", value: t.Role},
				{name: "Created", value: when(t.Created)},
				{name: "Created by", value: t.CreatedBy},
				{name: "Expires", value: expiry(t)},
				{name: "Last used", value: orDash(whenever(t.LastUsed))},
			})
		},
	}, 1, tokenNames)
	return group("token", "Who may ask the daemon over the network",
		listCommand(c, tokenTable, func(ctx context.Context, cl *client.Client, o client.ListOptions) ([]api.Token, error) {
			return cl.Tokens(ctx, o)
		}), show, tokenCreate(c), tokenDelete(c))
}

func tokenNames(ctx context.Context, c *cli) ([]string, error) {
	tokens, err := c.client().Tokens(ctx, client.ListOptions{})
	return names(tokens, func(t api.Token) string { return t.Name }), err
}

var tokenID = regexp.MustCompile(`^[0-9A-Z]{26}$`)

// token finds one by its id or name.
func (c *cli) token(ctx context.Context, idOrName string) (api.Token, error) {
	if tokenID.MatchString(idOrName) {
		return c.client().Token(ctx, idOrName)
	}
	found, err := c.client().Tokens(ctx, client.ListOptions{Filter: map[string]string{"name": idOrName}})
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("there is no token %q", idOrName)
	}
	if err != nil {
		return api.Token{}, err
	}
	return found[0], nil
}

func tokenCreate(c *cli) *cobra.Command {
	var want api.TokenRequest
	var expires, file string
	cmd := &cobra.Command{
		Use: "create NAME --role ROLE", Short: "Make a token", Args: takes(1),
		Long: `Make a token. Its secret is written to the standard output, or into a file, and
is not to be had again: the daemon keeps none. Whoever has it may do what the role
says, from anywhere that the daemon is reached from:
  viewer    looks at GPUs and what is made of them
  operator  also gives partitions to VMs and takes them back, and looks at moves of servers
  admin     also decides about GPUs, moves servers, and makes tokens`,
		Example: `  gpuvirt token create prometheus --role viewer --expires 366d --secret-file /root/prometheus.token
  gpuvirt --url https://kvm1.bank.example:8443 --token-file prometheus.token gpu list`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			want.Name = args[0]
			if expires != "" {
				at, err := parseExpiry(expires, time.Now())
				if err != nil {
					return &usageError{message: err.Error(), command: cmd.CommandPath()}
				}
				want.Expires = &at
			}
			switch {
			case c.dryRun:
				return c.showPlan(c.client().PlanCreateToken(ctx, want))
			case file != "":
				return c.createTokenFile(ctx, want, file)
			case c.output == "name":
				return &usageError{message: "-o name takes --secret-file: the secret would be lost", command: cmd.CommandPath()}
			}
			made, err := c.client().CreateToken(ctx, want)
			if err != nil {
				return err
			}
			if c.output == "json" || c.output == "yaml" {
				return c.encode(made)
			}
			c.say("made token %s (%s) with the role %s, until %s; this is its secret, and it is shown once:", made.Token.Name, made.Token.ID, made.Token.Role, when(made.Token.Expires))
			fmt.Fprintln(c.out, made.Secret)
			return nil
		},
	}
	cmd.Flags().StringVar(&want.Role, "role", "", "`role`: "+strings.Join(roles, ", "))
	cmd.Flags().StringVar(&expires, "expires", "", "`when` it ends: after a time such as 12h or 30d, or at one such as 2027-01-31T00:00:00Z (default 90d)")
	cmd.Flags().StringVar(&file, "secret-file", "", "write the secret into this `file`, which must not be there, for its owner only")
	must(cmd.MarkFlagRequired("role"))
	fixed(cmd, "role", roles...)
	return cmd
}

// createTokenFile makes the file first: a secret that cannot be written is one that nobody
// has.
func (c *cli) createTokenFile(ctx context.Context, want api.TokenRequest, path string) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // the file that the caller named
	if err != nil {
		return fmt.Errorf("cannot write the secret: %w", err)
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	made, err := c.client().CreateToken(ctx, want)
	if err != nil {
		return err
	}
	if _, err = f.WriteString(made.Secret + "\n"); err == nil {
		err = f.Sync()
	}
	if err != nil {
		return fmt.Errorf("cannot write the secret of token %s, so delete it: %w", made.Token.ID, err)
	}
	return printRow(c, tokenTable, made.Token)
}

func tokenDelete(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: "delete TOKEN", Short: "End a token, by its name or id", Args: takes(1), Aliases: []string{"rm"},
		Long: "End a token. It is refused from now on, and what runs with it, such as an event\nstream, ends.",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			t, err := c.token(ctx, args[0])
			if err != nil {
				return err
			}
			if c.dryRun {
				return c.showPlan(c.client().PlanDeleteToken(ctx, t.ID))
			}
			if err := c.confirm(ctx, "end token %s (%s), last used %s?", t.Name, t.Role, orDash(whenever(t.LastUsed))); err != nil {
				return err
			}
			if t, err = c.client().DeleteToken(ctx, t.ID); err != nil {
				return err
			}
			return printRow(c, tokenTable, t)
		},
	}, 1, tokenNames)
}

// parseExpiry reads a time from now, in days too, or a moment.
func parseExpiry(text string, now time.Time) (time.Time, error) {
	if days, found := strings.CutSuffix(text, "d"); found {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil && n > 0 {
			return now.AddDate(0, 0, int(n)).UTC().Truncate(time.Second), nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d > 0 {
		return now.Add(d).UTC().Truncate(time.Second), nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return at.UTC(), nil
	}
	return time.Time{}, fmt.Errorf("--expires %q is neither a time from now, such as 12h or 30d, nor a moment, such as 2027-01-31T00:00:00Z", text)
}
