//! [`Pace`]: how often watches that asked for progress notifications get them.
//!
//! Clients of etcd rely on the interval of etcd's own `--watch-progress-notify-interval`, which no RPC reports. So the
//! relay keeps one watch of its own with `progress_notify` on a key that hardly ever changes, and measures the time
//! between two notifications. This costs etcd one message per interval, however many subscribers the relay has.
//!
//! Not here: which watches are notified at a tick, see [`super::WatchStream::notify_progress`].
//! Always holds: the interval is at most the configured one, and shorter than upstream's if that is known; the watch is
//! opened when a client first wants progress, and not before.

use std::{sync::Arc, time::Duration};

use metrics::gauge;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::upstream::{Upstream, UpstreamError, WatchMessage, WatchRequest};
use crate::{
    telemetry::names,
    types::{KeyRange, Revision},
};

/// etcd's own shortest interval. Notifications that come faster were delayed on their way.
const LEAST: Duration = Duration::from_millis(100);
/// The delay between attempts to watch the key: the first, and the longest. The interval stays as it was meanwhile.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The interval of progress notifications; see the module.
#[derive(Debug)]
pub struct Pace {
    most: Duration,
    beat: watch::Sender<Beat>,
    wanted: Notify,
}

/// The interval of the ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The time between two ticks of a stream.
    pub interval: Duration,
    /// After how long without a progress report from upstream a feed asks for one. If upstream's own notifications set
    /// the interval, they come in time; if the interval is shorter, nothing else would report the feed's progress.
    pub stale: Duration,
}

/// The time between notifications.
#[derive(Debug)]
struct Gaps {
    last: Instant,
    before: Option<Duration>,
}

impl Pace {
    /// Ticks every `most`, or more often.
    #[must_use]
    pub fn new(most: Duration) -> Arc<Self> {
        let beat = Beat::configured(most);
        gauge!(names::PROGRESS_NOTIFY_INTERVAL).set(beat.interval.as_secs_f64());
        Arc::new(Self { most, beat: watch::Sender::new(beat), wanted: Notify::new() })
    }

    /// The interval, and its future changes.
    #[must_use]
    pub fn beat(&self) -> watch::Receiver<Beat> {
        self.beat.subscribe()
    }

    /// Notes that a client wants progress.
    pub fn want(&self) {
        self.wanted.notify_one();
    }

    /// Learns upstream's interval by a watch on `key`, from when progress is first wanted. Never returns.
    pub async fn learn(self: Arc<Self>, upstream: Arc<dyn Upstream>, key: KeyRange) {
        self.wanted.notified().await;
        let mut delay = RETRY.0;
        loop {
            let learned_before = *self.beat.borrow();
            let error = match self.measure(&*upstream, &key).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            tracing::debug!(%error, "The watch that measures etcd's progress interval has ended");
            delay = if learned_before == *self.beat.borrow() { (delay * 2).min(RETRY.1) } else { RETRY.0 };
            tokio::time::sleep(delay).await;
        }
    }

    async fn measure(
        &self,
        upstream: &dyn Upstream,
        key: &KeyRange,
    ) -> Result<std::convert::Infallible, UpstreamError> {
        let request = WatchRequest { range: key.clone(), start_revision: Revision::ZERO, prev_kv: false };
        let mut watch = upstream.watch(request).await?;
        let mut gaps = Gaps { last: Instant::now(), before: None };
        loop {
            match watch.next().await? {
                WatchMessage::Progress(_) => {
                    if let Some(gap) = gaps.next() {
                        self.set(Beat::learned(gap, self.most));
                    }
                }
                WatchMessage::Events { .. } => {}
                WatchMessage::Canceled { reason } => return Err(UpstreamError::Canceled(reason)),
                WatchMessage::Compacted { .. } => return Err(UpstreamError::Compacted),
            }
        }
    }

    fn set(&self, beat: Beat) {
        self.beat.send_if_modified(|current| {
            // A change of a millisecond need not wake thousands of streams.
            let news = beat.stale.cmp(&beat.interval) != current.stale.cmp(&current.interval)
                || beat.interval.abs_diff(current.interval) * 20 > current.interval;
            if news {
                gauge!(names::PROGRESS_NOTIFY_INTERVAL).set(beat.interval.as_secs_f64());
                *current = beat;
            }
            news
        });
    }
}

impl Gaps {
    /// A notification has arrived. Returns upstream's interval, as far as two gaps show it.
    fn next(&mut self) -> Option<Duration> {
        let gap = self.last.elapsed();
        self.last = Instant::now();
        if gap < LEAST {
            // Both were delayed on their way, for instance while this process was stopped.
            return None;
        }
        // A change of the key replaces a notification, so the gap after it is not an interval.
        Some(self.before.replace(gap).map_or(gap, |before| before.min(gap)))
    }
}

impl Beat {
    fn configured(most: Duration) -> Self {
        Self { interval: most, stale: most / 2 }
    }

    /// etcd adds up to a tenth to its interval, at random for each stream. With a tenth less, no client gets
    /// notifications less often than from etcd.
    fn learned(gap: Duration, most: Duration) -> Self {
        let interval = (gap * 10 / 11).max(LEAST);
        if interval < most { Self { interval, stale: interval * 2 } } else { Self::configured(most) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_interval_is_no_longer_than_either_sides() {
        let most = Duration::from_secs(600);
        let learned = Beat::learned(ms(5_500), most);
        assert_eq!(learned.interval, ms(5_000));
        assert!(learned.stale > ms(5_500), "etcd's own notifications come before the feed asks for one");
        assert_eq!(Beat::learned(Duration::from_secs(3_600), most), Beat::configured(most));
        assert_eq!(Beat::learned(LEAST, most).interval, LEAST, "etcd has no shorter interval");
    }

    #[tokio::test(start_paused = true)]
    async fn neither_a_notification_that_was_left_out_nor_one_that_came_late_is_an_interval() {
        let mut gaps = Gaps { last: Instant::now(), before: None };
        // The process was stopped and then received three at once; later the key was changed.
        for (gap, learned) in
            [(600, Some(600)), (1_900, Some(600)), (0, None), (0, None), (500, Some(500)), (1_200, Some(500))]
        {
            tokio::time::advance(Duration::from_secs(gap)).await;
            assert_eq!(gaps.next(), learned.map(Duration::from_secs), "after {gap} s");
        }
    }

    #[test]
    fn streams_are_told_of_another_interval_and_of_no_jitter() {
        let pace = Pace::new(Duration::from_secs(600));
        let mut beat = pace.beat();
        pace.set(Beat::learned(ms(5_500), pace.most));
        assert!(beat.has_changed().expect("open"));
        assert_eq!(beat.borrow_and_update().interval, ms(5_000));
        pace.set(Beat::learned(ms(5_510), pace.most));
        assert!(!beat.has_changed().expect("open"));
        pace.set(Beat::learned(ms(11_000), pace.most));
        assert_eq!(beat.borrow_and_update().interval, ms(10_000), "etcd was restarted with a longer interval");
    }
}
