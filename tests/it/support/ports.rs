//! Free loopback ports for servers that cannot choose their own.
//!
//! Servers that accept `:0` do not need this. The ports are below the kernel's ephemeral range. A port from that range
//! could be taken by any outgoing connection before the server binds it, and a client that keeps dialling it while the
//! server is away could end up connected to itself.

use std::{collections::HashSet, net::TcpListener};

use parking_lot::Mutex;
use rand::Rng;

static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A free port on 127.0.0.1 that no other test of this process uses.
pub fn free_port() -> u16 {
    let end = ephemeral_start();
    for _ in 0..1_000 {
        let port = rand::rng().random_range(10_000..end);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && GIVEN.lock().get_or_insert_default().insert(port) {
            return port;
        }
    }
    panic!("no free port between 10000 and {end} on 127.0.0.1");
}

fn ephemeral_start() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .filter(|start| *start > 11_000)
        .unwrap_or(32_768)
}
