//! Which of the texts that a payload keeps ([`crate::hub::Payload::text`]) is whose.
//!
//! Not here: how they are written. Used by the fronts that write events as text. Always holds: no two of them use the same one.

use std::ops::Range;

/// Those of `http::keys`: one for each of its forms.
pub(in crate::front) const KEYS: Range<usize> = 0..4;
/// That of `gateway`.
pub(in crate::front) const GATEWAY: usize = KEYS.end;

const _: () = assert!(GATEWAY + 1 == crate::hub::TEXTS, "a payload has a text for each");
