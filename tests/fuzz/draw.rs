//! [`Draw`]: makes choices from the bytes of an input.
//!
//! So a target can build meaningful frames and messages, and each input is still only bytes that can be changed, stored
//! and reduced. Always holds: an exhausted input gives zeros.

/// The rest of an input.
#[derive(Debug)]
pub(crate) struct Draw<'a>(pub(crate) &'a [u8]);

impl<'a> Draw<'a> {
    pub(crate) fn is_done(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or_default()
    }

    /// True once in 16 times.
    pub(crate) fn seldom(&mut self) -> bool {
        self.byte() >= 0xf0
    }

    pub(crate) fn flip(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub(crate) fn number(&mut self) -> u32 {
        u32::from_be_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// One of these items.
    pub(crate) fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[usize::from(self.byte()) % items.len()]
    }

    /// As many bytes as the next byte says, or those that are left.
    pub(crate) fn some(&mut self) -> &'a [u8] {
        let count = usize::from(self.byte());
        self.up_to(count)
    }

    pub(crate) fn up_to(&mut self, count: usize) -> &'a [u8] {
        self.0.split_off(..count.min(self.0.len())).unwrap_or_default()
    }
}
