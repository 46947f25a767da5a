// Package follow keeps a copy of a few keys of etcd: it lists them once, and then watches what changes.
//
// The copy is always a state that etcd had at its revision. It only moves forward, by every change, in order. If the changes are no longer available (because
// etcd has compacted them, or was restored from a backup), the keys are listed again and compared with the copy, so no change is missed.
package follow

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd-samples/sample"
)

const (
	// A list that takes longer has failed.
	deadline = 5 * time.Second
	// How often to ask whether etcd is still the one that is being followed.
	checkEvery = 5 * time.Second
)

// Change is what happened to one key.
type Change struct {
	Key string
	// Old is nil if the key is new, and New is nil if it is gone.
	Old, New *string
	// Revision of the change. If a list showed that the key is gone, this is the revision of the list.
	Revision int64
}

// Handler receives what happens, one call after the other.
type Handler interface {
	// Listed follows each list: at the start, and when changes were lost. It gets the changes since the previous copy.
	Listed(revision int64, count int, changes []Change)
	// Changed comes with each response of the watch.
	Changed(changes []Change)
	// CutOff says that changes may be late from now on. The copy stays as it is.
	CutOff(reason error)
	// Resumed says that the interruption is over, and that nothing was missed.
	Resumed(revision int64)
}

// Keys follows a key, or all keys with a prefix (clientv3.WithPrefix), until the context ends.
func Keys(ctx context.Context, client *clientv3.Client, handler Handler, key string, options ...clientv3.OpOption) {
	f := &follower{client: client, handler: handler, key: key, options: options, copy: map[string]entry{}}
	backoff := sample.Backoff{Max: 3 * time.Second}
	for ctx.Err() == nil {
		err := f.listAndWatch(ctx, &backoff)
		if ctx.Err() == nil {
			f.isCutOff(err)
			sample.Sleep(ctx, backoff.Pause())
		}
	}
}

type follower struct {
	client  *clientv3.Client
	handler Handler
	key     string
	options []clientv3.OpOption

	copy map[string]entry
	// The copy has every change up to this revision, of this cluster.
	revision  int64
	clusterID uint64
	// Whether the watch can go on from there. If not, the keys are listed again.
	listed bool
	cutOff bool
}

type entry struct {
	value    string
	revision int64
}

// listAndWatch returns when the watch has ended, with the reason. When it only lost its connection, the client
// opens the watch again by itself, at the revision where it was.
func (f *follower) listAndWatch(ctx context.Context, backoff *sample.Backoff) error {
	if !f.listed {
		if err := f.list(ctx); err != nil {
			return err
		}
	}
	// The member must know a leader: one that is cut off from the others would stay silent.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	options := append(slices.Clone(f.options), clientv3.WithRev(f.revision+1), clientv3.WithProgressNotify())
	responses := f.client.Watch(ctx, f.key, options...)
	checks := make(chan checked)
	nextCheck := time.NewTimer(0)
	defer nextCheck.Stop()
	for {
		select {
		case response, open := <-responses:
			if !open {
				return errors.New("the watch ended")
			}
			if err := response.Err(); err != nil {
				// Without a leader, the same watch works again later. In all other cases, such as a compacted revision, only a list is certain to be correct.
				f.listed = errors.Is(err, rpctypes.ErrNoLeader)
				return err
			}
			if response.Header.ClusterId != f.clusterID {
				f.listed = false
				return errors.New("another cluster answers")
			}
			f.apply(response)
			f.resumed()
			backoff.Reset()
		case check := <-checks:
			if check.err == nil {
				if check.revision < check.known || check.clusterID != f.clusterID {
					f.listed = false
					return fmt.Errorf("etcd is at revision %d of another past: it was restored", check.revision)
				}
				f.resumed()
				backoff.Reset()
			} else {
				// The watch may be fine, so it stays open.
				f.isCutOff(check.err)
			}
			nextCheck.Reset(checkEvery)
		case <-nextCheck.C:
			go f.check(ctx, f.revision, checks)
		}
	}
}

// list reads the keys, and compares them with the copy.
func (f *follower) list(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	response, err := f.client.Get(ctx, f.key, f.options...)
	if err != nil {
		return err
	}
	listed := map[string]entry{}
	var changes []Change
	for _, kv := range response.Kvs {
		listed[string(kv.Key)] = entry{string(kv.Value), kv.ModRevision}
	}
	for key, old := range f.copy {
		if _, stays := listed[key]; !stays {
			changes = append(changes, Change{Key: key, Old: &old.value, Revision: response.Header.Revision})
		}
	}
	for _, kv := range response.Kvs {
		change := Change{Key: string(kv.Key), New: text(kv.Value), Revision: kv.ModRevision}
		if old, known := f.copy[string(kv.Key)]; known {
			change.Old = &old.value
		}
		if change.Old == nil || *change.Old != *change.New {
			changes = append(changes, change)
		}
	}
	f.copy = listed
	f.revision, f.clusterID = response.Header.Revision, response.Header.ClusterId
	f.listed, f.cutOff = true, false
	f.handler.Listed(f.revision, len(listed), changes)
	return nil
}

// apply applies a response of the watch. A response without events is progress: nothing else happened up to its revision.
func (f *follower) apply(response clientv3.WatchResponse) {
	var changes []Change
	for _, event := range response.Events {
		key := string(event.Kv.Key)
		change := Change{Key: key, Revision: event.Kv.ModRevision}
		if old, known := f.copy[key]; known {
			change.Old = &old.value
		}
		if event.Type == mvccpb.DELETE {
			delete(f.copy, key)
		} else {
			change.New = text(event.Kv.Value)
			f.copy[key] = entry{*change.New, event.Kv.ModRevision}
		}
		changes = append(changes, change)
		f.revision = event.Kv.ModRevision
	}
	if response.IsProgressNotify() {
		f.revision = max(f.revision, response.Header.Revision)
	}
	if len(changes) > 0 {
		f.handler.Changed(changes)
	}
}

type checked struct {
	// known is the state of the copy before the question to etcd.
	known, revision int64
	clusterID       uint64
	err             error
}

// check asks for etcd's current revision. A cluster that was restored from a backup is another one, or has gone back
// to a lower revision: a watch from a revision that does not exist yet would wait silently.
func (f *follower) check(ctx context.Context, known int64, checks chan<- checked) {
	asked, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	result := checked{known: known}
	response, err := f.client.Get(asked, f.key, clientv3.WithCountOnly())
	if result.err = err; err == nil {
		result.revision, result.clusterID = response.Header.Revision, response.Header.ClusterId
	}
	select {
	case checks <- result:
	case <-ctx.Done():
	}
}

func (f *follower) isCutOff(reason error) {
	if !f.cutOff {
		f.cutOff = true
		f.handler.CutOff(reason)
	}
}

func (f *follower) resumed() {
	if f.cutOff {
		f.cutOff = false
		f.handler.Resumed(f.revision)
	}
}

func text(value []byte) *string {
	text := string(value)
	return &text
}
