// Package sample holds what all three programs need: settings from the environment, the connection to etcd, and pauses between attempts.
package sample

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Connect makes a client for the endpoints in ETCD_ENDPOINTS: relays, etcd members, or both. It returns at once;
// the client connects, and reconnects, by itself.
func Connect() *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{
		Endpoints: strings.Split(Env("ETCD_ENDPOINTS", "http://127.0.0.1:23790"), ","),
		// A server that is frozen, or behind a broken network, does not close connections: only pings notice it.
		// Ten seconds is the least that gRPC for Go allows.
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		// The programs report errors themselves.
		Logger: zap.NewNop(),
	})
	if err != nil {
		Fail(fmt.Sprintf("ETCD_ENDPOINTS: %v", err))
	}
	return client
}

// UntilStopped returns a context that ends with SIGTERM or Ctrl-C.
func UntilStopped() context.Context {
	ctx, _ := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	return ctx
}

// Backoff is the pause before the next attempt: it doubles with each failure, and differs from client to client, so
// that a thousand clients that lost the same server do not come back in the same instant.
type Backoff struct {
	Max  time.Duration
	next time.Duration
}

// Pause returns how long to wait now.
func (b *Backoff) Pause() time.Duration {
	b.next = min(max(2*b.next, 100*time.Millisecond), b.Max)
	return b.next/2 + rand.N(b.next/2)
}

// Reset must be called when an attempt has succeeded.
func (b *Backoff) Reset() { b.next = 0 }

// Sleep waits, and returns whether to go on: false if the context ended first.
func Sleep(ctx context.Context, pause time.Duration) bool {
	select {
	case <-time.After(pause):
		return true
	case <-ctx.Done():
		return false
	}
}

// Env returns an environment variable, or its default.
func Env(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// Seconds formats a pause for people.
func Seconds(pause time.Duration) string { return fmt.Sprintf("%.1f s", pause.Seconds()) }

// Fail ends the program because it was started wrongly.
func Fail(message string) {
	fmt.Fprintln(os.Stderr, message)
	os.Exit(64)
}
