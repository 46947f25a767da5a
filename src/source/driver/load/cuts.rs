//! [`Cuts`]: where the requests for a snapshot begin and end.
//!
//! Not here: who sends them, see `load`; where in the key space a number of keys lies, see `scale`.
//!
//! etcd walks its index to the end of the requested range however few keys it returns, because it counts them. A
//! hundred pages that all end with the feed's range would cost fifty walks over all keys. So a request ends where about
//! as many keys lie as a page may have, as far as the pages before it show. If a page is full before that, the next one
//! continues. If it has few keys, the next request reaches further. After a few such requests in a row, one goes to the
//! end of the range, since it returns a full page for certain.
//! Always holds: the requests cover the range once, in order and without a gap, whatever was guessed. Of five requests
//! in a row at least one returns a quarter of a full page, or the range ends.

use bytes::Bytes;

use super::scale::Scale;
use crate::{hub::upstream::Page, types::KeyRange};

/// The intended size of a page: large enough to be cheap, small enough to be bounded.
const PAGE_BYTES: usize = 4 << 20;
/// Keys of the first page, before the size of values is known, and the most keys of any page.
const PAGE_KEYS: (usize, usize) = (64, 10_000);
/// How many requests in a row may return few keys.
const SHORT: u32 = 4;
/// How much further the request after such a one reaches.
const FURTHER: u64 = 4;

/// What is left of a range, and what is known about it.
#[derive(Debug)]
pub(super) struct Cuts {
    rest: Option<KeyRange>,
    /// The most keys of the next page.
    limit: usize,
    /// How many keys are left, if upstream counts them.
    left: Option<usize>,
    /// A key at which an earlier request ended, and how many of the keys before it are left.
    known: Option<(Bytes, usize)>,
    scale: Scale,
    /// How many requests in a row returned few keys.
    short: u32,
}

/// A request for a page.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) range: KeyRange,
    pub(super) limit: usize,
    /// What is left behind its range.
    behind: Option<KeyRange>,
}

impl Cuts {
    pub(super) fn new(range: KeyRange) -> Self {
        Self { rest: Some(range), limit: PAGE_KEYS.0, left: None, known: None, scale: Scale::default(), short: 0 }
    }

    /// The next request; `None` if everything was read.
    pub(super) fn next(&self) -> Option<Request> {
        let rest = self.rest.clone()?;
        let (range, behind) = match self.cut().and_then(|cut| rest.split(&cut)) {
            Some((range, behind)) => (range, Some(behind)),
            None => (rest, None),
        };
        Some(Request { range, limit: self.limit, behind })
    }

    /// Where the next request should end, if not with the range.
    fn cut(&self) -> Option<Bytes> {
        // Without a count, upstream does not look at the keys behind the page.
        if self.left? <= self.limit {
            return None;
        }
        let (aim, reach) = (self.aim(), self.reach());
        let known = self.known.as_ref().filter(|(_, left)| *left >= aim / 2);
        match known {
            Some((end, left)) if *left <= self.limit || self.short == SHORT => Some(end.clone()),
            Some((end, left)) => {
                let near = self.scale.key_after(reach);
                let between = self.scale.key_between(end, aim as f64 / *left as f64);
                [near, between, Some(end.clone())].into_iter().flatten().min()
            }
            None if self.short == SHORT => None,
            None => self.scale.key_after(reach),
        }
    }

    /// The number of keys that a request should find: a few less than it may return, as the end is guessed.
    fn aim(&self) -> usize {
        (self.limit - self.limit / 8).max(1)
    }

    fn reach(&self) -> u64 {
        (self.aim() as u64).saturating_mul(FURTHER.pow(self.short))
    }

    /// Makes the next request one for fewer keys, since the page for `request` was too large. Returns false if it was
    /// for a single key.
    pub(super) fn ask_less(&mut self, request: &Request) -> bool {
        self.limit = (request.limit / 8).max(1);
        request.limit > 1
    }

    /// Takes note of the page that answered `request`, and of its encoded bytes. Returns false if the page has no key
    /// and yet is not the last one.
    pub(super) fn took(&mut self, request: &Request, page: &Page, bytes: usize) -> bool {
        let (aim, keys) = (self.aim(), page.kvs.len());
        let left = if request.behind.is_some() { self.left } else { page.count };
        self.left = left.map(|left| left.saturating_sub(keys));
        let end = request.behind.as_ref().map(KeyRange::start);
        self.known = if page.more {
            end.cloned().zip(page.count.map(|count| count.saturating_sub(keys)))
        } else {
            let known = self.known.take().filter(|(known, _)| end.is_some_and(|end| end < known));
            known.map(|(known, left)| (known, left.saturating_sub(keys)))
        };
        self.rest = match (page.more, page.kvs.last()) {
            (false, _) => request.behind.clone(),
            (true, None) => return false,
            (true, Some(last)) => self.rest.as_ref().and_then(|rest| rest.after(&last.key)),
        };
        let is_short = request.behind.is_some() && !page.more && keys < aim / 4;
        self.short = if is_short { self.short + 1 } else { 0 };
        if let Some(rest) = &self.rest {
            self.scale.learn(&page.kvs, rest.start());
        }
        if keys > 0 {
            let fits = keys.saturating_mul(PAGE_BYTES) / bytes.max(1);
            self.limit = fits.clamp(1, (request.limit * 8).min(PAGE_KEYS.1));
        }
        true
    }
}

#[cfg(test)]
mod tests;
