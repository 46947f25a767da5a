//! [`Usage`]: the CPU time and memory of this process, for the pages that show them live.
//!
//! Not here: the metrics of the process, which a library provides. Always holds: reading it costs two system calls and
//! no lock.

use std::{fs, num::NonZeroUsize, thread};

use rustix::{
    param::page_size,
    time::{ClockId, clock_gettime},
};

/// The CPU time and memory of this process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// CPU time so far, user and system together, of all threads.
    pub cpu_seconds: f64,
    /// Memory in use; `None` if the system does not report it.
    pub memory_bytes: Option<u64>,
    /// CPUs that the process may use.
    pub cores: usize,
}

impl Usage {
    /// The current values.
    #[must_use]
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        Self {
            cpu_seconds: time.tv_sec as f64 + time.tv_nsec as f64 / 1e9,
            memory_bytes: resident_pages().map(|pages| pages * page_size() as u64),
            cores: thread::available_parallelism().map_or(1, NonZeroUsize::get),
        }
    }
}

/// Linux reports it as the second number of a file.
fn resident_pages() -> Option<u64> {
    fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_and_memory_show() {
        let before = Usage::now();
        let held = vec![1_u8; 64 << 20];
        let mut sum = held.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        while Usage::now().cpu_seconds < before.cpu_seconds + 0.01 {
            sum = held.iter().fold(sum, |sum, byte| sum.wrapping_add(u64::from(*byte)));
        }
        let after = Usage::now();
        assert!(sum > 0 && after.cores > 0 && after.cpu_seconds >= before.cpu_seconds + 0.01);
        // Not the growth: other tests of this process give memory back meanwhile.
        if let Some(memory) = after.memory_bytes {
            assert!(memory >= held.len() as u64, "{memory} bytes");
        }
    }
}
