//! Tests of what the driver reads at a time.

use std::collections::VecDeque;

use async_trait::async_trait;

use super::*;
use crate::types::{EventFields, EventKind, KeyValueFields, Revision};

/// A watch on which these messages have arrived, and nothing more comes.
struct Arrived(VecDeque<WatchMessage>);

#[async_trait]
impl UpstreamWatch for Arrived {
    async fn next(&mut self) -> Result<WatchMessage, UpstreamError> {
        match self.0.pop_front() {
            Some(message) => Ok(message),
            None => std::future::pending().await,
        }
    }

    async fn request_progress(&mut self) -> Result<(), UpstreamError> {
        Ok(())
    }

    fn trusts_progress(&self) -> bool {
        true
    }

    fn created(&self) -> Header {
        Header::default()
    }
}

fn header(revision: i64) -> Header {
    Header { revision: Revision::new(revision), ..Header::default() }
}

fn put(revision: i64, value: usize) -> WatchMessage {
    let kv = KeyValueFields { key: "k".into(), value: vec![0; value].into(), ..KeyValueFields::default() };
    let events = vec![EventFields { kind: EventKind::Put, kv }];
    let revisions = vec![Changes {
        revision: Revision::new(revision),
        events,
        prev: Vec::new(),
        received: std::time::Instant::now(),
    }];
    WatchMessage::Events { header: header(revision), revisions }
}

/// What is read at once, as (newest header, revisions); of other messages, no revisions.
async fn read(upstream: &mut Arrived, ahead: &mut Option<Result<WatchMessage, UpstreamError>>) -> (i64, Vec<i64>) {
    match next(upstream, ahead).await.expect("no failure") {
        WatchMessage::Events { header, revisions } => {
            (header.revision.get(), revisions.iter().map(|changes| changes.revision.get()).collect())
        }
        WatchMessage::Progress(header) => (header.revision.get(), Vec::new()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn events_that_have_arrived_are_read_together_and_nothing_overtakes_them() {
    let messages = [put(1, 1), put(2, 1), WatchMessage::Progress(header(5)), put(6, 1), put(7, 1)];
    let mut upstream = Arrived(messages.into());
    let mut ahead = None;
    assert_eq!(read(&mut upstream, &mut ahead).await, (2, vec![1, 2]));
    assert_eq!(read(&mut upstream, &mut ahead).await, (5, vec![]));
    assert_eq!(read(&mut upstream, &mut ahead).await, (7, vec![6, 7]));
    assert!(ahead.is_none());
}

#[tokio::test]
async fn what_is_read_together_is_bounded() {
    let mut ahead = None;
    let many = TOGETHER.0 as i64 + 10;
    let mut upstream = Arrived((1..=many).map(|revision| put(revision, 1)).collect());
    assert_eq!(read(&mut upstream, &mut ahead).await.1.len(), TOGETHER.0);
    let mut upstream = Arrived((1..=9).map(|revision| put(revision, TOGETHER.1 / 4)).collect());
    assert_eq!(read(&mut upstream, &mut ahead).await.1, [1, 2, 3, 4]);
}

#[test]
fn what_comes_in_one_message_is_published_in_parts_that_leave_nothing_out() {
    let parts = |revisions: std::ops::RangeInclusive<i64>, value: usize| -> Vec<Vec<i64>> {
        let of = |revision| match put(revision, value) {
            WatchMessage::Events { revisions, .. } => revisions,
            other => panic!("{other:?}"),
        };
        let message: Vec<Changes> = revisions.flat_map(of).collect();
        batches(&message).map(|batch| batch.iter().map(|changes| changes.revision.get()).collect()).collect()
    };
    let most = TOGETHER.0 as i64;
    let many = [(1..=most).collect(), (most + 1..=2 * most).collect(), vec![2 * most + 1]];
    assert_eq!(parts(1..=2 * most + 1, 1), many);
    assert_eq!(parts(1..=9, TOGETHER.1 / 4), [vec![1, 2, 3, 4], vec![5, 6, 7, 8], vec![9]]);
    assert_eq!(parts(1..=2, 2 * TOGETHER.1), [[1], [2]], "one is published whatever its size");
}
