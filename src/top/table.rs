//! [`Column`]s of a list, how they are ordered, and how they share the width that there is.
//!
//! Not here: what is drawn. Always holds: a line of a table takes no more columns than it is given; where there is not room for all columns, those that
//! matter least are left out; only rows that are shown are turned into text.

use std::cmp::Ordering;

use super::text::{columns, fit, safe};

/// Columns of the terminal between two columns of a table.
const GAP: usize = 2;
/// Most columns that one cell takes where there is no limit to a line.
const WIDEST: usize = 200;

/// A column of a list of `R`.
pub(super) struct Column<R> {
    /// Its heading.
    pub(super) title: &'static str,
    /// How few columns make sense.
    pub(super) least: usize,
    /// Columns with a higher number are left out first.
    pub(super) rank: u8,
    /// Whether it is a number, which stands on the right.
    pub(super) right: bool,
    /// The text of a row, as it may be shown.
    pub(super) cell: fn(&R) -> String,
    /// In which order rows are sorted by it. That in which the most important comes first.
    pub(super) order: fn(&R, &R) -> Ordering,
}

/// The columns that there is room for, by their places, each with its width.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout(Vec<(usize, usize)>);

impl Layout {
    /// Shares `width` among the columns, as the rows that are shown need it; all that they need where it is not set.
    pub(super) fn new<R>(columns: &[Column<R>], rows: &[&R], width: Option<usize>) -> Self {
        let wanted: Vec<usize> = columns
            .iter()
            .map(|column| {
                let widest = rows.iter().map(|row| self::columns(&(column.cell)(row))).max().unwrap_or_default();
                widest.max(column.title.len() + 1).min(WIDEST)
            })
            .collect();
        let mut kept: Vec<usize> = (0..columns.len()).collect();
        let Some(width) = width else { return Self(kept.into_iter().map(|place| (place, wanted[place])).collect()) };
        let least = |place: usize| columns[place].least.min(wanted[place]);
        while kept.iter().map(|place| least(*place) + GAP).sum::<usize>() > width + GAP && kept.len() > 1 {
            let last = kept.iter().max_by_key(|place| columns[**place].rank).copied();
            kept.retain(|place| Some(*place) != last);
        }
        let mut left = (width + GAP).saturating_sub(kept.iter().map(|place| least(*place) + GAP).sum());
        let mut widths: Vec<(usize, usize)> = kept.into_iter().map(|place| (place, least(place).min(width))).collect();
        // What is left goes to those that matter most.
        let mut by_rank: Vec<usize> = (0..widths.len()).collect();
        by_rank.sort_by_key(|at| columns[widths[*at].0].rank);
        for at in by_rank {
            let (place, has) = widths[at];
            let more = wanted[place].saturating_sub(has).min(left);
            widths[at].1 += more;
            left -= more;
        }
        Self(widths)
    }

    /// The headings; that of the column by which rows are sorted has a mark.
    pub(super) fn head<R>(&self, columns: &[Column<R>], sorted: usize, reversed: bool) -> String {
        self.line(|place| {
            let mark = match (place == sorted, reversed) {
                (false, _) => "",
                (true, false) => "▼",
                (true, true) => "▲",
            };
            (format!("{}{mark}", columns[place].title), columns[place].right)
        })
    }

    /// A row.
    pub(super) fn row<R>(&self, columns: &[Column<R>], row: &R) -> String {
        self.line(|place| ((columns[place].cell)(row), columns[place].right))
    }

    fn line(&self, cell: impl Fn(usize) -> (String, bool)) -> String {
        let mut line = String::new();
        for (place, width) in &self.0 {
            if !line.is_empty() {
                line.push_str(&" ".repeat(GAP));
            }
            let (text, right) = cell(*place);
            line.push_str(&fit(&safe(&text), *width, right));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column<(u64, &str)>] = &[
        Column { title: "NAME", least: 4, rank: 0, right: false, cell: |row| safe(row.1), order: |a, b| a.1.cmp(b.1) },
        Column {
            title: "SIZE",
            least: 3,
            rank: 2,
            right: true,
            cell: |row| row.0.to_string(),
            order: |a, b| b.0.cmp(&a.0),
        },
        Column {
            title: "MORE",
            least: 3,
            rank: 1,
            right: false,
            cell: |row| "x".repeat(row.0 as usize),
            order: |_, _| Ordering::Equal,
        },
    ];

    fn lines(rows: &[&(u64, &'static str)], width: Option<usize>) -> Vec<String> {
        let layout = Layout::new(COLUMNS, rows, width);
        let head = layout.head(COLUMNS, 1, false);
        std::iter::once(head).chain(rows.iter().map(|row| layout.row(COLUMNS, row))).collect()
    }

    #[test]
    fn columns_share_the_width_and_the_least_important_go_first() {
        let rows = [&(7, "a name"), &(12, "b")];
        assert_eq!(
            lines(&rows, None),
            ["NAME    SIZE▼  MORE        ", "a name      7  xxxxxxx     ", "b          12  xxxxxxxxxxxx"]
        );
        assert_eq!(lines(&rows, Some(20)), ["NAME    SI…  MORE   ", "a name    7  xxxxxxx", "b        12  xxxxxx…"]);
        assert_eq!(lines(&rows, Some(3))[1], "a …");
        for width in 1..40 {
            assert!(lines(&rows, Some(width)).iter().all(|line| columns(line) <= width), "{width}");
        }
    }

    #[test]
    fn hostile_text_never_reaches_a_line() {
        let line = &lines(&[&(1, "\u{1b}[31m\u{202e}")], Some(60))[1];
        assert!(line.contains("\\u{1b}[31m\\u{202e}"), "{line}");
    }
}
