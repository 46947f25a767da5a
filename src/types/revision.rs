//! [`Revision`]: etcd's logical clock, which advances by one with each transaction that changes the store.
//!
//! Always holds: etcd assigned every revision that reaches a subscriber; the relay never invents one.

use std::fmt;

use serde::Serialize;

/// A store revision as etcd assigned it. Zero means "none yet".
/// ```
/// use etcd_relay::types::Revision;
///
/// let seen = Revision::new(41);
/// assert_eq!(seen.next().get(), 42);
/// assert!(Revision::ZERO < seen);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Revision(i64);

impl Revision {
    /// "None yet": lower than every revision that etcd assigns.
    pub const ZERO: Self = Self(0);

    /// Wraps a revision read from the wire.
    #[must_use]
    pub const fn new(revision: i64) -> Self {
        Self(revision)
    }

    /// The number on the wire.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }

    /// The revision after this one. The largest revision is its own successor.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The revision before this one. The smallest revision is its own predecessor.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
