//! [`Sweep`]: a list of possibly thousands of rows, read page by page, round after round.
//!
//! Reading the whole list each second would cost the relay too much. The first round is read at once; after that, one
//! page is read at a time. So a row may be as old as the last round, and [`Sweep::age`] tells how old. Always holds: a
//! page replaces all rows between the number it begins after and its last row, so rows that are gone disappear when
//! their page is read again. At most [`MOST_ROWS`] rows are kept.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::state::Row;

/// Largest number of rows that are kept. Of a longer list only the first are kept, and it is marked as cut.
pub(super) const MOST_ROWS: usize = 20_000;

/// A list that is read in pages; see the module.
#[derive(Debug)]
pub(super) struct Sweep<R> {
    rows: BTreeMap<u64, R>,
    /// The number after which the next page begins.
    after: u64,
    began: Instant,
    /// When the previous round began; `None` in the first round.
    before: Option<Instant>,
    cut: bool,
}

impl<R: Row> Sweep<R> {
    /// An empty list of which nothing has been read.
    pub(super) fn new(now: Instant) -> Self {
        Self { rows: BTreeMap::new(), after: 0, began: now, before: None, cut: false }
    }

    /// Adds the page that was requested, and the number after which the next one begins, if there is one.
    pub(super) fn take(&mut self, page: Vec<R>, next: Option<u64>, now: Instant) {
        if self.after == 0 {
            self.began = now;
        }
        // A server may send any number.
        let first = self.after.saturating_add(1);
        let last = next.map_or(u64::MAX, |next| next.max(first));
        let gone: Vec<u64> = self.rows.range(first..=last).map(|(number, _)| *number).collect();
        for number in gone {
            self.rows.remove(&number);
        }
        self.rows.extend(page.into_iter().map(|row| (row.number(), row)));
        let full = self.rows.len() > MOST_ROWS;
        while self.rows.len() > MOST_ROWS {
            self.rows.pop_last();
        }
        if full || next.is_none() {
            self.cut = full;
        }
        match next.filter(|next| *next > self.after && !full) {
            Some(next) => self.after = next,
            None => {
                self.after = 0;
                self.before = Some(self.began);
            }
        }
    }

    /// The number after which the next page begins.
    pub(super) fn after(&self) -> u64 {
        self.after
    }

    /// Whether all rows were read at least once.
    pub(super) fn is_complete(&self) -> bool {
        self.before.is_some()
    }

    /// Whether the list is longer than what is kept.
    pub(super) fn is_cut(&self) -> bool {
        self.cut
    }

    /// The greatest possible age of a row.
    pub(super) fn age(&self, now: Instant) -> Duration {
        let oldest = if self.after == 0 { self.began } else { self.before.unwrap_or(self.began) };
        now.saturating_duration_since(oldest)
    }

    /// The rows in the order of their numbers.
    pub(super) fn rows(&self) -> impl Iterator<Item = &R> {
        self.rows.values()
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Numbered(u64, &'static str);

    impl Row for Numbered {
        fn number(&self) -> u64 {
            self.0
        }
    }

    fn shown(sweep: &Sweep<Numbered>) -> Vec<(u64, &'static str)> {
        sweep.rows().map(|row| (row.0, row.1)).collect()
    }

    #[test]
    fn rows_come_change_and_go_with_their_page() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut sweep = Sweep::new(start);
        sweep.take(vec![Numbered(1, "a"), Numbered(4, "a")], Some(4), start);
        assert_eq!((sweep.after(), sweep.is_complete()), (4, false));
        sweep.take(vec![Numbered(5, "a"), Numbered(9, "a")], None, start + second);
        assert_eq!((sweep.after(), sweep.is_complete(), sweep.age(start + second * 2)), (0, true, second * 2));
        // Row 4 is gone, 2 is new, 1 has changed, and the second page is still as it was read.
        sweep.take(vec![Numbered(1, "b"), Numbered(2, "b"), Numbered(5, "b")], Some(5), start + second * 2);
        assert_eq!(shown(&sweep), [(1, "b"), (2, "b"), (5, "b"), (9, "a")]);
        assert_eq!(sweep.age(start + second * 3), second * 3, "row 9 is from the first round");
        sweep.take(vec![], None, start + second * 3);
        assert_eq!(shown(&sweep), [(1, "b"), (2, "b"), (5, "b")]);
        assert_eq!(sweep.age(start + second * 3), second);
    }

    #[test]
    fn a_page_without_rows_leads_on() {
        let mut sweep = Sweep::new(Instant::now());
        sweep.take(vec![Numbered(20_000, "a")], Some(20_000), Instant::now());
        sweep.take(vec![], Some(30_000), Instant::now());
        assert_eq!(sweep.after(), 30_000);
        sweep.take(vec![], None, Instant::now());
        assert_eq!(shown(&sweep), [(20_000, "a")]);
    }

    #[test]
    fn a_list_without_an_end_is_cut() {
        let mut sweep = Sweep::new(Instant::now());
        let mut pages = 0;
        while !sweep.is_complete() {
            let after = sweep.after();
            let page: Vec<_> = (after + 1..=after + 999).map(|number| Numbered(number, "")).collect();
            sweep.take(page, Some(after + 999), Instant::now());
            pages += 1;
        }
        assert_eq!((sweep.len(), sweep.is_cut(), pages), (MOST_ROWS, true, 21));
        sweep.take(vec![Numbered(1, "again")], Some(999), Instant::now());
        assert_eq!((sweep.after(), sweep.is_cut()), (999, true), "the next round reads on as well");
        // Nor does one whose next page begins after the last number.
        let mut sweep = Sweep::new(Instant::now());
        sweep.take(vec![Numbered(1, "")], Some(u64::MAX), Instant::now());
        sweep.take(vec![Numbered(2, "")], Some(u64::MAX), Instant::now());
        assert!(sweep.is_complete());
        // A server whose links do not move on does not stop the list.
        let mut sweep = Sweep::new(Instant::now());
        sweep.take(vec![Numbered(1, "")], Some(0), Instant::now());
        assert!(sweep.is_complete());
    }
}
