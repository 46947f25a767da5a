//! [`Ordered`]: a text whose parts must be reordered, which is done in steps.
//!
//! The parts come from `listing`. Always holds: each byte is copied at most once, however deeply such parts are nested.
//! There is no recursion. A step copies no more than requested.

use std::ops::Range;

/// A part of a text that itself consists of parts, separated by commas.
#[derive(Debug)]
pub(super) struct Reordered {
    /// The whole range.
    pub(super) text: Range<usize>,
    /// Its parts in the new order. Parts that are left out are missing here.
    pub(super) order: Vec<Range<usize>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Ordered {
    text: Vec<u8>,
    /// Sorted by their beginnings. A part nested in another begins after it.
    reordered: Vec<Reordered>,
    out: Vec<u8>,
    /// What is still to be copied; the next piece is the last element.
    todo: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    Text(Range<usize>),
    Comma,
}

impl Ordered {
    pub(super) fn new(text: Vec<u8>, mut reordered: Vec<Reordered>) -> Self {
        if reordered.is_empty() {
            return Self { text: Vec::new(), reordered, out: text, todo: Vec::new() };
        }
        reordered.sort_unstable_by_key(|reordered| reordered.text.start);
        let todo = vec![Piece::Text(0..text.len())];
        Self { out: Vec::with_capacity(text.len()), text, reordered, todo }
    }

    /// Approximate memory use.
    pub(super) fn memory(&self) -> usize {
        let parts: usize = self.reordered.iter().map(|reordered| reordered.order.len()).sum();
        self.text.capacity() + self.out.capacity() + parts * size_of::<Piece>()
    }

    /// Copies up to `most` further bytes. Returns whether everything is copied.
    pub(super) fn step(&mut self, most: usize) -> bool {
        let until = self.out.len() + most;
        while self.out.len() < until {
            match self.todo.pop() {
                None => return true,
                Some(Piece::Comma) => self.out.push(b','),
                Some(Piece::Text(range)) => self.copy(range, until),
            }
        }
        self.todo.is_empty()
    }

    /// The text, once everything is copied.
    pub(super) fn into_text(mut self) -> Vec<u8> {
        self.out.shrink_to_fit();
        self.out
    }

    fn copy(&mut self, range: Range<usize>, until: usize) {
        let from = self.reordered.partition_point(|reordered| reordered.text.start < range.start);
        // The first element may be the enclosing one, if this is its first part.
        let within = self.reordered[from..].iter_mut().take(2).find(|reordered| {
            let Range { start, end } = reordered.text;
            start < range.end && end <= range.end
        });
        let Some(within) = within else {
            let end = range.end.min(range.start + (until - self.out.len()));
            self.out.extend_from_slice(&self.text[range.start..end]);
            if end < range.end {
                self.todo.push(Piece::Text(end..range.end));
            }
            return;
        };
        self.todo.push(Piece::Text(within.text.end..range.end));
        for (at, part) in std::mem::take(&mut within.order).into_iter().enumerate().rev() {
            self.todo.push(Piece::Text(part));
            if at > 0 {
                self.todo.push(Piece::Comma);
            }
        }
        // The text continues before the parts.
        self.todo.push(Piece::Text(range.start..within.text.start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_within_parts_are_put_in_order() {
        // Two parts, the first of which has two parts.
        let text = b"<(2,1),b,a>".to_vec();
        let inner = Reordered { text: 2..5, order: vec![4..5, 2..3] };
        let outer = Reordered { text: 1..10, order: vec![9..10, 7..8, 1..6] };
        for most in [1, 3, 100] {
            let inner = Reordered { text: inner.text.clone(), order: inner.order.clone() };
            let outer = Reordered { text: outer.text.clone(), order: outer.order.clone() };
            let mut ordered = Ordered::new(text.clone(), vec![inner, outer]);
            while !ordered.step(most) {}
            assert_eq!(String::from_utf8(ordered.into_text()).expect("text"), "<a,b,(1,2)>");
        }
    }

    #[test]
    fn a_text_that_is_in_order_is_not_copied() {
        let text = b"text".to_vec();
        let at = text.as_ptr();
        assert_eq!(text.capacity(), text.len());
        let mut ordered = Ordered::new(text, Vec::new());
        assert!(ordered.step(0));
        let text = ordered.into_text();
        assert_eq!(text.as_ptr(), at);
    }
}
