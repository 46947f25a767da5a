//! [`Plan`]: the keys and values of a run. A value shows which write it belongs to, and when that was sent.
//!
//! Writing is in `writer`. A value consists of the run's tag, the sending time in nanoseconds of the run's clock, the
//! number of the put, and filler up to the requested size. Always holds: put `n` has key `n % keys`.

use std::time::Instant;

use rand::Rng as _;

const TAG: usize = 8;
/// The smallest possible value.
pub const VALUE_MIN: usize = TAG + 16;
/// Digits of a key's number.
const DIGITS: usize = 8;
/// Most keys of a run, as many as fit into the digits.
pub const KEYS_MAX: u64 = 100_000_000;

/// The keys and values of a run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) prefix: Vec<u8>,
    pub(super) keys: u64,
    pub(super) puts_per_write: u64,
    /// The revision before the run's first.
    pub(super) base: i64,
    tag: [u8; TAG],
    filler: Vec<u8>,
    clock: Instant,
}

/// The content of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Put {
    pub(super) number: u64,
    /// In nanoseconds of the run's clock.
    pub(super) sent: u64,
}

impl Plan {
    /// A plan for `keys` keys below `prefix`, with values of `value_size` bytes, after the revision `base`.
    pub(super) fn new(prefix: Vec<u8>, keys: u64, value_size: usize, puts_per_write: u64, base: i64) -> Self {
        let mut filler = vec![0; value_size.saturating_sub(VALUE_MIN)];
        let mut random = rand::rng();
        random.fill(&mut filler[..]);
        Self { prefix, keys, puts_per_write, base, tag: random.random(), filler, clock: Instant::now() }
    }

    /// The same keys and values for writes after this revision.
    pub(super) fn after(&self, base: i64) -> Self {
        Self { base, ..self.clone() }
    }

    /// The same for transactions of several puts.
    pub(super) fn in_transactions_of(&self, puts_per_write: u64) -> Self {
        Self { puts_per_write, ..self.clone() }
    }

    /// A prefix below this one that no other run has.
    pub(super) fn prefix_below(prefix: &str) -> Vec<u8> {
        format!("{prefix}{:016x}/", rand::rng().random::<u64>()).into_bytes()
    }

    /// Nanoseconds since the plan was made.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The key with this number.
    pub(super) fn key(&self, index: u64) -> Vec<u8> {
        let mut key = self.prefix.clone();
        key.extend_from_slice(format!("{index:0DIGITS$}").as_bytes());
        key
    }

    /// The number of a key.
    pub(super) fn index_of(&self, key: &[u8]) -> Option<u64> {
        let digits = key.strip_prefix(&self.prefix[..]).filter(|digits| digits.len() == DIGITS)?;
        let digit = |byte: &u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
        let index = digits.iter().try_fold(0, |index, byte| Some(index * 10 + digit(byte)?))?;
        (index < self.keys).then_some(index)
    }

    /// The value of a put.
    pub(super) fn value(&self, number: u64, sent: u64) -> Vec<u8> {
        let mut value = Vec::with_capacity(VALUE_MIN + self.filler.len());
        value.extend_from_slice(&self.tag);
        value.extend_from_slice(&sent.to_le_bytes());
        value.extend_from_slice(&number.to_le_bytes());
        value.extend_from_slice(&self.filler);
        value
    }

    /// The content of a value; `None` if it is not from this run.
    pub(super) fn read_value(&self, value: &[u8]) -> Option<Put> {
        let rest = value.strip_prefix(&self.tag)?;
        let (sent, rest) = rest.split_first_chunk()?;
        let (number, filler) = rest.split_first_chunk()?;
        let put = Put { number: u64::from_le_bytes(*number), sent: u64::from_le_bytes(*sent) };
        (filler == self.filler).then_some(put)
    }

    /// The revision counted from the run's first, which is 1; `None` for one from before the run.
    pub(super) fn relative(&self, revision: i64) -> Option<u32> {
        revision.checked_sub(self.base).and_then(|relative| u32::try_from(relative).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_say_what_they_are_of() {
        let plan = Plan::new(b"/p/".to_vec(), 100, 256, 1, 0);
        assert_eq!(plan.key(7), b"/p/00000007");
        assert_eq!(plan.index_of(&plan.key(99)), Some(99));
        for key in [&plan.key(100)[..], b"/p/0000000x", b"/p/7", b"/q/00000007"] {
            assert_eq!(plan.index_of(key), None, "{key:?}");
        }
        let value = plan.value(3, 77);
        assert_eq!(value.len(), 256);
        assert_eq!(plan.read_value(&value), Some(Put { number: 3, sent: 77 }));
        assert_eq!(plan.read_value(&value[..255]), None);
        assert_eq!(Plan::new(b"/p/".to_vec(), 100, 256, 1, 0).read_value(&value), None, "another run's");
    }
}
