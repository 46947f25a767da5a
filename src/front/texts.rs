//! Assigns the texts that a payload keeps ([`crate::hub::Payload::text`]) to the fronts.
//!
//! Used by the fronts that write events as text. Always holds: no two fronts use the same text.

use std::ops::Range;

/// The texts of `http::keys`, one for each of its forms.
pub(in crate::front) const KEYS: Range<usize> = 0..4;
/// The text of `gateway`.
pub(in crate::front) const GATEWAY: usize = KEYS.end;

const _: () = assert!(GATEWAY + 1 == crate::hub::TEXTS, "a payload has a text for each");
