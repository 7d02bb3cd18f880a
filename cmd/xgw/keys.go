// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/gateway"
	"github.com/xgw-project/xgw/pkg/keys"
)

func keysCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Make API keys, list and end them",
		Long: `Keys are kept as salted hashes where gateway.yaml says, by default in a file of the state
directory. The commands go to the gateway that runs, so that what they change holds in all of its
workers when they return; where none runs, they change the store themselves. Other gateways that
share the store follow within a second.

Routes ask for keys by routes[].keys in gateway.yaml.`,
		Example: `  sudo xgw keys add --consumer alice --scope orders:read --expires 2160h
  curl -H "Authorization: Bearer $(sudo xgw keys add --consumer bob)" https://gateway.example.com/`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q: `xgw keys --help` lists them", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	k := &keyCommands{env: e}
	cmd.PersistentFlags().StringVarP(&k.path, "config", "c", "/etc/gateway/gateway.yaml", "configuration file, where no gateway runs")
	cmd.AddCommand(k.add(), k.list(), k.revoke(), k.rotate(), k.imports())
	return cmd
}

// keyCommands is what they have in common.
type keyCommands struct {
	*env
	path  string
	store keys.Store // nil: a gateway has it, or nobody looked
}

// do asks the gateway, or changes the store where none runs.
func (k *keyCommands) do(ctx context.Context, r *keys.Request) (keys.Reply, error) {
	if k.store == nil {
		reply, err := admin.NewClient(admin.SocketPath(k.instance)).Keys(r)
		if !errors.Is(err, admin.ErrNoGateway) {
			return reply, err
		}
		c, err := config.Load(k.path, nil)
		if err != nil {
			return keys.Reply{}, usageError{fmt.Errorf("no gateway runs, and where it would keep keys is not known: %w", err)}
		}
		if k.store, err = gateway.OpenKeys(c); err != nil {
			return keys.Reply{}, err
		}
	}
	reply, _, err := keys.Do(ctx, k.store, r, time.Now())
	return reply, err
}

func (k *keyCommands) close() {
	if k.store != nil {
		k.store.Close()
	}
}

// tell prints a key that was made: alone on standard output, for scripts.
func (k *keyCommands) tell(reply *keys.Reply) error {
	if k.json {
		return json.NewEncoder(k.out).Encode(reply)
	}
	fmt.Fprintf(k.err, "xgw: key %s of %s; it is shown this once\n", reply.Record.ID, reply.Record.Consumer)
	fmt.Fprintln(k.out, reply.Key)
	return nil
}

func (k *keyCommands) add() *cobra.Command {
	var r keys.Record
	var expires string
	cmd := &cobra.Command{
		Use:   "add",
		Short: "Make a key",
		Long: `Prints the key, xgw_ID_SECRET, alone on standard output: it is nowhere else, and only its hash is
kept. A limit is a rate of the key's own, over all workers together, or the name of a tier, which
limit_req in ratelimit.lua can match.`,
		Example: `  sudo xgw keys add --consumer alice
  sudo xgw keys add --consumer alice --scope orders:read --scope orders:write --limit 100r/s --expires 2160h
  sudo xgw keys add --consumer bob --limit gold --expires 2027-12-31`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			defer k.close()
			if r.Expires, err = expiry(expires, time.Now()); err != nil {
				return usageError{err}
			}
			if _, made, err := keys.New(r, time.Now()); err != nil {
				return usageError{fmt.Errorf("%s", strings.Replace(err.Error(), "key "+made.ID+": ", "", 1))}
			}
			reply, err := k.do(cmd.Context(), &keys.Request{Op: "add", Record: &r})
			if err != nil {
				return err
			}
			return k.tell(&reply)
		},
	}
	cmd.Flags().StringVar(&r.Consumer, "consumer", "", "whose it is")
	cmd.Flags().StringArrayVar(&r.Scopes, "scope", nil, "what it is for; may be given again")
	cmd.Flags().StringVar(&r.Limit, "limit", "", "a rate such as 100r/s, or the name of a tier")
	cmd.Flags().StringVar(&expires, "expires", "", "after this time (720h), or at this date (2027-12-31) or moment (RFC 3339)")
	cmd.Flags().StringVar(&r.ID, "id", "", "its id, in the place of one that is made up")
	_ = cmd.MarkFlagRequired("consumer")
	jsonFlag(cmd, k.env)
	return cmd
}

// expiry reads a time from now on, a date or a moment; "" is never.
func expiry(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		at, err = time.Parse(time.DateOnly, s)
	}
	if d, durationErr := time.ParseDuration(s); durationErr == nil {
		at, err = now.Add(d), nil
	}
	if err != nil || !at.After(now) {
		return at, fmt.Errorf("--expires %q: want a time to come, such as 720h, 2027-12-31 or 2027-12-31T12:00:00Z", s)
	}
	return at.UTC().Truncate(time.Second), nil
}

func (k *keyCommands) revoke() *cobra.Command {
	return &cobra.Command{
		Use:     "revoke ID",
		Short:   "End a key",
		Long:    "No worker of the gateway takes the key any more when the command returns, and no other gateway of the store a second later. It stays in the list, and its id is not given again.",
		Example: "  sudo xgw keys revoke xhk2m4p6q7r8s9t2",
		Args:    exactly("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			defer k.close()
			_, err := k.do(cmd.Context(), &keys.Request{Op: "revoke", ID: args[0]})
			if err == nil {
				fmt.Fprintf(k.out, "key %s is revoked\n", args[0])
			}
			return err
		},
	}
}

func (k *keyCommands) rotate() *cobra.Command {
	var keep time.Duration
	cmd := &cobra.Command{
		Use:   "rotate ID",
		Short: "Give a key another secret",
		Long:  "Prints the key with its new secret as xgw keys add does. With --keep the old one is good for that time more, so that clients can change over.",
		Example: `  sudo xgw keys rotate xhk2m4p6q7r8s9t2
  sudo xgw keys rotate xhk2m4p6q7r8s9t2 --keep 24h`,
		Args: exactly("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			defer k.close()
			reply, err := k.do(cmd.Context(), &keys.Request{Op: "rotate", ID: args[0], Keep: keep})
			if err != nil {
				return err
			}
			return k.tell(&reply)
		},
	}
	cmd.Flags().DurationVar(&keep, "keep", 0, "how long the old secret is good")
	jsonFlag(cmd, k.env)
	return cmd
}

func (k *keyCommands) list() *cobra.Command {
	var consumer string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List keys, without what they open with",
		Example: `  sudo xgw keys list
  sudo xgw keys list --json | jq -r 'select(.expires and .expires < "2027") | .id'`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			defer k.close()
			w := tabwriter.NewWriter(k.out, 0, 0, 2, ' ', 0)
			lines := json.NewEncoder(k.out)
			if !k.json {
				fmt.Fprintln(w, "ID\tCONSUMER\tSCOPES\tLIMIT\tCREATED\tEXPIRES\tREVOKED")
			}
			for from := ""; ; {
				reply, err := k.do(cmd.Context(), &keys.Request{Op: "list", From: from})
				if err != nil {
					return err
				}
				for i := range reply.List {
					r := &reply.List[i]
					if consumer != "" && r.Consumer != consumer {
						continue
					}
					if k.json {
						if err := lines.Encode(r); err != nil {
							return err
						}
						continue
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.Consumer, strings.Join(r.Scopes, ","), r.Limit, day(r.Created), day(r.Expires), day(r.Revoked))
				}
				if from = reply.Next; from == "" {
					return w.Flush()
				}
			}
		},
	}
	cmd.Flags().StringVar(&consumer, "consumer", "", "those of one consumer alone")
	jsonFlag(cmd, k.env)
	return cmd
}

func day(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02T15:04Z")
}

func (k *keyCommands) imports() *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE",
		Short: "Take keys over from elsewhere",
		Long: `Reads a JSON object from each line of the file, or of standard input for -: consumer, and as needed
scopes, limit, created, expires and revoked; and key, the text xgw_ID_SECRET, or id and secret, an
object of salt (16 bytes) and hash (SHA-256 of salt and secret), both in base64. Lines of a store's
file are such objects. A key of an id that is there takes its place. All lines are checked before
the first is kept.`,
		Example: `  sudo xgw keys import keys.jsonl
  sudo cat /var/lib/xgw/keys | ssh other xgw keys import -`,
		Args: exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			defer k.close()
			var in io.Reader = os.Stdin
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			list, err := readImported(in, args[0], time.Now())
			if err != nil {
				return usageError{err}
			}
			replaced := 0
			for at := 0; at < len(list); at += keys.Page {
				reply, err := k.do(cmd.Context(), &keys.Request{Op: "import", Page: list[at:min(at+keys.Page, len(list))]})
				if err != nil {
					return fmt.Errorf("%w; %d keys before were taken", err, at)
				}
				replaced += reply.Replaced
			}
			fmt.Fprintf(k.out, "%d keys, %d of them in the place of others\n", len(list), replaced)
			return nil
		},
	}
}

// readImported reads lines; of an id that comes again the last one counts.
func readImported(in io.Reader, name string, now time.Time) ([]keys.Record, error) {
	var out []keys.Record
	places := map[string]int{}
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		text := bytes.TrimSpace(lines.Bytes())
		if len(text) == 0 {
			continue
		}
		var one keys.Imported
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		err := d.Decode(&one)
		var r keys.Record
		if err == nil {
			r, err = one.Made(now)
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, n, err)
		}
		if at, twice := places[r.ID]; twice {
			out[at] = r
			continue
		}
		places[r.ID] = len(out)
		out = append(out, r)
	}
	return out, lines.Err()
}
