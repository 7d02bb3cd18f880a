// SPDX-License-Identifier: Apache-2.0

// Command sbom prints what a binary of ours is made of, as the toolchain has written it into
// it, in CycloneDX 1.5 (https://cyclonedx.org/docs/1.5/json/).
package main

import (
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
)

type document struct {
	Format      string      `json:"bomFormat"`
	SpecVersion string      `json:"specVersion"`
	Version     int         `json:"version"`
	Metadata    metadata    `json:"metadata"`
	Components  []component `json:"components"`
}

type metadata struct {
	Timestamp string    `json:"timestamp"`
	Component component `json:"component"`
}

type component struct {
	Type    string `json:"type"`
	Ref     string `json:"bom-ref"`
	Name    string `json:"name"`
	Version string `json:"version"`
	PURL    string `json:"purl"`
	Hashes  []hash `json:"hashes,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

func main() {
	version := flag.String("version", "", "of the binary")
	at := flag.String("time", "", "of the build, RFC 3339")
	flag.Parse()
	if err := run(flag.Arg(0), *version, *at); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(path, version, at string) error {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return err
	}
	d, err := describe(info, version, at)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(d)
}

func describe(info *debug.BuildInfo, version, at string) (*document, error) {
	if len(info.Deps) == 0 {
		return nil, errors.New("it names no modules: was it built with them?")
	}
	of := func(kind, path, version string) component {
		purl := "pkg:golang/" + strings.ToLower(path) + "@" + strings.ReplaceAll(version, "+", "%2B")
		return component{Type: kind, Ref: purl, Name: path, Version: version, PURL: purl}
	}
	d := &document{Format: "CycloneDX", SpecVersion: "1.5", Version: 1, Metadata: metadata{at, of("application", info.Main.Path, version)}}
	d.Components = append(d.Components, of("library", "std", strings.TrimPrefix(info.GoVersion, "go")))
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		c := of("library", m.Path, m.Version)
		// The module's hash as go.sum has it: SHA-256 over the hashes of its files.
		if sum, ok := strings.CutPrefix(m.Sum, "h1:"); ok {
			raw, err := base64.StdEncoding.DecodeString(sum)
			if err != nil {
				return nil, fmt.Errorf("hash of %s: %w", m.Path, err)
			}
			c.Hashes = []hash{{"SHA-256", hex.EncodeToString(raw)}}
		}
		d.Components = append(d.Components, c)
	}
	return d, nil
}
