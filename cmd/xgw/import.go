// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/nginx"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/script"
)

func importCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "import",
		Short:   "Translate another program's configuration",
		Example: "  xgw import nginx /etc/nginx/nginx.conf -o /etc/gateway",
		Args:    exactly(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(importNginxCommand(e))
	return cmd
}

func importNginxCommand(e *env) *cobra.Command {
	var dir string
	var strict bool
	cmd := &cobra.Command{
		Use:   "nginx FILE",
		Short: "Translate nginx.conf to gateway.yaml and ratelimit.lua",
		Long: `Translates listeners, certificates, upstreams, locations, headers, redirects, timeouts and
limits, with included files, and checks what comes out as xgw config check does. The list on
standard error has what became of every directive that is not simply translated, with file and
line: SECURITY, for what kept somebody out; not translated; differs; by itself, for what the
gateway does anyway.

A route whose access was restricted in a way that the gateway cannot is written down closed: it has
maintenance, answers 503, and says why. Files that are there are not overwritten. Without -o
both are printed.

Exit status: 0 done, 1 failed, or with --strict something is missing or closed, 2 the command line
or the configuration is wrong.`,
		Example: `  xgw import nginx /etc/nginx/nginx.conf
  xgw import nginx /etc/nginx/nginx.conf -o /etc/gateway
  xgw import nginx nginx.conf -o out --strict`,
		Args: exactly("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := nginx.Import(args[0], nginx.Machine())
			if err != nil {
				return usageError{err}
			}
			if err := writeImported(e, dir, r); err != nil {
				return err
			}
			missing := 0
			for _, n := range r.Notes {
				fmt.Fprintln(e.err, n)
				if n.Kind <= nginx.Missing {
					missing++
				}
			}
			if strict && missing > 0 {
				return fmt.Errorf("%d directives are closed or not translated: the list above has them", missing)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&dir, "output", "o", "", "directory for gateway.yaml and ratelimit.lua")
	cmd.Flags().BoolVar(&strict, "strict", false, "exit with 1 when something is closed or not translated")
	return cmd
}

// writeImported writes both files, or prints them, when they have been found good.
func writeImported(e *env, dir string, r *nginx.Result) error {
	files := map[string][]byte{"gateway.yaml": r.Gateway}
	if r.Limits != nil {
		files["ratelimit.lua"] = r.Limits
	}
	scratch, err := os.MkdirTemp("", "xgw-import-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(scratch, name), text, 0o600); err != nil {
			return err
		}
	}
	c, err := config.Load(filepath.Join(scratch, "gateway.yaml"), script.Run)
	if err == nil {
		_, err = policy.Compile(c, 1)
	}
	if err != nil {
		fmt.Fprintf(e.err, "%s", r.Gateway)
		return fmt.Errorf("the translation, as printed, has a fault: %w", err)
	}
	if dir == "" {
		_, err := e.out.Write(r.Gateway)
		if r.Limits != nil && err == nil {
			_, err = fmt.Fprintf(e.out, "\n-- ratelimit.lua --\n%s", r.Limits)
		}
		return err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	// Both are looked for, so that a translation without limits is not put beside others' limits.
	for _, name := range []string{"gateway.yaml", "ratelimit.lua"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("write %s: it is there already: move it away, or give another -o", filepath.Join(dir, name))
		}
	}
	if err := createAll(dir, files); err != nil {
		return err
	}
	fmt.Fprintf(e.out, "written to %s; `xgw config check -c %s` says what it comes to\n", dir, filepath.Join(dir, "gateway.yaml"))
	return nil
}

// createAll writes all files, or leaves none.
func createAll(dir string, files map[string][]byte) error {
	var written []string
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(dir, name)
		if err := create(path, files[name]); err != nil {
			for _, path := range written {
				err = errors.Join(err, os.Remove(path))
			}
			return err
		}
		written = append(written, path)
	}
	return nil
}

// create writes a file that is not there yet, nor a link; half of one does not stay. Fields may
// have credentials, so it is not for everybody.
func create(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
