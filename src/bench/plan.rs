//! [`Plan`]: the keys and values of a run. A value shows which write it belongs to, and when that was sent.
//!
//! Writing is in `writer`. A value consists of the run's tag, the sending time in nanoseconds of the run's clock, the
//! number of the put, and filler up to the requested size. The two numbers are bytes or, in values that are text,
//! hexadecimal. Always holds: put `n` has key `n % keys`.

use std::time::Instant;

use rand::{Rng as _, distr::Alphanumeric};

const TAG: usize = 8;
/// The smallest possible value.
pub const VALUE_MIN: usize = TAG + 16;
/// Hexadecimal digits of a number in a value that is text.
const HEX: usize = 16;
/// The smallest possible value that is text.
pub const TEXT_MIN: usize = TAG + 2 * HEX;
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
    /// Whether values are text.
    is_text: bool,
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
        let tag = random.random();
        Self { prefix, keys, puts_per_write, base, is_text: false, tag, filler, clock: Instant::now() }
    }

    /// The same with values of letters and digits, of [`TEXT_MIN`] bytes or more.
    pub(super) fn with_text(self) -> Self {
        let mut letters = rand::rng().sample_iter(Alphanumeric);
        let mut tag = [0; TAG];
        tag.fill_with(|| letters.next().unwrap_or_default());
        let filler = (VALUE_MIN + self.filler.len()).saturating_sub(TEXT_MIN);
        Self { is_text: true, tag, filler: letters.take(filler).collect(), ..self }
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
        let mut value = Vec::with_capacity(TEXT_MIN + self.filler.len());
        value.extend_from_slice(&self.tag);
        for part in [sent, number] {
            if self.is_text {
                value.extend_from_slice(format!("{part:0HEX$x}").as_bytes());
            } else {
                value.extend_from_slice(&part.to_le_bytes());
            }
        }
        value.extend_from_slice(&self.filler);
        value
    }

    /// The content of a value; `None` if it is not from this run.
    pub(super) fn read_value(&self, value: &[u8]) -> Option<Put> {
        let mut rest = value.strip_prefix(&self.tag)?;
        let mut part = || {
            if self.is_text {
                let (digits, after) = rest.split_first_chunk::<HEX>()?;
                rest = after;
                let digit = |digit: &u8| (*digit as char).to_digit(16).filter(|_| !digit.is_ascii_uppercase());
                return digits.iter().try_fold(0, |number, byte| Some(number << 4 | u64::from(digit(byte)?)));
            }
            let (bytes, after) = rest.split_first_chunk()?;
            rest = after;
            Some(u64::from_le_bytes(*bytes))
        };
        let (sent, number) = (part()?, part()?);
        (rest == self.filler).then_some(Put { number, sent })
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

    #[test]
    fn values_that_are_text_say_the_same() {
        for size in [TEXT_MIN, 256] {
            let plan = Plan::new(b"/p/".to_vec(), 100, size, 1, 0).with_text();
            let value = plan.value(u64::MAX, 77);
            assert_eq!(value.len(), size);
            assert!(value.iter().all(u8::is_ascii_alphanumeric), "{}", value.escape_ascii());
            assert_eq!(plan.read_value(&value), Some(Put { number: u64::MAX, sent: 77 }));
            for at in [0, TAG, TEXT_MIN - 1, size - 1] {
                let mut other = value.clone();
                other[at] = b'+';
                assert_eq!(plan.read_value(&other), None, "{at}");
            }
        }
    }
}
