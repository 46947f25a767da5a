// Shows who is registered for a service, and keeps showing what changes:
//
//	go run ./discover web
//
// See ../README.md for the rules that this follows, and follow/ for the code that does.
package main

import (
	"fmt"
	"os"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd-samples/follow"
	"example.com/etcd-samples/sample"
)

func main() {
	if len(os.Args) != 2 {
		sample.Fail("usage: discover SERVICE (environment: ETCD_ENDPOINTS)")
	}
	prefix := "/services/" + os.Args[1] + "/"
	follow.Keys(sample.UntilStopped(), sample.Connect(), &members{prefix: prefix}, prefix, clientv3.WithPrefix())
}

// members is the service as it is known now. A real program would choose from it which member to call.
type members struct {
	prefix string
	count  int
}

func (m *members) Listed(revision int64, count int, changes []follow.Change) {
	fmt.Printf("listed at revision %d: %d members\n", revision, count)
	m.count = count
	m.show(changes)
}

func (m *members) Changed(changes []follow.Change) {
	for _, change := range changes {
		if change.Old == nil && change.New != nil {
			m.count++
		} else if change.Old != nil && change.New == nil {
			m.count--
		}
	}
	m.show(changes)
}

func (m *members) CutOff(reason error) {
	fmt.Printf("cut off, keeping %d members: %v\n", m.count, reason)
}

func (m *members) Resumed(revision int64) {
	fmt.Printf("up to date again at revision %d: %d members\n", revision, m.count)
}

func (m *members) show(changes []follow.Change) {
	for _, change := range changes {
		name := strings.TrimPrefix(change.Key, m.prefix)
		switch {
		case change.New == nil && change.Old != nil:
			fmt.Printf("- %s (revision %d)\n", name, change.Revision)
		case change.New != nil && change.Old == nil:
			fmt.Printf("+ %s %s (revision %d)\n", name, *change.New, change.Revision)
		case change.New != nil && *change.New != *change.Old:
			fmt.Printf("~ %s %s, was %s (revision %d)\n", name, *change.New, *change.Old, change.Revision)
		}
	}
}
