//! Pages of lists of any length, limited by a number of rows and of bytes.
//!
//! The lists themselves are elsewhere; `state` uses this. Always holds: rows are in the order of their numbers, so
//! successive pages show each row that exists all the time exactly once. A list is read [`STEP`] rows at a time, and
//! other tasks run in between.

use serde::Deserialize;
use serde_json::Value;

/// Most rows of a page, which is also the default.
pub(super) const MOST_ROWS: usize = 1_000;
/// A page ends with the row that makes it this long.
pub(super) const PAGE_BYTES: usize = 512 << 10;
/// Rows that are read at a time.
const STEP: usize = 64;
/// Most rows that an answer reads if not all of them are shown.
const MOST_LOOKED_AT: usize = 10_000;

/// The requested part of a list, from a query.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Asked {
    /// The page begins after the row with this number.
    #[serde(default)]
    pub(super) after: u64,
    pub(super) limit: Option<usize>,
}

/// A part of a list.
#[derive(Debug, Default)]
pub(super) struct Page {
    rows: Vec<Value>,
    /// The number of its last row, if more rows follow.
    rest_after: Option<u64>,
    limit: usize,
}

impl Asked {
    /// Checks the request. The error tells what to use instead. `name` is the parameter of the limit, which must be at
    /// least `least`.
    pub(super) fn check(&self, name: &str, least: usize) -> Result<(), String> {
        match self.limit {
            Some(limit) if !(least..=MOST_ROWS).contains(&limit) => Err(format!(
                "{name}={limit} is not from {least} to {MOST_ROWS}; `next` in an answer leads to more rows\n"
            )),
            _ => Ok(()),
        }
    }

    /// Reads the page. `rows` returns the first rows after a number, up to the given count, with `None` for each row
    /// that is not shown.
    pub(super) async fn read(self, mut rows: impl FnMut(u64, usize) -> Vec<(u64, Option<Value>)>) -> Page {
        let limit = self.limit.unwrap_or(MOST_ROWS);
        let mut page = Page { limit, ..Page::default() };
        let (mut last, mut bytes, mut looked_at) = (self.after, 0, 0);
        loop {
            // One row more than fits shows whether there are more. In a search, few of the rows may be shown.
            let left = limit + 1 - page.rows.len();
            let wanted = if looked_at > page.rows.len() { STEP } else { STEP.min(left) };
            let step = rows(last, wanted);
            let is_end = step.len() < wanted;
            for (number, row) in step {
                looked_at += 1;
                let Some(row) = row else {
                    last = number;
                    continue;
                };
                if page.rows.len() == limit || bytes >= PAGE_BYTES {
                    page.rest_after = Some(last);
                    return page;
                }
                bytes += row.to_string().len();
                page.rows.push(row);
                last = number;
            }
            if is_end {
                return page;
            }
            if looked_at >= MOST_LOOKED_AT {
                page.rest_after = Some(last);
                return page;
            }
            tokio::task::yield_now().await;
        }
    }
}

impl Page {
    /// The rows and the path of the next page, as fields of a JSON object. `more` is the rest of the next page's query.
    pub(super) fn fields(self, name: &str, next: &str, path: &str, more: &str) -> [(String, Value); 2] {
        // For a list without rows, the next page is its beginning.
        let limit = if self.limit == 0 { MOST_ROWS } else { self.limit };
        let link = self.rest_after.map(|after| format!("{path}?after={after}&limit={limit}{more}"));
        [(name.to_owned(), self.rows.into()), (next.to_owned(), link.into())]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn asked(after: u64, limit: usize) -> Asked {
        Asked { after, limit: Some(limit) }
    }

    async fn read(asked: Asked, list: &BTreeMap<u64, usize>) -> (Vec<u64>, Option<u64>, usize) {
        let mut looked_at = 0;
        let page = asked
            .read(|after, most| {
                assert!(most <= STEP, "{most} rows at once");
                let rows = list.range(after + 1..).take(most);
                let rows: Vec<_> =
                    rows.map(|(number, size)| (*number, json!({ "id": number, "text": "x".repeat(*size) }))).collect();
                looked_at += rows.len();
                rows.into_iter().map(|(number, row)| (number, Some(row))).collect()
            })
            .await;
        (page.rows.iter().map(|row| row["id"].as_u64().expect("an id")).collect(), page.rest_after, looked_at)
    }

    #[tokio::test]
    async fn pages_show_each_row_once_while_others_come_and_go() {
        let mut list: BTreeMap<u64, usize> = (1..=1_000).map(|number| (number * 3, 1)).collect();
        let (mut seen, mut after, mut next_new) = (Vec::new(), 0, 1);
        loop {
            let (rows, rest, _) = read(asked(after, 70), &list).await;
            seen.extend(rows);
            let Some(rest) = rest else { break };
            // The row that the next page begins after disappears as well.
            list.remove(&rest);
            list.insert(next_new, 1);
            next_new += 3;
            after = rest;
        }
        let expected: Vec<u64> = (1..=1_000).map(|number| number * 3).collect();
        assert_eq!(seen.iter().copied().filter(|number| number % 3 == 0).collect::<Vec<_>>(), expected);
        assert!(seen.is_sorted_by(|one, next| one < next));
    }

    #[tokio::test]
    async fn a_page_looks_at_no_more_than_it_shows_and_one_row() {
        let list: BTreeMap<u64, usize> = (1..=100_000).map(|number| (number, 1)).collect();
        let (rows, rest, looked_at) = read(asked(0, 500), &list).await;
        assert_eq!((rows.len(), rest, looked_at), (500, Some(500), 501));
        let (rows, rest, _) = read(asked(99_500, 500), &list).await;
        assert_eq!((rows.len(), rest), (500, None), "no next page at the end of the list");
    }

    #[tokio::test]
    async fn a_page_is_bounded_in_bytes_and_always_goes_on() {
        let list: BTreeMap<u64, usize> = (1..=20).map(|number| (number, PAGE_BYTES / 3)).collect();
        let (rows, rest, _) = read(asked(0, 1_000), &list).await;
        assert_eq!((rows.len(), rest), (3, Some(3)));
        let list: BTreeMap<u64, usize> = (1..=3).map(|number| (number, PAGE_BYTES * 2)).collect();
        let (rows, rest, _) = read(asked(1, 1_000), &list).await;
        assert_eq!((rows, rest), (vec![2], Some(2)), "a row that is too large for a page has a page to itself");
    }

    #[tokio::test]
    async fn a_search_looks_at_a_bounded_number_of_rows_and_goes_on_where_it_ended() {
        let (mut found, mut after, mut answers) = (Vec::new(), 0, 0);
        let all = MOST_LOOKED_AT as u64 * 5 / 2;
        loop {
            let mut looked_at = 0;
            let page = asked(after, 10)
                .read(|after, most| {
                    assert!(most <= STEP, "{most} rows at once");
                    let rows: Vec<_> = (after + 1..=all).take(most).collect();
                    looked_at += rows.len();
                    rows.into_iter().map(|number| (number, (number % 9_000 == 0).then(|| json!(number)))).collect()
                })
                .await;
            assert!(looked_at < MOST_LOOKED_AT + STEP, "{looked_at} rows looked at");
            answers += 1;
            found.extend(page.rows.iter().map(|row| row.as_u64().expect("a number")));
            let Some(rest) = page.rest_after else { break };
            after = rest;
        }
        assert_eq!((found, answers), (vec![9_000, 18_000], 3));
    }

    #[tokio::test]
    async fn a_list_that_shows_no_row_tells_whether_there_are_some() {
        let list: BTreeMap<u64, usize> = (1..=3).map(|number| (number, 1)).collect();
        assert_eq!(read(asked(0, 0), &list).await, (vec![], Some(0), 1));
        assert_eq!(read(asked(0, 0), &BTreeMap::new()).await, (vec![], None, 0));
        let page = Page { rest_after: Some(7), limit: 0, ..Page::default() };
        let [_, (_, next)] = page.fields("rows", "next", "/list", "&behind=true");
        assert_eq!(next, "/list?after=7&limit=1000&behind=true");
    }

    #[test]
    fn a_limit_that_makes_no_sense_is_refused() {
        for limit in [0, MOST_ROWS + 1, usize::MAX] {
            assert!(asked(0, limit).check("limit", 1).is_err_and(|text| text.contains(&limit.to_string())));
        }
        for (asked, least) in [(asked(u64::MAX, MOST_ROWS), 1), (Asked::default(), 1), (asked(0, 0), 0)] {
            assert!(asked.check("limit", least).is_ok());
        }
    }
}
