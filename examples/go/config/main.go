// Follows a service's configuration in etcd, and reloads it when it changes:
//
//	go run ./config web
//	etcdctl put /config/web '{"greeting": "hello", "workers": 4}'
//
// An invalid value is rejected, and the last valid one stays in use. See ../README.md for the rules that this follows.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"

	"example.com/etcd-samples/follow"
	"example.com/etcd-samples/sample"
)

func main() {
	if len(os.Args) != 2 {
		sample.Fail("usage: config SERVICE (environment: ETCD_ENDPOINTS)")
	}
	key := "/config/" + os.Args[1]
	fmt.Printf("following %s\n", key)
	follow.Keys(sample.UntilStopped(), sample.Connect(), &reloader{}, key)
}

// Config has the settings of the service.
type Config struct {
	Greeting string `json:"greeting"`
	Workers  int    `json:"workers"`
}

// Current is the configuration in use, for any goroutine: current.Load(). It is replaced as a whole, so nobody sees a mixture of the old and the new. It is nil
// until a valid one has been read.
var current atomic.Pointer[Config]

// parse rejects what it does not understand, and names it.
func parse(value string) (*Config, error) {
	var config Config
	decoder := json.NewDecoder(bytes.NewReader([]byte(value)))
	// A misspelt name is an error, not a setting that has no effect.
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&config); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more follows the JSON object")
	}
	if config.Greeting == "" {
		return nil, errors.New("greeting must not be empty")
	}
	if config.Workers < 1 || config.Workers > 64 {
		return nil, fmt.Errorf("workers must be from 1 to 64, not %d", config.Workers)
	}
	return &config, nil
}

type reloader struct {
	// The revision of the configuration in use.
	revision int64
}

func (r *reloader) Listed(revision int64, count int, changes []follow.Change) {
	if count == 0 && len(changes) == 0 {
		fmt.Printf("there is no configuration at revision %d\n", revision)
	}
	r.Changed(changes)
}

func (r *reloader) Changed(changes []follow.Change) {
	for _, change := range changes {
		if change.New == nil {
			fmt.Printf("deleted in revision %d, %s\n", change.Revision, r.inUse())
			continue
		}
		next, err := parse(*change.New)
		if err != nil {
			fmt.Printf("refused revision %d, %s: %v\n", change.Revision, r.inUse(), err)
			continue
		}
		before := current.Swap(next)
		r.revision = change.Revision
		fmt.Printf("configuration of revision %d: %s\n", r.revision, difference(before, next))
	}
}

func (r *reloader) CutOff(reason error) { fmt.Printf("cut off, %s: %v\n", r.inUse(), reason) }

func (r *reloader) Resumed(revision int64) { fmt.Printf("up to date again at revision %d\n", revision) }

func (r *reloader) inUse() string {
	if r.revision == 0 {
		return "nothing in use yet"
	}
	return fmt.Sprintf("revision %d stays in use", r.revision)
}

// difference describes what changed, or all of a first configuration.
func difference(before, next *Config) string {
	if before == nil {
		return fmt.Sprintf("greeting %q, workers %d", next.Greeting, next.Workers)
	}
	var changed []string
	if before.Greeting != next.Greeting {
		changed = append(changed, fmt.Sprintf("greeting %q -> %q", before.Greeting, next.Greeting))
	}
	if before.Workers != next.Workers {
		changed = append(changed, fmt.Sprintf("workers %d -> %d", before.Workers, next.Workers))
	}
	if len(changed) == 0 {
		return "nothing changed"
	}
	return strings.Join(changed, ", ")
}
