//! Free loopback ports for servers that cannot choose their own.
//!
//! Not here: ports of servers that can be told `:0`. The ports given lie below the kernel's ephemeral range: one from within it
//! could be taken by any outgoing connection before the server binds it, and while the server is away a client that dials it
//! again and again would sooner or later be connected to itself.

use std::{collections::HashSet, net::TcpListener};

use parking_lot::Mutex;
use rand::Rng;

static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port on 127.0.0.1 that nobody listens on and that no other test of this process was given.
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
