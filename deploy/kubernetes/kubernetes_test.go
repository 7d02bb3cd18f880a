// SPDX-License-Identifier: Apache-2.0

// Package kubernetes tests the manifests beside it against the schemas of Kubernetes.
package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"go.yaml.in/yaml/v3"

	"github.com/xgw-project/xgw/pkg/config"
)

const release = "1.30" // of Kubernetes, whose schemas these are

// kinds are where the schema of each kind is.
var kinds = map[string]struct{ file, name string }{
	"v1 ConfigMap":                           {"api/v1.json", "io.k8s.api.core.v1.ConfigMap"},
	"v1 Service":                             {"api/v1.json", "io.k8s.api.core.v1.Service"},
	"apps/v1 Deployment":                     {"apis/apps/v1.json", "io.k8s.api.apps.v1.Deployment"},
	"apps/v1 DaemonSet":                      {"apis/apps/v1.json", "io.k8s.api.apps.v1.DaemonSet"},
	"autoscaling/v2 HorizontalPodAutoscaler": {"apis/autoscaling/v2.json", "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler"},
}

// mustSchemas reads the schemas, in which keys that they do not know are faults, as they are to an
// API server with --validate=strict.
func mustSchemas(t *testing.T) map[string]*openapi3.Schema {
	t.Helper()
	cmd := exec.Command("go", "mod", "download", "-modfile=deploy/kubernetes/schemas.mod", "-json", "sigs.k8s.io/kubectl-validate")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "GOFLAGS=")
	out, err := cmd.Output()
	var module struct{ Dir, Error string }
	if jsonErr := json.Unmarshal(out, &module); err != nil || jsonErr != nil || module.Dir == "" {
		t.Skipf("needs the schemas of Kubernetes, of the module that schemas.mod names: %v, %s", err, module.Error)
	}
	files, out2 := map[string]*openapi3.T{}, map[string]*openapi3.Schema{}
	for kind, at := range kinds {
		doc := files[at.file]
		if doc == nil {
			doc, err = openapi3.NewLoader().LoadFromFile(filepath.Join(module.Dir, "pkg/openapiclient/builtins", release, at.file))
			if err != nil {
				t.Fatal(err)
			}
			no := false
			for _, s := range doc.Components.Schemas {
				if len(s.Value.Properties) > 0 {
					s.Value.AdditionalProperties.Has = &no
				}
			}
			files[at.file] = doc
		}
		if out2[kind] = doc.Components.Schemas[at.name].Value; out2[kind] == nil {
			t.Fatalf("no schema %s", at.name)
		}
	}
	return out2
}

// check validates each document of a file.
func check(schemas map[string]*openapi3.Schema, text string) (objects []map[string]any, err error) {
	d := yaml.NewDecoder(strings.NewReader(text))
	for {
		var read map[string]any
		if err := d.Decode(&read); errors.Is(err, io.EOF) {
			return objects, nil
		} else if err != nil {
			return nil, err
		}
		raw, err := json.Marshal(read) // numbers as JSON has them
		if err != nil {
			return nil, err
		}
		var object map[string]any
		if err := json.Unmarshal(raw, &object); err != nil {
			return nil, err
		}
		kind := fmt.Sprint(object["apiVersion"], " ", object["kind"])
		if schemas[kind] == nil {
			return nil, fmt.Errorf("no schema of %s", kind)
		}
		if err := schemas[kind].VisitJSON(object, openapi3.MultiErrors()); err != nil {
			return nil, fmt.Errorf("%s: %w", kind, err)
		}
		objects = append(objects, object)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestManifests(t *testing.T) {
	schemas := mustSchemas(t)
	for name, want := range map[string]string{
		"daemonset.yaml": "ConfigMap DaemonSet", "deployment.yaml": "ConfigMap Deployment Service HorizontalPodAutoscaler",
	} {
		objects, err := check(schemas, read(t, name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var got []string
		for _, o := range objects {
			got = append(got, o["kind"].(string))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s has %v", name, got)
		}
	}
}

// What is misspelt, missing or of another type is found, wherever it is.
func TestFaultsAreFound(t *testing.T) {
	schemas := mustSchemas(t)
	for _, row := range []struct{ name, old, new string }{
		{"daemonset.yaml", "hostNetwork: true", "hostNetwrok: true"},
		{"daemonset.yaml", "preStop:", "prestop:"},
		{"daemonset.yaml", "drop: [ALL]", "drop: ALL"},
		{"daemonset.yaml", "maxUnavailable: 1", "maxUnavailable: [1]"},
		{"daemonset.yaml", "    matchLabels: {app: xgw-edge}\n", "    matchlabels: {app: xgw-edge}\n"},
		{"deployment.yaml", "        - name: xgw\n          image:", "        - image:"},
		{"deployment.yaml", "minReplicas: 2", "minReplicas: two"},
		{"deployment.yaml", "target: {type: Value, value: 600m}", "target: {value: 600m}"},
		{"deployment.yaml", "targetPort: https", "targetport: https"},
		{"deployment.yaml", "apiVersion: autoscaling/v2", "apiVersion: autoscaling/v2beta2"},
		{"deployment.yaml", "periodSeconds: 10\n", "periodSeconds: 10s\n"},
	} {
		text := read(t, row.name)
		if !strings.Contains(text, row.old) {
			t.Errorf("%s has no %q", row.name, row.old)
			continue
		}
		if _, err := check(schemas, strings.Replace(text, row.old, row.new, 1)); err == nil {
			t.Errorf("%s with %q has no fault", row.name, row.new)
		}
	}
}

// The configurations are ones, and what the manifests refer to is there.
func TestConfigurations(t *testing.T) {
	block := regexp.MustCompile(`(?m)^  (gateway\.yaml|buffers\.conf): \|\n((?:    .*\n)+)`)
	for _, name := range []string{"daemonset.yaml", "deployment.yaml"} {
		parts := map[string][]byte{}
		for _, m := range block.FindAllStringSubmatch(read(t, name), -1) {
			parts[m[1]] = []byte(strings.ReplaceAll("\n"+m[2], "\n    ", "\n")[1:])
		}
		c, err := config.Parse("/etc/gateway/gateway.yaml", parts["gateway.yaml"], parts["buffers.conf"])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if c.Telemetry.Address != ":9090" || c.Buffers.SharedMemoryZone != 64<<20 || len(c.Listeners) != 1 {
			t.Errorf("%s: %+v", name, c)
		}
		port := strings.TrimPrefix(c.Listeners[0].Address, ":")
		if !strings.Contains(read(t, name), "{name: https, containerPort: "+port) {
			t.Errorf("%s: port %s of the listener is not the container's", name, port)
		}
	}
	rules := read(t, "../prometheus/rules.yml")
	if !strings.Contains(rules, "record: job:xgw_scale_out:load") {
		t.Error("no rule records what the autoscaler goes by")
	}
}
