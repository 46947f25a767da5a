//! [`HeldForward`]: counts a call of a client that the relay holds back before it passes it on.

use metrics::gauge;

use super::names;

/// A call that waits, in [`names::FORWARDS_HELD`] as long as this lives.
#[derive(Debug)]
pub struct HeldForward(());

impl HeldForward {
    /// Counts a call that begins to wait.
    #[must_use]
    pub fn count() -> Self {
        gauge!(names::FORWARDS_HELD).increment(1.0);
        Self(())
    }
}

impl Drop for HeldForward {
    fn drop(&mut self) {
        gauge!(names::FORWARDS_HELD).decrement(1.0);
    }
}
