// Package testserver starts an etcd with a relay in front of it, for Kubernetes' own tests of its storage layer.
//
// It replaces the package of this name in k8s.io/apiserver while scripts/kubernetes builds those tests: they request an
// etcd, and get a client of a relay. The relay is the program in ETCD_RELAY. Without that variable the client is etcd's
// own, which shows the results without a relay.
package testserver

import (
	"bufio"
	"encoding/json"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
)

// patience is how long a server may take to start.
const patience = 20 * time.Second

// NewTestConfig is the configuration of an etcd with one member, on ports that the system chooses.
func NewTestConfig(t testing.TB) *embed.Config {
	config := embed.NewConfig()
	config.Dir = filepath.Join(t.TempDir(), "etcd")
	config.UnsafeNoFsync = true
	config.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	local := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	config.ListenClientUrls, config.AdvertiseClientUrls = local, local
	config.ListenPeerUrls, config.AdvertisePeerUrls = local, local
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	return config
}

// RunEtcd starts an etcd and a relay, which end with the test. It returns a client of the relay that counts calls as
// the tests expect.
func RunEtcd(t testing.TB, config *embed.Config) *kubernetes.Client {
	t.Helper()
	if config == nil {
		config = NewTestConfig(t)
	}
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		t.Fatalf("start etcd: %v", err)
	}
	t.Cleanup(etcd.Close)
	select {
	case <-etcd.Server.ReadyNotify():
	case err := <-etcd.Err():
		t.Fatalf("start etcd: %v", err)
	case <-time.After(patience):
		t.Fatal("etcd does not start")
	}

	endpoint := "http://" + etcd.Clients[0].Addr().String()
	if relay := os.Getenv("ETCD_RELAY"); relay != "" {
		endpoint = startRelay(t, relay, endpoint)
	}
	client, err := kubernetes.New(clientv3.Config{
		Endpoints:   []string{endpoint},
		DialTimeout: patience,
		Logger:      zap.NewNop(),
	})
	if err != nil {
		t.Fatalf("a client of %s: %v", endpoint, err)
	}
	t.Cleanup(func() { _ = client.Close() })
	calls := storagetesting.NewKubernetesRecorder(client.Kubernetes)
	client.Kubernetes, client.KV = calls, storagetesting.NewKVRecorder(client.KV, calls)
	return client
}

// startRelay starts the relay as docs/kubernetes.md describes. The tests keep their objects below /pods/ and
// /registry/.
func startRelay(t testing.TB, program, etcd string) string {
	t.Helper()
	relay := exec.Command(program, "serve", "--etcd", etcd,
		"--prefix", "/registry/", "--prefix", "/pods/", "--prefix", "compact_rev_key",
		"--listen-grpc", "127.0.0.1:0", "--listen-http", "127.0.0.1:0", "--log-format", "json")
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	relay.Stdout, relay.Stderr = writer, writer
	// If its test is killed, the relay ends as well.
	relay.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := relay.Start(); err != nil {
		t.Fatalf("start %s: %v", program, err)
	}
	_ = writer.Close()

	log := &relayLog{listens: make(chan string, 1)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		log.read(bufio.NewScanner(reader))
		_ = reader.Close()
	}()
	t.Cleanup(func() {
		select {
		case <-ended:
			t.Errorf("the relay has ended; its log:\n%s", log.all())
		default:
			_ = relay.Process.Kill()
		}
		_ = relay.Wait()
		<-ended
		if t.Failed() {
			t.Logf("the relay's log:\n%s", log.all())
		}
	})
	select {
	case addr := <-log.listens:
		return "http://" + addr
	case <-ended:
		t.Fatalf("the relay has ended at its start; its log:\n%s", log.all())
	case <-time.After(patience):
		t.Fatalf("the relay does not start; its log:\n%s", log.all())
	}
	return ""
}

// relayLog is the log of a relay.
type relayLog struct {
	lock  sync.Mutex
	lines []string
	// listens receives the address for gRPC.
	listens chan string
}

func (log *relayLog) read(lines *bufio.Scanner) {
	for lines.Scan() {
		log.lock.Lock()
		log.lines = append(log.lines, lines.Text())
		log.lock.Unlock()
		var line struct{ Message, Protocol, Addr string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Message == "Listening" && line.Protocol == "grpc" {
			select {
			case log.listens <- line.Addr:
			default:
			}
		}
	}
}

func (log *relayLog) all() string {
	log.lock.Lock()
	defer log.lock.Unlock()
	return strings.Join(log.lines, "\n")
}
