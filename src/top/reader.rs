//! [`Reader`]: reads the relay's state repeatedly and sends it to the page.
//!
//! The requests themselves are made in `fetch`. Always holds: two rounds are at least one interval apart, and each
//! reads only the state and one page of each list, so looking at a relay with thousands of connections is cheap. Only
//! the first round, and the first after a change of the filter, reads whole lists, whose length is bounded.

use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::sync::{mpsc, watch};

use super::{
    page::{Filter, Part, Update},
    state::{ConnectionsPage, FeedsPage, State},
    sweep::MOST_ROWS,
    text::safe,
};
use crate::fetch::{FetchError, Fetcher};

/// Rows per page. For connections with a watch, the relay needs about ten milliseconds per thousand rows.
const ROWS: usize = 500;
/// Pause between attempts while the relay does not answer.
const RETRY: Duration = Duration::from_secs(1);
/// Longest part of a refusal that is shown, in characters.
const MOST_REFUSAL: usize = 300;

/// Reads from the relay; see the module.
pub(super) struct Reader {
    fetcher: Fetcher,
    every: Duration,
    filters: watch::Receiver<Filter>,
    updates: mpsc::Sender<Update>,
    feeds: Place,
    connections: Place,
}

/// Why a round failed.
#[derive(Debug, Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("{url} refused the request: {text}")]
    Refused { url: String, text: String },
    #[error("{url} has no {path}: is it the HTTP port of an etcd-relay? ({status})")]
    NotThere { url: String, path: String, status: u16 },
    #[error("the answer to {path} cannot be read: {cause}")]
    Unreadable { path: String, cause: serde_json::Error },
    /// The receiver of the updates is gone.
    #[error("the receiver of the updates is gone")]
    Over,
}

/// How far a list has been read.
#[derive(Debug, Default)]
struct Place {
    after: u64,
    rows: usize,
    /// Whether the list was read to its end at least once.
    complete: bool,
}

impl Reader {
    pub(super) fn new(
        fetcher: Fetcher,
        every: Duration,
        filters: watch::Receiver<Filter>,
        updates: mpsc::Sender<Update>,
    ) -> Self {
        Self { fetcher, every, filters, updates, feeds: Place::default(), connections: Place::default() }
    }

    /// Reads until the receiver of the updates is gone.
    pub(super) async fn run(mut self) {
        loop {
            let pause = match self.round().await {
                Ok(()) => self.every,
                Err(ReadError::Over) => return,
                Err(error) => {
                    if self.updates.send(Update::Trouble(error.to_string())).await.is_err() {
                        return;
                    }
                    self.every.max(RETRY)
                }
            };
            // Both branches are cancel safe.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = self.filters.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.filters.mark_changed();
                }
            }
        }
    }

    /// Reads the state and the next page of each list, or all its pages if it was never read to its end.
    pub(super) async fn round(&mut self) -> Result<(), ReadError> {
        self.read_state().await?;
        loop {
            let path = format!("/debug/state/feeds?after={}&limit={ROWS}", self.feeds.after);
            let page: FeedsPage = self.get(&path).await?;
            let (after, next) = self.feeds.step(page.feeds.len(), page.next.as_deref());
            self.tell(Update::Feeds(Part { after, rows: page.feeds, next })).await?;
            if self.feeds.complete {
                break;
            }
        }
        loop {
            if self.filters.has_changed().unwrap_or(false) {
                self.connections = Place::default();
            }
            let filter = self.filters.borrow_and_update().clone();
            let mut path = format!("/debug/state/connections?after={}&limit={ROWS}", self.connections.after);
            if !filter.find.is_empty() {
                path += &format!("&find={}", utf8_percent_encode(&filter.find, NON_ALPHANUMERIC));
            }
            if filter.behind {
                path += "&behind=true";
            }
            let page: ConnectionsPage = self.get(&path).await?;
            let (after, next) = self.connections.step(page.connections.len(), page.next.as_deref());
            self.tell(Update::Connections(filter, Part { after, rows: page.connections, next })).await?;
            if self.connections.complete {
                return Ok(());
            }
        }
    }

    /// Reads the state alone.
    pub(super) async fn read_state(&mut self) -> Result<(), ReadError> {
        // An older relay ignores the parameters and includes its first rows.
        let state: State = self.get("/debug/state?feeds=0&connections=0").await?;
        self.tell(Update::State(Box::new(state))).await
    }

    async fn tell(&self, update: Update) -> Result<(), ReadError> {
        self.updates.send(update).await.map_err(|_| ReadError::Over)
    }

    async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, ReadError> {
        let answer = self.fetcher.get(path).await?;
        let url = || self.fetcher.url().to_string();
        match answer.status {
            200 => serde_json::from_slice(&answer.body)
                .map_err(|cause| ReadError::Unreadable { path: path.to_owned(), cause }),
            401 | 403 => {
                let text = String::from_utf8_lossy(&answer.body);
                let text: String = text.trim().chars().take(MOST_REFUSAL).collect();
                Err(ReadError::Refused { url: url(), text: safe(&text) })
            }
            status => Err(ReadError::NotThere { url: url(), path: path.to_owned(), status }),
        }
    }
}

impl Place {
    /// Moves on after a page with this many rows and this link to the next one. Returns the number after which the page
    /// began, and the one after which the next begins.
    fn step(&mut self, rows: usize, next: Option<&str>) -> (u64, Option<u64>) {
        let began = self.after;
        // Pages without rows are counted too, since a server may send them without end.
        self.rows += rows.max(1);
        let next = next.and_then(after).filter(|next| *next > began);
        match next.filter(|_| self.rows <= MOST_ROWS) {
            Some(next) => self.after = next,
            None => *self = Self { complete: true, ..Self::default() },
        }
        (began, next)
    }
}

/// The number after which a page begins, taken from its path.
fn after(path: &str) -> Option<u64> {
    let query = path.split_once('?')?.1;
    query.split('&').find_map(|parameter| parameter.strip_prefix("after="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_round_after_round() {
        let mut place = Place::default();
        assert_eq!(place.step(500, Some("/debug/state/feeds?after=700&limit=500")), (0, Some(700)));
        assert!(!place.complete);
        assert_eq!(place.step(3, None), (700, None));
        assert!(place.complete);
        assert_eq!(place.step(500, Some("/x?limit=500&after=600&find=a%26after%3D1")), (0, Some(600)));
        assert!(place.complete, "once");
        assert_eq!(place.step(0, Some("/x?after=600")), (600, None), "a link that does not move on ends the round");
        assert_eq!([after("/x"), after("/x?limit=1"), after("/x?after=-1")], [None, None, None]);
    }

    #[test]
    fn a_list_without_an_end_is_begun_again() {
        for rows in [ROWS, 0] {
            let mut place = Place::default();
            let mut pages = 0;
            while !place.complete {
                let next = format!("/x?after={}", place.after + 1);
                place.step(rows, Some(&next));
                pages += 1;
            }
            assert_eq!(pages, MOST_ROWS / rows.max(1) + 1);
        }
    }
}
