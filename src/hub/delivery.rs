//! [`Delivery`]: what an outbox passes on to be sent, in the terms of etcd's watch protocol but not in its wire form.
//!
//! Made by `feed`, `catch_up` and `fill`; written by a front.

use std::sync::Arc;

use super::payload::Payload;
use crate::{
    telemetry::names::CancelReason,
    types::{Header, Revision, Stamp},
};

/// The watch id of responses that concern no watch, or the whole stream.
pub const NO_WATCH_ID: i64 = -1;

/// One response to be sent.
#[derive(Debug)]
pub enum Delivery {
    /// A watch was created.
    Created {
        /// Its id.
        watch_id: i64,
        /// The revision at registration. Events after it follow, or events from the start revision on if there is one.
        stamp: Stamp,
    },
    /// Events of one revision, or of several.
    Events {
        /// The watch.
        watch_id: i64,
        /// The events.
        payload: Arc<Payload>,
        /// How many revisions of the payload are not for this watch, because it has them already or begins after them.
        from: u32,
        /// Whether the client allows the response to be split between events.
        fragment: bool,
        /// For events that are not live: the newest revision when they were read, which etcd puts into the header of
        /// such a response.
        as_of: Option<Revision>,
        /// The watch began in the past and has not caught up yet, so its events are late on purpose.
        replay: bool,
    },
    /// Every event up to the stamp's revision was sent before this.
    Progress {
        /// The watch, or [`NO_WATCH_ID`] for the whole stream.
        watch_id: i64,
        /// The revision, and its cluster.
        stamp: Stamp,
    },
    /// A watch ended, or was refused.
    Canceled(Box<Cancellation>),
}

/// The end of a watch, with etcd's wording.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cancellation {
    /// The watch; [`NO_WATCH_ID`] for one that was refused.
    pub watch_id: i64,
    /// Whether this answers a create that was refused.
    pub refused: bool,
    /// After a compaction its revision is zero, as in etcd.
    pub header: Header,
    /// The oldest revision that can be watched; zero if compaction is not the reason.
    pub compact_revision: Revision,
    /// etcd's text, or the relay's own if etcd has none.
    pub reason: String,
}

impl Cancellation {
    /// Whether upstream, a compaction or another cluster ended the watch, for metrics.
    pub(super) fn why(&self) -> CancelReason {
        if self.compact_revision == Revision::ZERO {
            CancelReason::Upstream
        } else if self.reason.is_empty() {
            CancelReason::Compacted
        } else {
            CancelReason::Replaced
        }
    }
}

impl Delivery {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Events { payload, from, .. } => payload.size(*from as usize),
            _ => 0,
        }
    }
}

/// What a front gets from [`super::WatchStream::poll_drain`].
#[derive(Debug, PartialEq, Eq)]
pub enum Drained {
    /// Deliveries were added to the batch.
    Some,
    /// The stream has ended, and everything was sent.
    End(StreamEnd),
}

/// What [`super::WatchStream::answer_progress`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressAnswer {
    /// It queued the answer.
    Sent,
    /// etcd would not answer now either.
    Silence,
    /// One feed is behind another: try again when it has caught up.
    Later,
}

/// Why a stream ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// The relay is stopping; the client resumes elsewhere.
    Stopping,
    /// The client requires a leader, and the cluster has none.
    NoLeader,
    /// The feed that a create needs was not available in time.
    Unavailable(String),
    /// A request cannot be decoded; the text says why.
    Malformed(String),
    /// A request is too large; the text says how large.
    TooLarge(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_no_larger_than_its_events() {
        let events = size_of::<(i64, Arc<Payload>, u32, bool, bool, Option<Revision>)>();
        assert!(
            size_of::<Delivery>() <= events,
            "{} for {events}: each one in each queue is as large",
            size_of::<Delivery>()
        );
    }
}
