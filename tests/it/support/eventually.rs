//! Waiting for something to become true, with a deadline; the only place of the suite that sleeps between two looks.
//!
//! Not here: proofs that something does *not* happen; those say how long they look on, see [`quiet_time`].

use std::time::{Duration, Instant};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(20);

/// How long [`eventually`] and every read of a stream wait before the test fails. `ETCD_RELAY_TEST_PATIENCE`, in seconds;
/// 30 by default, since a machine that builds at the same time is slow.
pub fn patience() -> Duration {
    seconds_from_env("ETCD_RELAY_TEST_PATIENCE", 30)
}

/// How long a test looks on before it believes that nothing comes. Longer than etcd's own retry intervals (100 ms).
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

/// Asks `probe` until it answers `Some`, for [`patience`] at most.
pub async fn eventually<T>(what: &str, probe: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(patience(), what, probe).await
}

/// Asks `probe` until it answers `Some`, for `deadline` at most.
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
