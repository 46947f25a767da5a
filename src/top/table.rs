//! [`Column`]s of a list, their order, and how they share the available width.
//!
//! Drawing is in `draw`. Always holds: a line of a table is never wider than the given width. If not all columns fit,
//! the least important ones are left out. Only visible rows are turned into text.

use std::cmp::Ordering;

use super::text::{columns, fit, safe};

/// Space between two columns of a table, in terminal columns.
const GAP: usize = 2;
/// Widest cell if the line has no limit.
const WIDEST: usize = 200;

/// A column of a list of `R`.
pub(super) struct Column<R> {
    /// The heading.
    pub(super) title: &'static str,
    /// The smallest useful width.
    pub(super) least: usize,
    /// Columns with a higher rank are left out first.
    pub(super) rank: u8,
    /// Whether the column holds numbers, which are aligned to the right.
    pub(super) right: bool,
    /// The safe text of the cell of a row.
    pub(super) cell: fn(&R) -> String,
    /// The order of rows that are sorted by this column; the most important row comes first.
    pub(super) order: fn(&R, &R) -> Ordering,
}

/// The columns that fit, by index, each with its width.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout(Vec<(usize, usize)>);

impl Layout {
    /// Divides `width` among the columns according to the visible rows. Without a width, each column gets what it
    /// needs.
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
        // The remaining width goes to the most important columns.
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

    /// The line of headings. A mark shows the column that the list is sorted by.
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

    /// The line of a row.
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
