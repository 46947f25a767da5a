package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Writes a table of all values of a chart: their names as `--set` takes them, their defaults, and the comments above them. A value without a comment
// is an error, since nobody could tell what it does.
func table(values string, out io.Writer) error {
	text, err := os.ReadFile(values)
	if err != nil {
		return err
	}
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return fmt.Errorf("%s: %w", values, err)
	}
	fmt.Fprintln(out, "| value | default | |\n|---|---|---|")
	return rows("", "", document.Content[0], out)
}

func rows(name, comment string, value *yaml.Node, out io.Writer) error {
	if value.Kind != yaml.MappingNode || len(value.Content) == 0 {
		var plain any
		if err := value.Decode(&plain); err != nil {
			return err
		}
		text, err := json.Marshal(plain)
		if err != nil {
			return err
		}
		if comment == "" {
			return fmt.Errorf("%s has no comment", name)
		}
		fmt.Fprintf(out, "| `%s` | `%s` | %s |\n", name, text, strings.ReplaceAll(comment, "|", "\\|"))
		return nil
	}
	for i := 0; i < len(value.Content); i += 2 {
		key, below := value.Content[i], value.Content[i+1]
		path := key.Value
		if name != "" {
			path = name + "." + path
		}
		if err := rows(path, words(key.HeadComment), below, out); err != nil {
			return err
		}
	}
	return nil
}

// The first paragraph of a comment as one line; examples, which are indented, are left out.
func words(comment string) string {
	var all []string
	for _, line := range strings.Split(comment, "\n") {
		line = strings.TrimPrefix(line, "#")
		if strings.HasPrefix(line, "   ") {
			break
		}
		all = append(all, strings.TrimSpace(line))
	}
	return strings.TrimSpace(strings.Join(all, " "))
}
