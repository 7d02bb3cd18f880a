// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manualCommand is for who makes packages: `make man`.
func manualCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "manual DIRECTORY CONFIGURATION",
		Short:   "Write manual pages and shell completions, as packages lay them out",
		Example: "  xgw manual bin/share deploy/gateway.yaml",
		Hidden:  true,
		Args:    exactly("DIRECTORY", "CONFIGURATION"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := writePages(cmd.Root(), filepath.Join(args[0], "man", "man8")); err != nil {
				return err
			}
			if err := writeReference(args[1], filepath.Join(args[0], "man", "man5")); err != nil {
				return err
			}
			return writeCompletions(args[0])
		},
	}
}

// writePages writes a page for each command that people call, and one for each alias.
func writePages(root *cobra.Command, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	var write func(c *cobra.Command) error
	write = func(c *cobra.Command) error {
		if err := os.WriteFile(filepath.Join(dir, pageName(c)+".8"), page(c), 0o644); err != nil {
			return err
		}
		for _, sub := range documented(c) {
			if err := write(sub); err != nil {
				return err
			}
		}
		return nil
	}
	if err := write(root); err != nil {
		return err
	}
	for alias, command := range aliases {
		if err := os.WriteFile(filepath.Join(dir, alias+".8"), []byte(".so man8/xgw-"+command+".8\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writeReference writes the commented configuration as the page gateway.yaml(5).
func writeReference(configuration, dir string) error {
	text, err := os.ReadFile(configuration)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, ".TH GATEWAY.YAML 5 \"\" %s xgw\n", quoted("xgw "+version()))
	b.WriteString(".SH NAME\ngateway.yaml \\- configuration of the gateway\n.SH DESCRIPTION\n")
	b.WriteString("All keys, with their defaults and what they mean.\n.BR \"xgw config check\" \ntells what is wrong in a file.\n.PP\n.nf\n")
	for line := range strings.Lines(string(text)) {
		b.WriteString(roff(strings.TrimSuffix(line, "\n")) + "\n")
	}
	b.WriteString(".fi\n.SH SEE ALSO\n.BR xgw (8)\n")
	return os.WriteFile(filepath.Join(dir, "gateway.yaml.5"), b.Bytes(), 0o644)
}

// documented are the subcommands that have pages.
func documented(c *cobra.Command) (list []*cobra.Command) {
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "completion" {
			list = append(list, sub)
		}
	}
	return list
}

func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// page is the manual page of a command, for man(7).
func page(c *cobra.Command) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, ".TH %s 8 \"\" %s xgw\n", quoted(strings.ToUpper(pageName(c))), quoted("xgw "+version()))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", roff(pageName(c)), roff(c.Short))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n", roff(c.UseLine()))
	if long := c.Long; long != "" {
		b.WriteString(".SH DESCRIPTION\n")
		prose(&b, long)
	}
	if subs := documented(c); len(subs) > 0 {
		b.WriteString(".SH COMMANDS\n")
		for _, sub := range subs {
			fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", roff(sub.Name()), roff(sub.Short))
		}
	}
	b.WriteString(".SH OPTIONS\n")
	c.InitDefaultHelpFlag()
	for _, set := range []*pflag.FlagSet{c.NonInheritedFlags(), c.InheritedFlags()} {
		set.VisitAll(func(f *pflag.Flag) { option(&b, f) })
	}
	if c.Example != "" {
		b.WriteString(".SH EXAMPLES\n.nf\n")
		for line := range strings.Lines(strings.TrimRight(c.Example, "\n") + "\n") {
			b.WriteString(roff(strings.TrimSuffix(strings.TrimPrefix(line, "  "), "\n")) + "\n")
		}
		b.WriteString(".fi\n")
	}
	if !strings.Contains(c.Long, "Exit status") {
		b.WriteString(".SH EXIT STATUS\n0 done, 1 failed, 2 the command line or the configuration is wrong.\n")
	}
	var others []string
	if c.HasParent() {
		others = append(others, pageName(c.Parent()))
	}
	for _, sub := range documented(c) {
		others = append(others, pageName(sub))
	}
	for i, name := range others {
		others[i] = fmt.Sprintf(".BR %s (8)", roff(name))
	}
	fmt.Fprintf(&b, ".SH SEE ALSO\n%s\n", strings.Join(append(others, ".BR gateway.yaml (5)"), " ,\n"))
	return b.Bytes()
}

func option(b *bytes.Buffer, f *pflag.Flag) {
	if f.Hidden {
		return
	}
	name, usage := pflag.UnquoteUsage(f)
	said := "--" + f.Name
	if f.Shorthand != "" {
		said = "-" + f.Shorthand + ", " + said
	}
	if name != "" {
		said += " " + name
	}
	if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "0s" && f.DefValue != "[]" {
		usage += " (default " + f.DefValue + ")"
	}
	fmt.Fprintf(b, ".TP\n.B %s\n%s\n", roff(said), roff(usage))
}

// prose sets paragraphs to be filled, and lines that are indented as they are.
func prose(b *bytes.Buffer, text string) {
	asIs, filled := false, false
	for line := range strings.Lines(strings.TrimRight(text, "\n") + "\n") {
		line = strings.TrimSuffix(line, "\n")
		if indented := strings.HasPrefix(line, " "); line != "" && indented != asIs {
			if asIs = indented; asIs {
				b.WriteString(".PP\n.nf\n")
			} else {
				b.WriteString(".fi\n")
			}
		}
		if line == "" {
			if filled && !asIs {
				b.WriteString(".PP\n")
			}
			filled = false
			continue
		}
		filled = true
		b.WriteString(roff(line) + "\n")
	}
	if asIs {
		b.WriteString(".fi\n")
	}
}

// roff has text stand for itself.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "`", `\(ga`, "'", `\(aq`, "^", `\(ha`, "~", `\(ti`).Replace(text)
	if strings.HasPrefix(text, ".") {
		text = `\&` + text
	}
	return text
}

func quoted(text string) string { return `"` + strings.ReplaceAll(roff(text), `"`, `\(dq`) + `"` }

// writeCompletions writes what shells complete the binary's names by. An alias has commands of
// its own, so each name has a script.
func writeCompletions(dir string) error {
	for _, shell := range []struct {
		dir, name string
		write     func(*cobra.Command, *bytes.Buffer) error
	}{
		{"bash-completion/completions", "%s", func(c *cobra.Command, b *bytes.Buffer) error { return c.GenBashCompletionV2(b, true) }},
		{"zsh/vendor-completions", "_%s", func(c *cobra.Command, b *bytes.Buffer) error { return c.GenZshCompletion(b) }},
		{"fish/vendor_completions.d", "%s.fish", func(c *cobra.Command, b *bytes.Buffer) error { return c.GenFishCompletion(b, true) }},
	} {
		if err := os.MkdirAll(filepath.Join(dir, shell.dir), 0o755); err != nil {
			return err
		}
		for _, name := range []string{"xgw", "gateway-ctl", "gateway-engine", "gateway-top"} {
			var b bytes.Buffer
			if err := shell.write(&cobra.Command{Use: name}, &b); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, shell.dir, fmt.Sprintf(shell.name, name)), b.Bytes(), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}
