//! Waits, with a deadline, for something to become true. Only this file sleeps between two checks.
//!
//! A test that something does *not* happen states how long it waits; see [`quiet_time`].

use std::time::{Duration, Instant};

/// Pause between two checks.
const INTERVAL: Duration = Duration::from_millis(20);

/// How long [`eventually`] and every read of a stream wait before the test fails: `ETCD_RELAY_TEST_PATIENCE` in
/// seconds, by default 30, because a machine may be busy with builds.
pub fn patience() -> Duration {
    seconds_from_env("ETCD_RELAY_TEST_PATIENCE", 30)
}

/// How long a test waits before it concludes that nothing comes. Longer than etcd's own retry intervals (100 ms).
pub fn quiet_time() -> Duration {
    Duration::from_millis(400)
}

/// The value of an environment variable in seconds.
pub fn seconds_from_env(name: &str, default: u64) -> Duration {
    let seconds = std::env::var(name).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name} must be a whole number of seconds, not {text:?}"))
    });
    Duration::from_secs(seconds)
}

/// Calls `probe` until it returns `Some`, for at most [`patience`].
pub async fn eventually<T>(what: &str, probe: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(patience(), what, probe).await
}

/// Calls `probe` until it returns `Some`, for at most `deadline`.
pub async fn eventually_within<T>(deadline: Duration, what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(start.elapsed() < deadline, "not within {deadline:?}: {what}");
        tokio::time::sleep(INTERVAL).await;
    }
}
