# The commands of this repository. `make demo` and `make test` fetch what they need; see scripts/.

.DEFAULT_GOAL := help
.PHONY: help demo test chaos kubernetes kubernetes-api alerts samples check build static image deb bench microbench bench-views fleet docs tools

# Arguments for the program or for the tests: `make demo ARGS='--help'`, `make test ARGS='--test it watch'`.
ARGS ?=

# The chaos test of `make test`: the same faults each time, for a little over a minute, with checks of correctness only.
CHAOS_OF_TEST := --seed=7 --minutes=1.2 --truth-only

help: ## List these commands
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1 \2/p' $(MAKEFILE_LIST) | while read -r name what; do printf '  make %-14s %s\n' "$$name" "$$what"; done

demo: tools ## Run the relay on its own small store, with things to try (ARGS=… goes to etcd-relay demo)
	cargo build --locked --release
	@command -v etcdctl >/dev/null \
		|| { etcd=$$(scripts/etcd) && printf '\nFor etcdctl, in another terminal: export PATH=%s:$$PATH\n' "$$etcd"; } \
		|| printf '\nThere is no etcdctl on this machine; curl is enough.\n'
	@cargo run --locked --release --quiet -- demo $(ARGS)

test: tools ## Run all tests, against a real etcd too (ARGS=… goes to cargo test, and leaves the chaos out)
	@etcd=$$(scripts/etcd) && \
		echo "etcd of the tests: $$etcd" && \
		export ETCD="$$etcd/etcd" ETCDCTL="$$etcd/etcdctl" ETCDUTL="$$etcd/etcdutl" && \
		versions=$$(scripts/etcd-versions) && export ETCD_VERSIONS="$$versions" && \
		if chromium=$$(scripts/chromium); then export CHROMIUM="$$chromium"; fi && \
		result=0 && { cargo test --locked --no-fail-fast $(ARGS) || result=$$?; } && \
		$(if $(ARGS),,{ ETCD_RELAY_TEST_PATIENCE=120 cargo test --locked --test chaos -- $(CHAOS_OF_TEST) || result=$$?; } &&) \
		exit $$result

chaos: tools ## Faults in random order on three members, two relays and a tier, for two minutes (ARGS=--minutes=60, ARGS=--help)
	@etcd=$$(scripts/etcd) && \
		echo "etcd of the chaos: $$etcd" && \
		export ETCD="$$etcd/etcd" ETCDCTL="$$etcd/etcdctl" ETCDUTL="$$etcd/etcdutl" && \
		cargo test --locked --test chaos -- $(ARGS)

kubernetes: tools ## Run Kubernetes' own tests of its storage layer on a relay; needs Go, the first run takes minutes
	@scripts/kubernetes >/dev/null && \
		etcd=$$(scripts/etcd) && export ETCD="$$etcd/etcd" && \
		ETCD_RELAY_TEST_SCALE=full cargo test --locked --test it -- --nocapture kubernetes $(ARGS)

kubernetes-api: tools ## Ask a real kube-apiserver about deploy/kubernetes; needs Go, the first run takes many minutes
	@scripts/kube-apiserver >/dev/null && \
		etcd=$$(scripts/etcd) && export ETCD="$$etcd/etcd" && \
		ETCD_RELAY_TEST_SCALE=full cargo test --locked --test it -- --nocapture manifests::api $(ARGS)

alerts: ## Check the alerts in deploy/alerts.yaml and run their unit tests, by promtool
	@promtool=$$(scripts/promtool) && \
		$$promtool/promtool check rules deploy/alerts.yaml && \
		$$promtool/promtool test rules deploy/alerts_test.yaml

samples: tools ## Run the samples of examples/ beside an etcd and two relays, with things to break (ARGS="rust go python curl" names some)
	@examples/run $(ARGS)

check: ## All that CI does: formatting, lints, documentation, licences, tests
	.ci/run

build: tools ## Build the program: target/release/etcd-relay
	cargo build --locked --release

static: ## Build the program as one static file: target/static/etcd-relay
	@scripts/static

image: ## Make a container image of the static program, without Docker: target/etcd-relay-image.tar
	@deploy/image

deb: tools ## Make a Debian package of the program: target/debian/etcd-relay_*.deb
	@scripts/deb

bench: tools ## etcd, its grpc-proxy, the relay and bare sockets compared, some twenty minutes: docs/benchmarks.md (ARGS=--quick, ARGS=--curves for growth)
	@etcd=$$(scripts/etcd) && \
		echo "etcd of the benchmark: $$etcd" && \
		export ETCD="$$etcd/etcd" && \
		cargo bench --locked --bench compare -- $(if $(ARGS),$(ARGS),--out docs/benchmarks.md)

microbench: tools ## Micro-benchmarks: the hub and the views alone (ARGS=… names some)
	cargo bench --locked --bench hub --bench projection -- $(ARGS)

bench-views: tools ## The views under load, with a real etcd, some minutes (ARGS=… goes to it: ARGS=config, ARGS=--help)
	@etcd=$$(scripts/etcd) && \
		echo "etcd of the benchmark: $$etcd" && \
		export ETCD="$$etcd/etcd" && \
		cargo bench --locked --bench views -- $(ARGS)

fleet: tools ## Simulate a fleet of relays with a million clients (ARGS=… names some of the cases)
	ETCD_RELAY_FLEET_CLIENTS=$${ETCD_RELAY_FLEET_CLIENTS:-1000000} cargo test --locked --test fleet_sim -- --nocapture --test-threads=1 $(ARGS)

docs: tools ## Write docs/flags.md and docs/metrics.md from the code; the tests fail where they differ
	ETCD_RELAY_WRITE_DOCS=1 cargo test --locked --test tidy -- reference

tools:
	@scripts/rust
	@scripts/protoc --bring
