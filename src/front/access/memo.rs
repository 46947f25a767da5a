//! [`Memo`]: the grants that etcd gave lately.
//!
//! Not here: denials, which are asked for each time, as etcd itself would be. Always holds: bounded in entries and in the size
//! of each; nothing asked before the last change that the relay saw.

use std::time::Duration;

use hashbrown::HashMap;
use tokio::time::Instant;

use super::{Caller, WireRange};

/// Most grants, of at most so many bytes each: 16 MiB in all.
const ENTRIES: usize = 16 << 10;
const ENTRY_BYTES: usize = 1 << 10;

/// See the module.
#[derive(Debug)]
pub(super) struct Memo {
    /// When each was asked for.
    grants: HashMap<(Caller, WireRange), Instant>,
    /// What was asked before does not count.
    floor: Instant,
}

impl Memo {
    pub(super) fn new() -> Self {
        Self { grants: HashMap::new(), floor: Instant::now() }
    }

    /// Whether etcd granted this in answer to a question put at or after `since`.
    pub(super) fn has(&self, caller: &Caller, range: &WireRange, since: Instant) -> bool {
        // Handles only: the bytes are shared.
        self.grants.get(&(caller.clone(), range.clone())).is_some_and(|asked| *asked >= since.max(self.floor))
    }

    /// Takes note of a grant asked for at `asked`; grants older than `age` make room first.
    pub(super) fn remember(&mut self, caller: &Caller, range: &WireRange, asked: Instant, age: Duration) {
        if asked < self.floor || caller.bytes() + range.key.len() + range.range_end.len() > ENTRY_BYTES {
            return;
        }
        if self.grants.len() >= ENTRIES {
            self.grants.retain(|_, asked| asked.elapsed() < age);
            if self.grants.len() >= ENTRIES {
                // More clients and ranges than fit: they ask again.
                self.grants.clear();
            }
        }
        // A copy: it must not hold on to the request that the range came in.
        let range = WireRange {
            key: bytes::Bytes::copy_from_slice(&range.key),
            range_end: bytes::Bytes::copy_from_slice(&range.range_end),
        };
        self.grants.insert((caller.clone(), range), asked);
    }

    /// Forgets all that was asked before `now`, also where the answer is still to come.
    pub(super) fn forget(&mut self, now: Instant) {
        self.grants.clear();
        self.floor = now;
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    const AGE: Duration = Duration::from_secs(5);

    fn caller(token: &'static str) -> Caller {
        Caller::of(&HeaderMap::from_iter([(http::HeaderName::from_static("token"), HeaderValue::from_static(token))]))
    }

    fn range(key: &str) -> WireRange {
        WireRange { key: bytes::Bytes::copy_from_slice(key.as_bytes()), range_end: bytes::Bytes::new() }
    }

    #[test]
    fn a_grant_is_for_one_caller_and_one_range_and_no_longer_than_asked() {
        let mut memo = Memo::new();
        let asked = Instant::now();
        memo.remember(&caller("alice"), &range("a"), asked, AGE);
        assert!(memo.has(&caller("alice"), &range("a"), asked));
        assert!(!memo.has(&caller("alice"), &range("a"), asked + Duration::from_nanos(1)));
        assert!(!memo.has(&caller("bob"), &range("a"), asked));
        assert!(!memo.has(&Caller::nobody(), &range("a"), asked));
        assert!(!memo.has(&caller("alice"), &range("b"), asked));
        let open = WireRange { range_end: bytes::Bytes::from_static(&[0]), ..range("a") };
        assert!(!memo.has(&caller("alice"), &open, asked));
    }

    #[test]
    fn a_change_outdates_what_was_asked_before_it_even_if_the_answer_comes_later() {
        let mut memo = Memo::new();
        let asked = Instant::now();
        memo.remember(&caller("alice"), &range("a"), asked, AGE);
        memo.forget(asked + Duration::from_millis(1));
        memo.remember(&caller("alice"), &range("b"), asked, AGE);
        assert!(!memo.has(&caller("alice"), &range("a"), asked));
        assert!(!memo.has(&caller("alice"), &range("b"), asked));
    }

    #[test]
    fn it_does_not_grow_beyond_its_bounds() {
        let mut memo = Memo::new();
        for number in 0..ENTRIES + 10 {
            memo.remember(&caller("alice"), &range(&number.to_string()), Instant::now(), AGE);
        }
        assert!(memo.grants.len() <= ENTRIES);
        let before = memo.grants.len();
        memo.remember(&caller("alice"), &range(&"x".repeat(ENTRY_BYTES)), Instant::now(), AGE);
        assert_eq!(memo.grants.len(), before, "what is too large is not kept");
    }
}
