//! [`Limit`]: how many connections to one server this machine allows, and why.
//!
//! Ports are no limit: the load generator comes from several addresses of the loopback interface.

use std::fs;

use rustix::process::{Resource, getrlimit};

use super::data::grouped;

/// The share of its files that a relay gives to connections of its gRPC port. Bare sockets have both ends in one
/// process.
const PART_FOR_CONNECTIONS: u64 = 2;
/// Files that are open for other purposes, with room to spare.
const OTHER_FILES: u64 = 200;
/// Memory of a connection of the most expensive server on a curve that goes this far, with both ends' buffers in the
/// kernel.
const BYTES_OF_A_CONNECTION: u64 = 160 << 10;

/// The largest number of connections, and what limits it.
#[derive(Debug)]
pub struct Limit {
    pub connections: u64,
    pub reason: String,
}

impl Limit {
    /// The limit of this machine, for processes that are started by this one.
    pub fn here() -> Self {
        let files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let memory = available_memory().unwrap_or(u64::MAX) / 2;
        Self::of(files, memory)
    }

    /// The limit by open files and by bytes of memory.
    pub fn of(files: u64, memory: u64) -> Self {
        let by_files = (files / PART_FOR_CONNECTIONS).saturating_sub(OTHER_FILES);
        let by_memory = memory / BYTES_OF_A_CONNECTION;
        if by_files <= by_memory {
            let files = grouped(files as f64);
            let reason =
                format!("a process may open {files} files on this machine, and a relay's gRPC port gets about half");
            return Self { connections: by_files, reason };
        }
        let gib = memory as f64 / f64::from(1 << 30);
        Self { connections: by_memory, reason: format!("half of the machine's free memory is {gib:.1} GiB") }
    }

    /// The places that are possible, with the limit itself as the last one if some are not; and why it ends there.
    pub fn cut(&self, places: &[u64]) -> (Vec<u64>, String) {
        let mut possible: Vec<u64> = places.iter().copied().filter(|place| *place <= self.connections).collect();
        if possible.len() == places.len() {
            return (possible, "The last point is the last one that was planned.".to_owned());
        }
        // Two points side by side say no more than one.
        possible.pop_if(|last| *last as f64 > 0.8 * self.connections as f64);
        possible.push(self.connections);
        let last = grouped(self.connections as f64);
        (possible, format!("It ends at {last} connections, because {}.", self.reason))
    }
}

/// In bytes.
fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}
