//! [`Expiry`]: when a key expires, encoded in the id of its lease.
//!
//! etcd lets clients choose the ids of leases. The v2 API's ids contain a tag and the time of expiry in tenths of
//! seconds, so that every relay knows it without a request. Always holds: an id is positive, and an id with the tag was
//! created by a v2 API.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The upper seven bits of these lease ids.
const TAG: i64 = 0x5a;
/// Bits for the time of expiry in tenths of seconds, which last until the year 2405.
const END_BITS: u32 = 37;
/// Bits that distinguish leases with the same time.
const CHANCE_BITS: u32 = 63 - 7 - END_BITS;
/// The limit of Go's durations in seconds. A longer TTL overflows and counts as none.
const LONGEST: u64 = 9_223_372_036;

/// A time in tenths of seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Expiry(u64);

impl Expiry {
    /// `ttl` seconds from now, rounded up so that nothing expires early; `None` if that is never.
    pub(super) fn after(now: SystemTime, ttl: u64) -> Option<Self> {
        if ttl > LONGEST {
            return None;
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let tenths = (now + Duration::from_secs(ttl)).as_millis().div_ceil(100);
        u64::try_from(tenths).ok().filter(|tenths| *tenths < 1 << END_BITS).map(Self)
    }

    /// The time in the id of a lease that a v2 API created.
    pub(super) fn of_lease(id: i64) -> Option<Self> {
        (id >> (END_BITS + CHANCE_BITS) == TAG).then_some(Self((id >> CHANCE_BITS) as u64 & ((1 << END_BITS) - 1)))
    }

    /// An id for a lease with this time.
    pub(super) fn lease_id(self) -> i64 {
        let chance = rand::random_range(0..1_i64 << CHANCE_BITS);
        TAG << (END_BITS + CHANCE_BITS) | (self.0 as i64) << CHANCE_BITS | chance
    }

    /// Remaining seconds, rounded up as in etcd. The time itself was already rounded up by at most a tenth.
    pub(super) fn seconds_left(self, now: SystemTime) -> i64 {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
        (self.0 as i64 * 100 - 99 - now + 999).div_euclid(1000)
    }

    /// The remaining time.
    pub(super) fn wait(self, now: SystemTime) -> Duration {
        (UNIX_EPOCH + Duration::from_millis(self.0 * 100)).duration_since(now).unwrap_or_default()
    }
}

impl fmt::Display for Expiry {
    /// RFC 3339 with as many decimals as needed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = UNIX_EPOCH + Duration::from_millis(self.0 * 100);
        let text = humantime::format_rfc3339_millis(at).to_string();
        let text = text.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
        write!(f, "{text}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(millis)
    }

    #[test]
    fn a_lease_says_its_end() {
        let expiry = Expiry::after(at(1_795_266_225_218), 5).expect("an end");
        let id = expiry.lease_id();
        assert!(id > 0);
        assert_eq!(Expiry::of_lease(id), Some(expiry));
        assert_eq!(expiry.to_string(), "2026-11-21T13:03:50.3Z");
        assert_eq!(Expiry::of_lease(0).or(Expiry::of_lease(7_587_895_112_803_940_000)), None);
        assert_eq!(Expiry::after(at(0), LONGEST + 1), None);
        assert!(Expiry::after(at(1_795_266_225_218), LONGEST).is_some());
    }

    #[test]
    fn what_is_left_is_what_was_asked_for_and_never_less_than_there_is() {
        for millis in [0, 1, 50, 99, 100] {
            let now = at(1_795_266_225_000 + millis);
            let expiry = Expiry::after(now, 5).expect("an end");
            assert_eq!(expiry.seconds_left(now), 5, "{millis}");
            assert!(expiry.wait(now) >= Duration::from_secs(5));
            assert!(expiry.seconds_left(now + Duration::from_secs(6)) <= 0);
        }
        assert_eq!(Expiry::after(at(1_000), 0).expect("an end").to_string(), "1970-01-01T00:00:01Z");
    }
}
