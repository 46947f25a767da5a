//! [`Reader`]: asks the relay, again and again, and tells the page what came.
//!
//! Not here: how requests are made, see `fetch`. Always holds: between two rounds passes the interval at least, so that looking at a relay of thousands of
//! connections costs it little: a round asks for the state and a page of each list. Only the first round, and one after a change of what is wished for,
//! reads the lists whole, which are bounded.

use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::sync::{mpsc, watch};

use super::{
    page::{Part, Update, Wish},
    state::{ConnectionsPage, FeedsPage, State},
    sweep::MOST_ROWS,
    text::safe,
};
use crate::fetch::{FetchError, Fetcher};

/// Rows of a page. Of connections with a watch, the relay makes a thousand in some ten milliseconds.
const ROWS: usize = 500;
/// Between attempts while the relay does not answer.
const RETRY: Duration = Duration::from_secs(1);
/// Characters of a refusal that are shown.
const MOST_REFUSAL: usize = 300;

/// See the module.
pub(super) struct Reader {
    fetcher: Fetcher,
    every: Duration,
    wishes: watch::Receiver<Wish>,
    updates: mpsc::Sender<Update>,
    feeds: Place,
    connections: Place,
}

/// Why a round could not be made.
#[derive(Debug, Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("{url} refuses to tell: {text}")]
    Refused { url: String, text: String },
    #[error("{url} has no {path}: is it the HTTP port of an etcd-relay? ({status})")]
    NotThere { url: String, path: String, status: u16 },
    #[error("the answer to {path} cannot be read: {cause}")]
    Unreadable { path: String, cause: serde_json::Error },
    /// Whoever wanted to know is gone.
    #[error("nobody listens any more")]
    Over,
}

/// How far a list is read.
#[derive(Debug, Default)]
struct Place {
    after: u64,
    rows: usize,
    /// Whether the list was read to its end once.
    complete: bool,
}

impl Reader {
    pub(super) fn new(
        fetcher: Fetcher,
        every: Duration,
        wishes: watch::Receiver<Wish>,
        updates: mpsc::Sender<Update>,
    ) -> Self {
        Self { fetcher, every, wishes, updates, feeds: Place::default(), connections: Place::default() }
    }

    /// Reads until nobody listens any more.
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
            // Cancel safe, both.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = self.wishes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.wishes.mark_changed();
                }
            }
        }
    }

    /// The state, and the next page of each list, or all pages of one that was not read to its end yet.
    pub(super) async fn round(&mut self) -> Result<(), ReadError> {
        self.tell_state().await?;
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
            if self.wishes.has_changed().unwrap_or(false) {
                self.connections = Place::default();
            }
            let wish = self.wishes.borrow_and_update().clone();
            let mut path = format!("/debug/state/connections?after={}&limit={ROWS}", self.connections.after);
            if !wish.find.is_empty() {
                path += &format!("&find={}", utf8_percent_encode(&wish.find, NON_ALPHANUMERIC));
            }
            if wish.behind {
                path += "&behind=true";
            }
            let page: ConnectionsPage = self.get(&path).await?;
            let (after, next) = self.connections.step(page.connections.len(), page.next.as_deref());
            self.tell(Update::Connections(wish, Part { after, rows: page.connections, next })).await?;
            if self.connections.complete {
                return Ok(());
            }
        }
    }

    /// The state alone.
    pub(super) async fn tell_state(&mut self) -> Result<(), ReadError> {
        // An older relay does not know the parameters, and sends its first rows along.
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
    /// After a page with so many rows and this link to the next: where it began, and where the next one begins.
    fn step(&mut self, rows: usize, next: Option<&str>) -> (u64, Option<u64>) {
        let began = self.after;
        self.rows += rows;
        let next = next.and_then(after).filter(|next| *next > began);
        match next.filter(|_| self.rows <= MOST_ROWS) {
            Some(next) => self.after = next,
            None => *self = Self { complete: true, ..Self::default() },
        }
        (began, next)
    }
}

/// The number after which a page begins, from its path.
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
        assert_eq!(place.step(0, Some("/x?after=600")), (600, None), "a link that leads nowhere ends the round");
        assert_eq!([after("/x"), after("/x?limit=1"), after("/x?after=-1")], [None, None, None]);
    }

    #[test]
    fn a_list_without_an_end_is_begun_again() {
        let mut place = Place::default();
        let mut pages = 0;
        while !place.complete {
            let next = format!("/x?after={}", place.after + 1);
            place.step(ROWS, Some(&next));
            pages += 1;
        }
        assert_eq!(pages, MOST_ROWS / ROWS + 1);
    }
}
