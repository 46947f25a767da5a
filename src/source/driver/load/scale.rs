//! [`Scale`]: where in the key space a number of keys probably lies, judged by the keys before it.
//!
//! Not here: what follows from a wrong answer, see `cuts`. Keys are read as numbers whose digits are the bytes that
//! keys had at each place so far, and those of their kind, such as all digits. So the key after `/a/0099` is near
//! `/a/0100`, although bytes from `:` to `/a/00` with any other byte lie between them. The newest keys show how far
//! apart keys are. Always holds: it costs no more memory and time than a bounded beginning of the keys that it learns
//! from.

use bytes::Bytes;

use crate::types::KeyValueFields;

/// Places of a key that are looked at. Keys that differ only behind them have no scale.
const PLACES: usize = 1024;
/// Digits before the first one in which the newest keys differ.
const BEFORE: usize = 8;
/// All numbers stay below this, so that sums fit.
const MOST: u128 = 1 << 120;
/// The fewest keys that show how far apart keys are.
const FEWEST: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Scale {
    /// For each place, the bytes that keys had there.
    seen: Vec<Alphabet>,
    numbers: Option<Numbers>,
}

/// A set of bytes, in order.
#[derive(Clone, Debug, Default)]
struct Alphabet(Vec<u8>);

/// Keys as numbers: those that begin in the same way.
#[derive(Debug)]
struct Numbers {
    /// The bytes that all of them begin with.
    beginning: Vec<u8>,
    /// The bytes of each digit after that.
    digits: Vec<Alphabet>,
    /// The number of different keys.
    all: u128,
    /// The distance between two neighbours.
    step: f64,
    /// The first key that was not read.
    at: u128,
}

impl Scale {
    /// Learns from the newest keys, which are in order. `next` is where the keys that have not been read begin.
    pub(super) fn learn(&mut self, kvs: &[KeyValueFields], next: &[u8]) {
        for kv in kvs {
            let places = kv.key.len().min(PLACES);
            if self.seen.len() < places {
                self.seen.resize_with(places, Alphabet::default);
            }
            kv.key.iter().zip(&mut self.seen).for_each(|(byte, alphabet)| alphabet.add(*byte));
        }
        // The second half shows better what follows.
        let near = &kvs[kvs.len() / 2..];
        if let [first, .., last] = near
            && near.len() >= FEWEST
        {
            self.numbers = self.numbers(&first.key, &last.key, near.len());
        }
        if let Some(numbers) = &mut self.numbers {
            match numbers.of(next) {
                Some(at) => numbers.at = at,
                None => self.numbers = None,
            }
        }
    }

    /// A key behind about this many keys that have not been read.
    pub(super) fn key_after(&self, keys: u64) -> Option<Bytes> {
        let numbers = self.numbers.as_ref()?;
        numbers.key(numbers.at.saturating_add((numbers.step * keys as f64) as u128).max(numbers.at + 1))
    }

    /// A key before `end` which has this part of the keys between that have not been read before it.
    pub(super) fn key_between(&self, end: &[u8], part: f64) -> Option<Bytes> {
        let numbers = self.numbers.as_ref()?;
        let distance = numbers.of(end)?.saturating_sub(numbers.at);
        numbers.key(numbers.at.saturating_add((distance as f64 * part) as u128).max(numbers.at + 1))
    }

    /// Makes numbers of keys like these two, between which there are `keys`.
    fn numbers(&self, first: &[u8], last: &[u8], keys: usize) -> Option<Numbers> {
        let differs = first.iter().zip(last).take_while(|(one, other)| one == other).count();
        // A place whose bytes are not all known yet probably has those that the places behind it have.
        let mut likely = self.seen.get(differs)?.whole();
        self.seen.get(differs + 1).iter().for_each(|next| likely.add_all(&next.whole()));
        let begins = differs.saturating_sub(BEFORE);
        let mut numbers = Numbers { beginning: last[..begins].to_vec(), digits: Vec::new(), all: 1, step: 0.0, at: 0 };
        for (place, seen) in self.seen.iter().enumerate().skip(begins) {
            let mut digit = seen.whole();
            if place <= differs {
                digit.add_all(&likely);
            }
            let all = numbers.all.saturating_mul(digit.0.len() as u128);
            if all > MOST {
                break;
            }
            numbers.all = all;
            numbers.digits.push(digit);
        }
        let distance = numbers.of(last)?.checked_sub(numbers.of(first)?)?;
        numbers.step = distance.max(1) as f64 / (keys - 1) as f64;
        Some(numbers)
    }
}

impl Alphabet {
    fn add(&mut self, byte: u8) {
        if let Err(place) = self.0.binary_search(&byte) {
            self.0.insert(place, byte);
        }
    }

    fn add_all(&mut self, other: &Self) {
        other.0.iter().for_each(|byte| self.add(*byte));
    }

    /// With all bytes that usually occur together with these.
    fn whole(&self) -> Self {
        let mut whole = Self::default();
        for byte in &self.0 {
            match byte {
                b'0'..=b'9' => (b'0'..=b'9').for_each(|byte| whole.add(byte)),
                b'a'..=b'f' => (b'a'..=b'f').for_each(|byte| whole.add(byte)),
                b'A'..=b'F' => (b'A'..=b'F').for_each(|byte| whole.add(byte)),
                b'g'..=b'z' => (b'a'..=b'z').for_each(|byte| whole.add(byte)),
                b'G'..=b'Z' => (b'A'..=b'Z').for_each(|byte| whole.add(byte)),
                b' '..=b'~' => whole.add(*byte),
                _ => return Self((0..=255).collect()),
            }
        }
        whole
    }
}

impl Numbers {
    /// The number of the first key that is not below `key`, or the last number. `None` if the key begins differently.
    fn of(&self, key: &[u8]) -> Option<u128> {
        let mut bytes = key.strip_prefix(&self.beginning[..])?.iter();
        let (mut number, mut rest) = (0, self.all);
        for Alphabet(digit) in &self.digits {
            // Digits that the key does not have are the lowest ones.
            let Some(byte) = bytes.next() else { break };
            rest /= digit.len() as u128;
            match digit.binary_search(byte) {
                Ok(value) => number += rest * value as u128,
                // All keys from the next byte on are above it.
                Err(above) => {
                    number += rest * above as u128;
                    break;
                }
            }
        }
        Some(number.min(self.all - 1))
    }

    /// The key with this number; `None` if there is none that begins in this way.
    fn key(&self, mut number: u128) -> Option<Bytes> {
        if number >= self.all {
            return None;
        }
        let mut key = self.beginning.clone();
        let mut rest = self.all;
        for Alphabet(digit) in &self.digits {
            rest /= digit.len() as u128;
            key.push(digit[(number / rest) as usize]);
            number %= rest;
        }
        Some(key.into())
    }
}
