// What the checks of deploy/kubernetes need beside helm, kubectl and kubeconform:
//
//	manifests json                             YAML documents on standard input as one JSON list on standard output
//	manifests schemas SWAGGER CRD… FOLDER      JSON schemas of all kinds, as kubeconform looks for them, with no field that the kind does not have
//	manifests values FILE                      the values of a chart as a table in Markdown
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

func main() {
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 1 && args[0] == "json":
		err = asJSON(os.Stdin, os.Stdout)
	case len(args) == 2 && args[0] == "values":
		err = table(args[1], os.Stdout)
	case len(args) >= 3 && args[0] == "schemas":
		last := len(args) - 1
		err = schemas(args[1], args[2:last], args[last])
	default:
		err = errors.New("usage: manifests json | manifests schemas SWAGGER CRD… FOLDER | manifests values FILE")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "manifests:", err)
		os.Exit(1)
	}
}

func asJSON(in io.Reader, out io.Writer) error {
	reader := utilyaml.NewYAMLReader(bufio.NewReader(in))
	documents := []any{}
	for {
		text, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		var document any
		if err := yaml.UnmarshalStrict(text, &document); err != nil {
			return err
		}
		if document != nil {
			documents = append(documents, document)
		}
	}
	return json.NewEncoder(out).Encode(documents)
}

type object = map[string]any

// Writes a schema for each kind of the API that `swagger` describes, and of the custom resources.
func schemas(swagger string, crds []string, folder string) error {
	text, err := os.ReadFile(swagger)
	if err != nil {
		return err
	}
	var api struct {
		Definitions map[string]object `json:"definitions"`
	}
	if err := json.Unmarshal(text, &api); err != nil {
		return fmt.Errorf("%s: %w", swagger, err)
	}
	for name, definition := range api.Definitions {
		switch {
		case strings.HasSuffix(name, ".intstr.IntOrString"):
			api.Definitions[name] = either("string", "integer")
		case strings.HasSuffix(name, ".resource.Quantity"):
			api.Definitions[name] = either("string", "number")
		default:
			seal(definition)
		}
	}
	for name, definition := range api.Definitions {
		kinds, _ := definition["x-kubernetes-group-version-kind"].([]any)
		// Those of several kinds, such as DeleteOptions, are nobody's manifest.
		if len(kinds) != 1 {
			continue
		}
		kind := kinds[0].(object)
		group, version, of := kind["group"].(string), kind["version"].(string), kind["kind"].(string)
		used := map[string]object{}
		reach(definition, api.Definitions, used)
		schema := object{"definitions": used, "allOf": []any{object{"$ref": "#/definitions/" + name}}, "required": []any{"apiVersion", "kind"}}
		used[name] = definition
		if err := write(folder, group, version, of, schema); err != nil {
			return err
		}
	}
	for _, path := range crds {
		if err := ofCustomResource(path, folder); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

func ofCustomResource(path, folder string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var crd struct {
		Spec struct {
			Group string
			Names struct{ Kind string }
			// Of each version.
			Versions []struct {
				Name   string
				Schema struct {
					OpenAPIV3Schema object `json:"openAPIV3Schema"`
				}
			}
		}
	}
	if err := yaml.Unmarshal(text, &crd); err != nil {
		return err
	}
	for _, version := range crd.Spec.Versions {
		seal(version.Schema.OpenAPIV3Schema)
		if err := write(folder, crd.Spec.Group, version.Name, crd.Spec.Names.Kind, version.Schema.OpenAPIV3Schema); err != nil {
			return err
		}
	}
	return nil
}

// Refuses fields that the schema does not have, below it too, and takes numbers where Kubernetes takes numbers and text.
func seal(schema object) {
	properties, has := schema["properties"].(object)
	_, open := schema["additionalProperties"]
	preserves, _ := schema["x-kubernetes-preserve-unknown-fields"].(bool)
	if has && !open && !preserves {
		schema["additionalProperties"] = false
	}
	if intOrString, _ := schema["x-kubernetes-int-or-string"].(bool); intOrString {
		for key := range schema {
			delete(schema, key)
		}
		for key, value := range either("string", "integer") {
			schema[key] = value
		}
	}
	for _, property := range properties {
		seal(property.(object))
	}
	for _, key := range []string{"items", "additionalProperties"} {
		if below, ok := schema[key].(object); ok {
			seal(below)
		}
	}
}

// Puts all definitions that `value` refers to into `used`.
func reach(value any, definitions, used map[string]object) {
	switch value := value.(type) {
	case object:
		if to, ok := value["$ref"].(string); ok {
			name := strings.TrimPrefix(to, "#/definitions/")
			if _, known := used[name]; !known {
				used[name] = definitions[name]
				reach(definitions[name], definitions, used)
			}
		}
		for _, below := range value {
			reach(below, definitions, used)
		}
	case []any:
		for _, below := range value {
			reach(below, definitions, used)
		}
	}
}

func either(types ...string) object {
	var alternatives []any
	for _, name := range types {
		alternatives = append(alternatives, object{"type": name})
	}
	return object{"anyOf": alternatives}
}

// kubeconform's `{{.ResourceKind}}{{.KindSuffix}}`.
func write(folder, group, version, kind string, schema object) error {
	name := strings.ToLower(kind)
	if group != "" {
		name += "-" + strings.ToLower(strings.SplitN(group, ".", 2)[0])
	}
	text, err := json.Marshal(schema)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, name+"-"+strings.ToLower(version)+".json"), text, 0o644)
}
