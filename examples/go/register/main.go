// Registers one instance of a service in etcd while this program runs:
//
//	go run ./register web http://10.0.0.1:8080
//
// The key /services/web/INSTANCE has a lease, so it is deleted within TTL seconds after this program dies, and at once when it is stopped. See ../README.md for
// the rules that this follows.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd-samples/sample"
)

func main() {
	if len(os.Args) != 3 {
		sample.Fail("usage: register SERVICE ADDRESS (environment: ETCD_ENDPOINTS, TTL in seconds, INSTANCE)")
	}
	host, _ := os.Hostname()
	instance := sample.Env("INSTANCE", fmt.Sprintf("%s-%d", host, os.Getpid()))
	ttl, err := strconv.Atoi(sample.Env("TTL", "10"))
	if err != nil || ttl < 2 {
		sample.Fail("TTL must be a number of seconds, 2 or more")
	}
	registration := &Registration{
		Client: sample.Connect(),
		Name:   os.Args[1] + "/" + instance,
		Value:  os.Args[2],
		TTL:    time.Duration(ttl) * time.Second,
	}
	registration.Keep(sample.UntilStopped())
}

// Registration is a key that exists while its process runs.
type Registration struct {
	Client *clientv3.Client
	Name   string
	Value  string
	TTL    time.Duration

	lease clientv3.LeaseID
}

// Keep registers, and keeps the registration until the context ends. Then it removes it.
func (r *Registration) Keep(ctx context.Context) {
	// An attempt, and the longest pause before the next one, take a fifth of the TTL each. The next renewal is due after a third. So there is time for a server
	// that does not answer, and then for another one, before the lease ends.
	backoff := sample.Backoff{Max: r.TTL / 5}
	var failedSince time.Time
	for ctx.Err() == nil {
		err := r.renew(ctx)
		switch {
		case err == nil:
			if !failedSince.IsZero() {
				fmt.Printf("etcd answers again, after %s\n", sample.Seconds(time.Since(failedSince)))
			}
			failedSince = time.Time{}
			backoff.Reset()
			sample.Sleep(ctx, r.TTL/3)
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			fmt.Println("the lease is gone: registering again")
			r.lease = clientv3.NoLease
		case ctx.Err() == nil:
			// It is not known now whether the lease still lives. etcd will say so when it answers again.
			if failedSince.IsZero() {
				failedSince = time.Now()
				fmt.Printf("no answer from etcd, trying again: %v\n", err)
			}
			sample.Sleep(ctx, backoff.Pause())
		}
	}
	r.leave()
}

// renew makes sure that the lease lives and that the key is there, with this lease. Each step may be repeated, so a failure halfway does no harm.
func (r *Registration) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.TTL/5)
	defer cancel()
	if r.lease == clientv3.NoLease {
		granted, err := r.Client.Grant(ctx, int64(r.TTL/time.Second))
		if err != nil {
			return err
		}
		r.lease = granted.ID
	} else if _, err := r.Client.KeepAliveOnce(ctx, r.lease); err != nil {
		return err
	}
	// The key may be gone although the lease lives: deleted by hand, or missing in a cluster that was restored from a backup.
	key := "/services/" + r.Name
	found, err := r.Client.Get(ctx, key)
	if err != nil {
		return err
	}
	if len(found.Kvs) == 1 && found.Kvs[0].Lease == int64(r.lease) && string(found.Kvs[0].Value) == r.Value {
		return nil
	}
	put, err := r.Client.Put(ctx, key, r.Value, clientv3.WithLease(r.lease))
	if err != nil {
		return err
	}
	fmt.Printf("registered %s at revision %d, with lease %x and a TTL of %.0f s\n", r.Name, put.Header.Revision, r.lease, r.TTL.Seconds())
	return nil
}

// leave deletes the key at once, by revoking its lease. If etcd does not answer, the lease ends by itself.
func (r *Registration) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), r.TTL/5)
	defer cancel()
	if r.lease != clientv3.NoLease {
		if _, err := r.Client.Revoke(ctx, r.lease); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			fmt.Printf("left %s without an answer from etcd: it goes within %.0f s (%v)\n", r.Name, r.TTL.Seconds(), err)
			return
		}
	}
	fmt.Printf("left %s\n", r.Name)
}
