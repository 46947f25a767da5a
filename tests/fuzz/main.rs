//! Fuzz targets: generated network input for the parts that parse it.
//!
//! A target takes bytes and fails by panicking. Its files in `corpus/` run first, then inputs made from them and from
//! random bytes (`engine`). `ETCD_RELAY_FUZZ_SECONDS` runs each target for this time, `ETCD_RELAY_TEST_SEED` repeats a
//! run, `ETCD_RELAY_FUZZ_INPUT` runs one file. Schedules of a relay and its cluster are in `tests/relay_sim`. Always
//! holds: targets run one after the other, so memory is counted for one target alone.

#![expect(clippy::panic, clippy::print_stderr, reason = "a test prints what it found and fails by panicking")]

mod draw;
mod engine;
mod gateway;
mod hpack;
mod http2;
mod http2_client;
mod relay;
mod requests;
mod views;

/// Counts allocations, since a target limits the memory for an input.
#[global_allocator]
static ALLOCATED: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

#[test]
fn hpack_blocks() {
    engine::run("hpack", 20_000, hpack::target);
}

#[test]
fn http2_connections() {
    let target = http2::Target::new();
    engine::run("http2", 3_000, |input| target.run(input));
}

#[test]
fn http2_calls() {
    let target = http2_client::Target::new();
    engine::run("http2_client", 3_000, |input| target.run(input));
}

#[test]
fn range_requests() {
    engine::run("range", 500, requests::range);
}

#[test]
fn watch_requests() {
    engine::run("watch", 300, requests::watch);
}

#[test]
fn forwarded_requests() {
    engine::run("forwarded", 400, requests::forwarded);
}

#[test]
fn json_requests() {
    engine::run("gateway", 600, gateway::target);
}

#[test]
fn values_of_views() {
    let target = views::Target::new();
    engine::run("views", 150, |input| target.run(input));
}
